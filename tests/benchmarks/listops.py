"""Seconds until the listops model answers every test input of `medium`, against a plain loop's.

The plain loop is the recipe of llmlearn's step-by-step guide in plain PyTorch: a post-norm encoder
of the same size, Adam at 1e-3 throughout, batches of 32, on the very same examples.
"""

from __future__ import annotations

import time

import torch
from torch import nn

from timebox import optim
from timebox.settings import Settings
from timebox.step import take
from timebox.tasks import load_task
from timebox.tasks.listops.data import answers, encode
from timebox.world import World

STEPS = 400  # of our schedule; the plain loop gets up to three times our seconds
BLOCK = 25  # steps from one look at the test to the next, which is not timed


class GuideModel(nn.Module):
    """64 wide, 2 layers, 4 heads; the answer is read at the first token."""

    def __init__(self, tokens: int, length: int, values: int):
        super().__init__()
        self.embedding = nn.Embedding(tokens, 64)
        self.position = nn.Parameter(torch.randn(1, length, 64) * 0.02)
        layer = nn.TransformerEncoderLayer(64, 4, 256, 0.0, "relu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, values)

    def forward(self, tokens_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        x_BLD = self.embedding(tokens_BL) + self.position
        return self.head(self.encoder(x_BLD, src_key_padding_mask=~mask_BL)[:, 0])


class Racer:
    """A model and its step; how long it took, and how many test inputs it answers by now."""

    def __init__(self, model: nn.Module, step, test, device):
        self.model, self.step, self.device = model, step, device
        self.tokens, self.mask, self.answer = (t.to(device.type) for t in test)
        self.taken, self.seconds, self.exact = 0, 0.0, 0.0

    def block(self) -> None:
        """Train for one block, then look at the test."""
        began = time.perf_counter()
        for number in range(self.taken, self.taken + BLOCK):
            self.step(number)
        self.taken += BLOCK
        self.seconds += time.perf_counter() - began
        self.model.eval()
        with torch.no_grad():
            given = self.model(self.tokens, self.mask).argmax(-1)
        self.model.train()
        self.exact = float((given == self.answer).float().mean())


def seconds_to_perfect(device, seeds: int = 5):
    """The median over `seeds` splits of the seconds until all of the test is answered.

    One split alone says little: a test may hold the only list whose Max is 0. Who has not
    answered everything by the end of our schedule (or in three times our seconds) counts as
    having taken that long.
    """
    pairs = [_race(seed, device) for seed in range(seeds)]
    ours, theirs = (sorted(racers, key=_seconds) for racers in zip(*pairs, strict=True))
    mine, plain = ours[seeds // 2], theirs[seeds // 2]
    perfect = [sum(racer.exact == 1 for racer in racers) for racers in (ours, theirs)]
    detail = (
        f"{mine.seconds:.1f} s ({mine.taken:,} steps, 100% in {perfect[0]} of {seeds}) against "
        f"{plain.seconds:.1f} s ({plain.taken:,} steps, {perfect[1]} of {seeds})"
    )
    return "listops medium to 100%", f"{plain.seconds / mine.seconds:.1f} x", ">= 1 x", detail


def _race(seed: int, device) -> tuple[Racer, Racer]:
    """Blocks of both in turn, so that whatever else the machine does hits both alike."""
    tasks = [load_task("listops", size="medium", batch_size=n, seed=seed) for n in (64, 32)]
    part = tasks[0].data.parts["test"]
    test = (*encode(part), torch.from_numpy(answers(part)))
    torch.manual_seed(seed)
    ours, theirs = _ours(tasks[0], test, device), _theirs(tasks[1], test, device)
    while ours.exact < 1 and ours.taken < STEPS:
        ours.block()
        if theirs.exact < 1:
            theirs.block()
    while theirs.exact < 1 and theirs.seconds < 3 * ours.seconds:
        theirs.block()
    return ours, theirs


def _seconds(racer: Racer) -> float:
    return racer.seconds


def _ours(task, test, device) -> Racer:
    model, settings = task.model().to(device.type), Settings()
    optimizer = task.optimizer(model, settings)
    scaler, world = device.scaler(), World()

    def step(number: int) -> None:
        rate = optim.rate((number + 1) / STEPS, settings.warmup, settings.cooldown)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * rate
        take(model, optimizer, scaler, device, world, task.data.batch(number), 1.0, 1)

    return Racer(model, step, test, device)


def _theirs(task, test, device) -> Racer:
    tokens_NL = test[0]
    model = GuideModel(int(tokens_NL.max()) + 1, tokens_NL.shape[1], task.data.max_value + 1)
    model = model.to(device.type)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(number: int) -> None:
        batch = {n: t.to(device.type) for n, t in task.data.batch(number).items()}
        optimizer.zero_grad()
        logits_BV = model(batch["tokens"], batch["mask"])
        nn.functional.cross_entropy(logits_BV, batch["answer"]).backward()
        optimizer.step()

    return Racer(model, step, test, device)
