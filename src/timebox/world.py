"""The one place that knows about several processes: who we are, and deciding together.

Rank 0 looks at the clock, the stop flag and the scores; the others are told. So all ranks
stop, save and evaluate at the same step, whatever their own clocks say.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist


class World:
    """This process among `size`; for one process every call is free."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0):
        self.rank, self.size, self.local_rank = rank, size, local_rank
        # Decisions travel over gloo, so that no GPU has to be waited for.
        self.control = dist.new_group(backend="gloo") if size > 1 else None

    @classmethod
    def join(cls) -> World:
        """The world that the environment describes (as torchrun sets it up); alone otherwise."""
        size = int(os.environ.get("WORLD_SIZE") or 1)
        if size == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo")
        return cls(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))

    @property
    def chief(self) -> bool:
        """True for the one process that writes files and decides."""
        return self.rank == 0

    def told(self, decision: Any) -> Any:
        """Rank 0's `decision`, on every rank."""
        if self.size == 1:
            return decision
        box = [decision]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def total(self, number: float) -> float:
        """The sum of `number` over all ranks."""
        if self.size == 1:
            return number
        value = torch.tensor(float(number), dtype=torch.float64)
        dist.all_reduce(value, group=self.control)
        return value.item()

    def sum_gradients(self, model: torch.nn.Module) -> None:
        """Add up the gradients over all ranks (weights add up to 1, so the sum is the mean)."""
        if self.size == 1:
            return
        parameters = [p for p in model.parameters() if p.requires_grad]
        flat = torch.cat(
            [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters]
        )
        dist.all_reduce(flat)
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p)

    def same_weights(self, model: torch.nn.Module) -> None:
        """Give every rank the weights of rank 0."""
        if self.size > 1:
            for tensor in [*model.parameters(), *model.buffers()]:
                dist.broadcast(tensor.data, src=0)
