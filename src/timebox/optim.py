"""Parameter groups, Muon and AdamW in one optimizer, and the schedule as a function of progress.

One optimizer object, so a gradient scaler, a checkpoint and the loop deal with one thing.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from pathlib import Path

import torch
from torch import nn


def rate(progress: float, warmup: float, cooldown: float) -> float:
    """The share of the peak rate at `progress` in [0, 1]: rises over `warmup`, stays, falls to 0.

    A trapezoid (warm-up, stable, decay), so that a run cut to any budget still ends annealed.
    """
    if progress < warmup:
        return progress / warmup
    if progress > 1 - cooldown:
        return max(0.0, 1 - progress) / cooldown
    return 1.0


def build(
    model: nn.Module,
    settings,
    *,
    lr: float,
    adam_lr: float,
    embedding_lr: float = 0.0,
    head: str = "head",
) -> Optimizer:
    """The optimizer of `model` under `settings`: matrices by Muon or AdamW, all else by AdamW.

    `lr` is Muon's peak rate; with settings.optimizer "adamw" the matrices take `adam_lr`.
    Embedding tables get `embedding_lr` (0: `adam_lr`); the linear layer called `head` and
    everything with one dimension `adam_lr`. settings.lr, where it is not 0, replaces Muon's rate;
    with "adamw" it is the rate of everything, as other trainers have it.
    Only matrices and the head decay: a row of a table is seldom used and would fade.
    """
    tables = {p for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    parts: dict[str, list] = {"matrices": [], "head": [], "embeddings": [], "vectors": []}
    for name, parameter in model.named_parameters():
        if parameter in tables:
            parts["embeddings"].append(parameter)
        elif parameter.ndim != 2:
            parts["vectors"].append(parameter)
        else:
            parts["head" if head in name.split(".") else "matrices"].append(parameter)
    kind = settings.optimizer
    peak = {
        "matrices": lr if kind == "muon" else adam_lr,
        "head": adam_lr,
        "embeddings": embedding_lr or adam_lr,
        "vectors": adam_lr,
    }
    if settings.lr:
        peak |= {"matrices": settings.lr} if kind == "muon" else dict.fromkeys(peak, settings.lr)
    groups = [
        {
            "params": parameters,
            "name": part,
            "kind": kind if part == "matrices" else "adamw",
            "peak_lr": peak[part],
            "weight_decay": settings.weight_decay if part in ("matrices", "head") else 0.0,
        }
        for part, parameters in parts.items()
        if parameters
    ]
    return Optimizer(groups)


class Optimizer(torch.optim.Optimizer):
    """AdamW and NorMuon side by side, by the "kind" of each group.

    Muon (kellerjordan.github.io/posts/muon) replaces the momentum of a matrix by the nearest
    orthogonal one; NorMuon (arXiv 2510.05491) then evens out the size of its rows by a running
    second moment. Matrices of one shape are stepped together. A group's rate is "lr"; the loop
    sets it to "peak_lr" times the schedule.
    """

    def __init__(self, groups: list[dict]):
        defaults = {
            "kind": "adamw",
            "lr": 0.0,
            "peak_lr": 0.0,
            "weight_decay": 0.0,
            "betas": (0.9, 0.95),
            "eps": 1e-8,
            "momentum": 0.95,
        }
        super().__init__(groups, defaults)
        for group in self.param_groups:
            if group["kind"] not in ("muon", "adamw"):
                raise ValueError(f"a group's kind is 'muon' or 'adamw', not {group['kind']!r}")
            if group["kind"] == "muon" and any(p.ndim != 2 for p in group["params"]):
                raise ValueError("Muon is for matrices: every parameter must have two dimensions")
            group["lr"] = group["lr"] or group["peak_lr"]

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            used = [p for p in group["params"] if p.grad is not None]
            if used:
                self._muon(group, used) if group["kind"] == "muon" else self._adamw(group, used)
        return loss

    def _adamw(self, group: dict, parameters: list) -> None:
        lr, eps, (beta1, beta2) = group["lr"], group["eps"], group["betas"]
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {
                    "step": 0,
                    "first": torch.zeros_like(p),
                    "second": torch.zeros_like(p),
                }
        # Parameters may have been stepped a different number of times (one without a gradient is
        # left out), so the correction of the averages' start is each one's own.
        by_step = defaultdict(list)
        for p in parameters:
            self.state[p]["step"] += 1
            by_step[self.state[p]["step"]].append(p)
        for step, ps in by_step.items():
            grads = [p.grad for p in ps]
            first = [self.state[p]["first"] for p in ps]
            second = [self.state[p]["second"] for p in ps]
            torch._foreach_lerp_(first, grads, 1 - beta1)
            torch._foreach_mul_(second, beta2)
            torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
            size = torch._foreach_sqrt(second)
            torch._foreach_div_(size, (1 - beta2**step) ** 0.5)
            torch._foreach_add_(size, eps)
            torch._foreach_mul_(ps, 1 - lr * group["weight_decay"])
            torch._foreach_addcdiv_(ps, first, size, -lr / (1 - beta1**step))

    def _muon(self, group: dict, parameters: list) -> None:
        lr, momentum, beta2 = group["lr"], group["momentum"], group["betas"][1]
        by_shape = defaultdict(list)
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {
                    "first": torch.zeros_like(p),
                    "row": torch.zeros_like(p[:, :1]),
                }
            by_shape[p.shape].append(p)
        for (rows, columns), ps in by_shape.items():
            grads = [p.grad for p in ps]
            first = [self.state[p]["first"] for p in ps]
            row = [self.state[p]["row"] for p in ps]
            torch._foreach_lerp_(first, grads, 1 - momentum)
            # Nesterov: look ahead along the momentum by mixing the newest gradient in again.
            update = orthogonal(torch.stack(torch._foreach_lerp(grads, first, momentum)))
            norm = update.norm(dim=(-2, -1), keepdim=True)
            torch._foreach_lerp_(row, list(update.square().mean(-1, keepdim=True)), 1 - beta2)
            update = update / torch.stack(row).sqrt().clamp_min(1e-8)
            # The rows are even now; the whole keeps the size it had.
            update *= norm / update.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-8)
            torch._foreach_mul_(ps, 1 - lr * group["weight_decay"])
            # A tall matrix spreads its unit singular values over more outputs.
            size = max(1.0, rows / columns) ** 0.5
            torch._foreach_add_(ps, list(update.to(ps[0].dtype)), alpha=-lr * size)


def orthogonal(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest orthogonal matrix to each of a stack, roughly: singular values in 0.7 to 1.2.

    Newton-Schulz iteration with the quintic coefficients of Muon, in bf16 where the hardware
    multiplies it fastest; the iteration bears the rounding.
    """
    x = matrices.bfloat16() if matrices.is_cuda or _cpu_multiplies_bf16() else matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(
            x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445
        )
    return (x.mT if tall else x).float()


@cache
def _cpu_multiplies_bf16() -> bool:
    """True if the processor says so. Not measured: a resumed run must choose as the first did."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return not words.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})
