"""What a run says while it goes on: plain lines, seldom, that a log file can keep.

Each flushed print is an output of its own in a notebook, and thousands of them have killed long
runs; so there is one line every so many seconds, and the rest is in metrics.jsonl.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from timebox.clock import Clock
from timebox.plan import Plan, Position
from timebox.record import Record
from timebox.step import Step


class Means:
    """Means of loss and logs over examples."""

    def __init__(self, sums: dict[str, float]):
        self.sums = sums

    def add(self, step: Step) -> None:
        """Take one step into account, weighted by its examples."""
        for name, value in {"loss": step.loss, **step.logs, "examples": 1.0}.items():
            self.sums[name] = self.sums.get(name, 0.0) + step.examples * value

    def values(self) -> dict[str, float]:
        """Name to mean, the loss first; empty before the first example."""
        examples = self.sums.get("examples", 0.0)
        return (
            {n: v / examples for n, v in self.sums.items() if n != "examples"} if examples else {}
        )


class Progress:
    """Counts steps and examples, and says so every `every` seconds and at each epoch's end."""

    def __init__(
        self, record: Record, clock: Clock, plan: Plan, say: Callable[[str], None], every: float
    ):
        self.record, self.clock, self.plan, self.say, self.every = record, clock, plan, say, every
        self.recent = Means({})
        self.since = self.epoch_since = clock.elapsed()
        self.trained = 0.0

    def count(self, position: Position, step: Step, rate: float) -> None:
        """After a taken step: its numbers, a line if it is time for one."""
        self.recent.add(step)
        waited = self.clock.elapsed() - self.since
        if waited >= self.every:
            trained = self.clock.spent().get("train", 0.0)
            means = self.recent.values()
            speed = self.recent.sums["examples"] / max(trained - self.trained, 1e-9)
            self._line(position, means, speed)
            self.record.metric(
                "train", step=position.step, epoch=position.step / self.plan.epoch_steps,
                progress=position.progress, rate=rate, norm=step.norm,
                examples_per_second=speed, **means,
            )  # fmt: skip
            self.recent, self.since, self.trained = Means({}), self.clock.elapsed(), trained
            self.record.write(steps=position.step, examples_seen=position.examples_seen)

    def epoch(self, number: int, means: dict[str, float], seen: int, total: int) -> None:
        """At the end of an epoch: its summary, unless epochs are so short that it is noise."""
        seconds = self.clock.elapsed() - self.epoch_since
        self.epoch_since = self.clock.elapsed()
        if seconds < self.every / 3:
            return
        self.say(
            f"Epoch {number} done  {_numbers(means)}  {seen:,}/{total:,} examples  {_time(seconds)}"
        )

    def evaluation(self, scores: dict, position: Position, best: bool) -> None:
        """After an evaluation: the score and whether it is the best so far."""
        items = f"{scores['items']:,} of {scores['items_total']:,} items"
        named = {n: v for n, v in scores.items() if isinstance(v, float) and n != "tie_break"}
        self.say(
            f"Validation at step {position.step}  {_numbers(named)}  ({items})"
            + ("  best so far" if best else "")
        )
        if "example" in scores:
            self.say(f"  {scores['example']}")

    def _line(self, position: Position, means: dict[str, float], speed: float) -> None:
        plan = self.plan
        epoch = (position.step - 1) // plan.epoch_steps + 1  # of the step just taken
        epochs = f"/{plan.settings.epochs}" if plan.settings.epochs else ""
        step_seconds = plan.costs.mean("step") or 0.0
        ends = -position.step % plan.epoch_steps * step_seconds
        following = plan.evaluation_in(position)
        self.say(
            f"Epoch {epoch}{epochs}  step {position.step}  {_numbers(means)}  "
            f"{speed:.0f} examples/s  epoch ends in {_time(ends)}  "
            f"deadline in {_time(self.clock.left())}"
            + (
                f"  next eval in {_time(following)}"
                if following < math.inf
                else "  last eval at the end"
            )
        )


def _numbers(values: dict[str, float]) -> str:
    return "  ".join(
        # A small loss still tells something, in two digits of its own.
        f"{name.replace('_', ' ')} {value:{'.3f' if not 0 < abs(value) < 0.01 else '.1g'}}"
        for name, value in values.items()
    )


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.1f} min"
