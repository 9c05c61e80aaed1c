"""Collatz: examples made and trained on per second, against the loop of ARKHE's training guide.

That loop, written plainly: a number is drawn, its long step taken and its digits found in Python,
one example after the other, padded to 50 tokens; a post-norm encoder 512 wide with 6 layers and 8
heads in fp32, batches of 32, Adam. Ours is of the same size (recipe `guide`), on the tokens there
are.
"""

from __future__ import annotations

import random
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from timebox.session import resolve
from timebox.settings import Settings
from timebox.step import take
from timebox.tasks import load_task
from timebox.world import World

BASE, LENGTH, BATCH = 24, 50, 32


class PlainExamples(Dataset):
    """Input and answer of an odd number from 1 to 2^24, each of 50 digits with zeros behind."""

    def __init__(self, examples: int):
        rng = random.Random(0)
        self.numbers = [2 * rng.randrange(2**23) + 1 for _ in range(examples)]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        n = result = self.numbers[i]
        while result % 2:
            result = (3 * result + 1) // 2
        while result % 2 == 0:
            result //= 2
        return self.tokens(n), self.tokens(result)

    @staticmethod
    def tokens(n: int) -> torch.Tensor:
        digits = []
        while n:
            n, digit = divmod(n, BASE)
            digits.insert(0, digit)
        return torch.tensor(digits + [0] * (LENGTH - len(digits)))


class PlainModel(nn.Module):
    """512 wide, 6 layers, 8 heads; a digit of the answer for each token of the input."""

    def __init__(self):
        super().__init__()
        self.digit = nn.Embedding(BASE, 512)
        self.position = nn.Parameter(torch.randn(1, LENGTH, 512) * 0.02)
        layer = nn.TransformerEncoderLayer(512, 8, 2048, 0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.head = nn.Linear(512, BASE)

    def forward(self, input_BL: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.digit(input_BL) * 512**0.5 + self.position))


def examples_made(device, rounds: int = 3):
    """Alternate blocks of both, so that whatever else the machine does hits both alike."""
    data = load_task("collatz", base=BASE, batch_size=256).data
    data.batch(0)
    ours = theirs = our_seconds = their_seconds = 0.0
    for number in range(rounds):
        began = time.perf_counter()
        for step in range(200 * number, 200 * number + 200):
            ours += len(data.batch(step)["weight"])
        our_seconds += time.perf_counter() - began
        plain = DataLoader(PlainExamples(3200), BATCH)
        began = time.perf_counter()
        theirs += sum(len(batch[0]) for batch in plain)
        their_seconds += time.perf_counter() - began
    ours, theirs = ours / our_seconds, theirs / their_seconds
    detail = f"{ours:,.0f} examples/s against {theirs:,.0f}"
    return "Collatz examples made", f"{ours / theirs:.1f} x", ">= 10 x", detail


def examples_trained(device, rounds: int = 2):
    """Training steps of the guide's size and batch, and for information those of our default."""
    settings, options, _ = resolve("collatz", {"recipe": "guide", "range_max": 2**24})
    step, parameters = _stepper(load_task("collatz", **options), settings, device)
    default, small = _stepper(load_task("collatz"), Settings(), device)
    torch.manual_seed(0)
    model = PlainModel().to(device.type)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    batches = iter(DataLoader(PlainExamples(BATCH * (rounds + 1)), BATCH))

    def plain(number: int) -> int:
        input_BL, answer_BL = (part.to(device.type) for part in next(batches))
        optimizer.zero_grad()
        logits_BLV = model(input_BL)
        loss = nn.functional.cross_entropy(
            logits_BLV.flatten(0, 1), answer_BL.flatten(), ignore_index=0
        )
        loss.backward()
        optimizer.step()
        loss.item()
        return len(input_BL)

    kinds = {"ours": (step, 8), "plain": (plain, 1), "default": (default, 4)}
    count, seconds = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0.0)
    for number in range(rounds + 1):  # the first round warms up and is not counted
        for name, (take_step, steps) in kinds.items():
            began = time.perf_counter()
            done = sum(take_step(steps * number + i) for i in range(steps))
            if number:
                count[name] += done
                seconds[name] += time.perf_counter() - began
    speed = {name: count[name] / seconds[name] for name in kinds}
    theirs = sum(p.numel() for p in model.parameters()) / 1e6
    detail = (
        f"{speed['ours']:.1f} examples/s ({parameters:.1f} M) against {speed['plain']:.1f} "
        f"({theirs:.1f} M); our default {speed['default']:.0f} ({small:.1f} M)"
    )
    ratio = speed["ours"] / speed["plain"]
    return "Collatz training over the guide's", f"{ratio:.1f} x", ">= 3 x", detail


def _stepper(task, settings, device):
    """A function that takes the step of a given number, and the millions of parameters."""
    torch.manual_seed(0)
    model = task.model().to(device.type)
    optimizer = task.optimizer(model, settings)
    scaler, world = device.scaler(), World()

    def step(number: int) -> int:
        batch = task.data.batch(number)
        return take(model, optimizer, scaler, device, world, batch, 1.0, 1).examples

    return step, sum(p.numel() for p in model.parameters()) / 1e6
