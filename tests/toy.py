"""A task of a few numbers, for tests of the engine: which of eight inputs is the largest?

Beside the task: a clock that tests move by hand, a shop that makes sessions, and real processes
that start in milliseconds because they are forked from a server that has imported torch already.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from timebox import optim
from timebox.loop import fit
from timebox.session import Session, prepare
from timebox.settings import Settings
from timebox.task import Task

torch.set_num_threads(1)  # the models are tiny, and tests share their cores

WIDTH = 8
PLAIN = {"device": "cpu", "dtype": "fp32"}  # the same numbers on every machine


class FakeTime:
    """A monotonic clock that stands still unless a test moves it."""

    def __init__(self):
        self.seconds = 5000.0

    def __call__(self) -> float:
        return self.seconds

    def pass_by(self, seconds: float) -> None:
        """Let `seconds` go by."""
        self.seconds += seconds


def nothing(*ignored: Any) -> None:
    """The hook that does nothing."""


class ToyData:
    """`examples` vectors of eight numbers; batches of `size` in a new order each epoch."""

    def __init__(self, examples: int, size: int, seed: int, on_batch: Callable[[int], None]):
        self.examples, self.size, self.seed, self.on_batch = examples, size, seed, on_batch
        self.steps = -(-examples // size)
        self.digest = f"toy-{examples}-{size}-{seed}"
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(examples, WIDTH, generator=generator)
        self.drawn: list[list[int]] = []

    def batch(self, step: int, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
        self.on_batch(step)
        epoch, index = divmod(step, self.steps)
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
        order = torch.randperm(self.examples, generator=generator)
        whole = order[index * self.size : (index + 1) * self.size]
        mine = whole[rank::world]
        weight = torch.full((len(mine),), 1.0 / len(whole))
        if not len(mine):
            mine, weight = whole[:1], torch.zeros(1)
        self.drawn.append(mine.tolist())
        return {"x": self.x[mine], "y": self.x[mine].argmax(-1), "weight": weight}


class ToyModel(nn.Module):
    def __init__(self, dropout: float, on_loss: Callable[[dict], float | None], hidden: int = 32):
        super().__init__()
        self.up = nn.Linear(WIDTH, hidden)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, WIDTH)
        self.on_loss = on_loss

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(torch.relu(self.up(x_BF))))

    def loss(self, batch):
        factor = self.on_loss(batch)
        logits_BC = self(batch["x"])
        loss_B = nn.functional.cross_entropy(logits_BC.float(), batch["y"], reduction="none")
        right = (logits_BC.argmax(-1) == batch["y"]).float().mean()
        total = (loss_B * batch["weight"]).sum()
        return total if factor is None else total * factor, {"acc": right}


@dataclass
class Toy:
    """Builds the task; hooks hear what is about to happen, and may slow it or break it."""

    examples: int = 64
    size: int = 16
    seed: int = 0
    items: int = 50
    dropout: float = 0.1
    hidden: int = 32
    on_model: Callable[[], None] = nothing
    on_batch: Callable[[int], None] = nothing
    on_loss: Callable[[dict], float | None] = nothing  # a number multiplies the loss
    on_score: Callable[[int], None] = nothing
    on_floor: Callable[[int], None] = nothing  # the same where the floor is scored, not a model
    on_export: Callable[[int], None] = nothing
    on_report: Callable[[], None] = nothing
    scores: Callable[[float], float] = lambda measured: measured  # bend what a whole one says
    answers: Callable[[list], list] = lambda answers: answers  # bend what is exported
    views: int = 1  # what an export says voted for it
    losses: Callable[[int], float] | None = None  # the n-th evaluation's validation loss
    example: str = ""
    events: list[str] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)  # share of the peak rate, step by step
    data: ToyData = field(init=False)
    evaluations: int = 0

    def task(self) -> Task:
        held_out = torch.randn(self.items, WIDTH, generator=torch.Generator().manual_seed(99))
        truth = held_out.argmax(-1)
        self.data = ToyData(self.examples, self.size, self.seed, self.on_batch)

        def score(model, share, limit=None):
            self.events.append("score")
            total = min(limit or self.items, self.items)
            right = seen = 0
            for item in range(total):
                if share.over():
                    break
                (self.on_floor if model is None else self.on_score)(item)
                guess = 0 if model is None else int(model(held_out[item : item + 1])[0].argmax())
                right += guess == int(truth[item])
                seen += 1
            exact = right / max(1, seen)
            if (
                seen == self.items and model is not None
            ):  # not a small one that shows what an item costs
                exact = self.scores(exact)
            beside = {"example": self.example} if self.example else {}
            if self.losses is not None and model is not None:
                self.evaluations += 1
                beside["loss"] = self.losses(self.evaluations)
            found = {"exact": exact, "items": seen, "items_total": self.items, "tie_break": 0.0}
            return {**found, **beside}

        def export(model, folder, share):
            self.events.append("floor" if model is None else "export")
            answers, complete = [], True
            for item in range(self.items):
                if model is None or share.over():
                    answers.append(0)
                    complete = complete and model is None
                    continue
                self.on_export(item)
                answers.append(int(model(held_out[item : item + 1])[0].argmax()))
            answers = answers if model is None else self.answers(answers)
            (folder / "submission.json").write_text(json.dumps(answers))
            (folder / "eval_predictions.json").write_text(json.dumps(answers))
            return {"complete": complete, "views": self.views}

        def report(folder):
            self.on_report()
            answers = json.loads((folder / "eval_predictions.json").read_text())
            exact = sum(a == int(t) for a, t in zip(answers, truth, strict=True)) / self.items
            always = float((truth == 0).float().mean())
            return {
                "evaluation": {"exact": exact, "items": self.items, "items_total": self.items},
                "baselines": {"evaluation": {"always the first": {"exact": always}}},
            }

        def check(folder: Path):
            for name in ("submission.json", "eval_predictions.json"):
                answers = json.loads((folder / name).read_text())
                sound = isinstance(answers, list) and len(answers) == self.items
                if not (sound and all(a in range(WIDTH) for a in answers)):
                    raise ValueError(f"{name} is not {self.items} numbers from 0 to 7")

        def note_rate(optimizer, args, kwargs):
            group = optimizer.param_groups[0]
            self.rates.append(group["lr"] / group["peak_lr"])

        def optimizer(model, settings):
            built = optim.build(model, settings, lr=0.02, adam_lr=0.003)
            built.register_step_pre_hook(note_rate)
            return built

        def model():
            self.on_model()
            return ToyModel(self.dropout, self.on_loss, self.hidden)

        return Task(
            "toy", "exact", 1, self.data, model, optimizer, score, export, report, check,
            validation_loss=self.losses is not None,
        )  # fmt: skip


def open_session(root: Path, toy: Toy | None = None, name: str = "r", **given: Any) -> Session:
    """A session of the toy below `root`: settings by name, and what `prepare` takes beside them."""
    others = ("now", "say", "fresh", "began", "identity", "commands")
    extra = {n: given.pop(n) for n in others if n in given}
    extra = {"say": nothing, **extra}
    return prepare((toy or Toy()).task(), Settings(**{**PLAIN, **given}), name, root, **extra)


def train(root: Path, toy: Toy | None = None, **given: Any) -> dict[str, Any]:
    """Train the toy in a session of its own; what run.json says."""
    return fit(open_session(root, toy, **given))


def run_json(root: Path, name: str = "r") -> dict[str, Any]:
    """The run.json that stands on disk."""
    return json.loads((root / "submissions" / name / "run.json").read_text())


def metrics(root: Path, name: str = "r") -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, each of which must be JSON."""
    text = (root / "submissions" / name / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def submission(root: Path, name: str = "r") -> list[int]:
    """The answers in submission.json."""
    return json.loads((root / "submissions" / name / "submission.json").read_text())


def checkpoint(root: Path, file: str = "last.pt", name: str = "r") -> dict[str, Any]:
    """A checkpoint as torch itself reads it."""
    return torch.load(root / "checkpoints" / name / file, weights_only=True)


def same(a: Any, b: Any) -> bool:
    """True if two nests of dicts, lists and tensors are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


# --- real processes


def process(target: Callable, *arguments: Any) -> multiprocessing.Process:
    """`target(*arguments)` started as a process of its own, forked from a clean server."""
    context = multiprocessing.get_context("forkserver")
    # torch.optim imports dynamo at its first use, which takes longer than torch itself.
    context.set_forkserver_preload(["torch", "torch._dynamo", "timebox.loop"])
    started = context.Process(target=target, args=arguments, daemon=True)
    started.start()
    return started


def child(
    root: Path,
    toy: dict[str, Any],
    settings: dict[str, Any],
    sleep: dict[str, float] | None = None,
    environment: dict[str, str] | None = None,
    limit_bytes: int = 0,
) -> None:
    """Train the toy in this process; `sleep` seconds at each hook ("batch", "score", "export").

    It leaves what it said in ROOT/said.PID, an empty file ROOT/at-HOOK when it first comes to
    a hook, and the drawn examples in ROOT/drawn.PID.
    """
    root, sleep = Path(root), sleep or {}
    os.environ.update(environment or {})
    said = open(root / f"said.{os.getpid()}", "a", buffering=1)  # noqa: SIM115
    if limit_bytes:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    def at(hook: str) -> Callable[[Any], None]:
        def reached(_: Any) -> None:
            marker = root / f"at-{hook}"
            if not marker.exists():
                marker.touch()
            if sleep.get(hook):
                time.sleep(sleep[hook])

        return reached

    hooks = {f"on_{h}": at(h) for h in ("batch", "score", "export")}
    built = Toy(**{**hooks, **toy})
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        session = open_session(root, built, say=lambda text: print(text, file=said), **settings)
        data = fit(session)
    rank = os.environ.get("RANK", "0")
    (root / f"drawn.{rank}").write_text(json.dumps(built.data.drawn))
    sys.exit(0 if data["status"] in ("finished", "stopped", "running") else 1)


def wait_for(path: Path, run: multiprocessing.Process, seconds: float = 30.0) -> None:
    """Wait until `run` has made `path`."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert run.is_alive(), f"the process ended (exit code {run.exitcode}) without {path.name}"
        assert time.monotonic() < end, f"{path} did not appear within {seconds:g} s"
        time.sleep(0.005)
