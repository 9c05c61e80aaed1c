"""One optimisation step: micro-batches, mixed precision, and the two ways it can go wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from timebox.device import Device
from timebox.world import World


@dataclass
class Step:
    """What a step gave: weighted means `loss` and `logs`; `taken` is False if it was skipped."""

    loss: float
    logs: dict[str, float]
    norm: float
    examples: int
    taken: bool
    pieces: int


class OutOfMemory(Exception):
    """Even one example at a time does not fit into memory."""


def take(
    model, optimizer, scaler, device: Device, world: World, batch, clip: float, pieces: int
) -> Step:
    """Train on `batch` in `pieces` micro-batches, more of them if memory runs out.

    The gradient is that of the whole batch whatever `pieces` is, because the examples' weights
    add up to 1 over all pieces and ranks. A loss or gradient that is not finite is not applied.
    """
    while True:
        try:
            optimizer.zero_grad(set_to_none=True)
            loss, logs = _gradients(model, scaler, device, batch, pieces)
            break
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            # Ranks wait for each other's gradients: one alone cannot try again.
            if pieces >= len(batch["weight"]) or world.size > 1:
                raise OutOfMemory(str(error).splitlines()[0] if str(error) else "") from None
        # Outside the handler, where the failed pass's tensors are no longer referenced.
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        pieces = min(2 * pieces, len(batch["weight"]))

    world.sum_gradients(model)
    scaler.unscale_(optimizer)
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip))
    loss = world.total(loss)
    # With fp16 an overflowing gradient is how the scaler finds its scale: it skips by itself.
    searching = scaler.is_enabled() and scaler.get_scale() >= 1
    taken = math.isfinite(loss) and (math.isfinite(norm) or searching)
    if taken:
        scaler.step(optimizer)
    if scaler.is_enabled():
        scaler.update()
    examples = round(world.total(float((batch["weight"] > 0).sum())))
    return Step(loss, logs, norm, examples, taken, pieces)


def out_of_memory(error: Exception) -> bool:
    """True if `error` says that memory ran out, on whatever device."""
    # On a CPU the allocator reports a plain RuntimeError.
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or "allocate memory" in str(error) or "enough memory" in str(error)


def _gradients(model, scaler, device: Device, batch, pieces: int) -> tuple[float, dict[str, float]]:
    total, weighted, weights = 0.0, {}, 0.0
    size = math.ceil(len(batch["weight"]) / pieces)
    parts = zip(*(tensor.split(size) for tensor in batch.values()), strict=True)
    for part in parts:
        piece = dict(zip(batch, part, strict=True))
        weight = float(piece["weight"].sum())
        with device.autocast():
            loss, logs = model.loss(device.to(piece))
        scaler.scale(loss).backward()
        total += float(loss.detach())
        weights += weight
        for name, value in logs.items():
            weighted[name] = weighted.get(name, 0.0) + weight * float(value)
    return total, {name: value / max(weights, 1e-12) for name, value in weighted.items()}
