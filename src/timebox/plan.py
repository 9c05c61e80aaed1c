"""What still fits: when to evaluate, to save and to stop, and how far the schedule has come."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from timebox.clock import Clock, Costs, Share
from timebox.settings import Settings

# Shares of the session. The fixed part is in seconds, because short runs must evaluate too.
EVALUATIONS = (0.005, 2.25)  # for evaluations during training
EXPORTS = (0.005, 2.25)  # for exports during training
FINAL = (0.008, 4.5)  # for the last evaluation and the best submission
FINAL_MOST = 60.0  # seconds; more votes than fit into that change nothing
SAVE_SHARE = 0.04  # of the time at most, for checkpoints: the promise is 5%
FIRST_STEPS = 2  # of a session, whose seconds say nothing about the others
MARGIN = 0.003  # of the session, at most ten seconds, against whatever nobody measured


@dataclass
class Position:
    """Where a run stands: all of it is in the checkpoint, and a resumed run starts from it."""

    step: int = 0
    progress: float = 0.0
    examples_seen: int = 0
    epoch_examples: int = 0  # of the epoch that is under way
    epoch_sums: dict[str, float] = field(default_factory=dict)  # likewise
    floor: list[float] | None = None  # key of the floor submission
    best: list[float] | None = None  # key of the best evaluation
    best_scores: dict[str, Any] = field(default_factory=dict)
    to_beat: list[float] | None = None  # the same among those that count for the next three
    stale: int = 0  # evaluations since then
    plateau: int = 0  # evaluations since then or since the rate last fell for it
    since: dict[str, float] = field(default_factory=dict)  # sums of training since the last one
    overfitting: bool = False  # it was said
    evaluated: int = -1  # step of the last evaluation
    ended: str = ""  # why, once training has ended
    items: int | None = None  # validation items per evaluation
    pieces: int = 1  # micro-batches per step
    rate_scale: float = 1.0  # lowered by each roll-back and on a plateau
    rollbacks: int = 0
    trouble: int = 0  # step at which the last of them began
    seconds: dict[str, float] = field(default_factory=dict)  # by phase, sessions before this one
    costs: dict[str, float] = field(default_factory=dict)  # seconds, as last measured
    history: list[dict[str, Any]] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """As plain types, for the checkpoint."""
        return asdict(self)


class Plan:
    """Answers from the clock and the measured costs. `tail`: seconds that others need after us."""

    def __init__(
        self, settings: Settings, clock: Clock, costs: Costs, epoch_steps: int, tail: float
    ):
        self.settings, self.clock, self.costs, self.tail = settings, clock, costs, tail
        self.epoch_steps = epoch_steps
        limits = [settings.max_steps, settings.epochs * epoch_steps]
        self.end_step = min((n for n in limits if n > 0), default=math.inf)
        self.begun = self.last_save = self.last_evaluation = clock.elapsed()
        self.evaluations = 0
        self.kept_step = -1  # of the last epoch whose checkpoint was kept
        self.last_export: float | None = None
        self.first_steps = 0

    # --- how far the schedule has come

    def steps_left(self, position: Position) -> float:
        """Steps that will still be taken, this one included, over all sessions to come."""
        by_count = self.end_step - position.step
        step = self.costs.mean("step")
        if step is None or (by_count < math.inf and self.costs.count("step") < 8):
            # Nothing measured yet: a thousand steps make a first one that is small but not nothing.
            return by_count if by_count < math.inf else 1000.0
        # A second forecast is kept back, so that the step after the one that uses the rest up
        # still fits: it is the last, and known to be.
        seconds = self.clock.left() - self.reserve(position) - 2 * self._step_forecast()
        seconds += 0.95 * self.later(position)  # each session pays for its own start and end
        return min(by_count, 1 + max(0.0, seconds) / max(step, 1e-9))

    def stepped(self, seconds: float) -> None:
        """A step took `seconds`. A session's first steps are no guide: they load and compile."""
        self.first_steps += 1
        self.costs.add("step" if self.first_steps > FIRST_STEPS else "first step", seconds)

    def _step_forecast(self) -> float:
        known = self.costs.forecast("step")
        return known if known is not None else 1.5 * (self.costs.last("first step") or 0.0)

    def later(self, position: Position) -> float:
        """Seconds of the total budget that are left for sessions after this one."""
        if not self.settings.total_hours:
            return 0.0
        total, before = 3600 * self.settings.total_hours, position.seconds.get("total", 0.0)
        later = total - before - self.clock.seconds
        # Each session ends a little early; such remainders are not a session to wait for.
        return later if later > 0.1 * self.clock.seconds else 0.0

    def complete(self, position: Position, reason: str) -> bool:
        """True if a run that ended for `reason` has no session to come."""
        if reason == "deadline":
            return position.progress >= 1 or self.later(position) == 0
        return reason in ("steps", "epochs", "early_stopping")

    def progress_after(self, position: Position) -> float:
        """Progress when the next step is done: exactly 1 at the last one.

        Monotone whatever the speed does; linear, and the same after a resume, where a number of
        steps is what ends the run.
        """
        left = self.steps_left(position)
        return 1.0 if left < 2 else position.progress + (1.0 - position.progress) / left

    def next(self, position: Position) -> tuple[str | None, bool, bool]:
        """What the next moment is for: why training ends, or None; evaluate first; save first."""
        return self.ended(position), self.evaluation_due(position), self.save_due(position)

    def ended(self, position: Position) -> str | None:
        """Why training ends before the next step, or None."""
        if stop := self.clock.stop():
            return stop
        if position.step >= self.end_step:
            by_steps = 0 < self.settings.max_steps <= position.step
            return "steps" if by_steps else "epochs"
        if self.settings.patience and position.stale >= self.settings.patience:
            return "early_stopping"
        if position.progress >= 1.0:
            return position.ended or "deadline"  # it ended in an earlier session, or just now
        if self.clock.left() - self.reserve(position) < self._step_forecast():
            return "deadline"
        return None

    # --- what is kept back for the end

    def reserve(self, position: Position) -> float:
        """Seconds kept for the last save, evaluation and export, and for who comes after us."""
        save = self.costs.forecast("save") or 0.0
        margin = min(10.0, MARGIN * self.clock.seconds)
        return self.tail + margin + save + self.final(position)

    def final(self, position: Position) -> float:
        """Seconds for the last evaluation and export."""
        needed = self.evaluation_cost(position)
        return min(max(needed, min(FINAL_MOST, self._allowance(FINAL))), 0.25 * self.clock.seconds)

    def _allowance(self, part: tuple[float, float]) -> float:
        share, seconds = part
        return share * self.clock.seconds + min(seconds, 0.02 * self.clock.seconds)

    def evaluation_cost(self, position: Position) -> float:
        """Seconds that one evaluation with its save and export will hardly exceed."""
        score = self.costs.forecast("score", position.items or 1) or 0.0
        export = self.costs.forecast("export") or 0.0
        return score + export + (self.costs.forecast("save") or 0.0)

    # --- what is due now

    def short_share(self, position: Position) -> Share:
        """For an export during training: the cheapest complete one, if that fits."""
        room = max(0.0, self.clock.left() - self.reserve(position))
        return self.clock.share(min(room, 0.1 * self.clock.seconds), improve=False)

    def evaluation_share(self, position: Position) -> Share:
        """For an evaluation during training: what no longer fits is left out of its items."""
        room = max(0.0, self.clock.left() - self.reserve(position))
        return self.clock.share(min(room, 0.05 * self.clock.seconds))

    def export_due(self) -> bool:
        """True if predictions of better weights are to be exported now: the first ones always.

        An export may cost many times what the evaluation does that found them better.
        """
        if self.last_export is None:
            return True
        share = self._allowance(EXPORTS) / self.clock.seconds
        cost = self.costs.forecast("export") or 0.0
        return self.clock.elapsed() - self.last_export >= cost / share

    def exported(self) -> None:
        """An export begins now."""
        self.last_export = self.clock.elapsed()

    def evaluated(self) -> None:
        """An evaluation begins now."""
        self.last_evaluation = self.clock.elapsed()
        self.evaluations += 1

    def saved(self, whole: bool) -> None:
        """A checkpoint was written, or could not be: then it is tried again after a minute."""
        wait = 0.0 if whole else max(0.0, self._save_interval() - 60)
        self.last_save = self.clock.elapsed() - wait

    def _save_interval(self) -> float:
        return min(60 * self.settings.save_every_minutes, self.clock.seconds / 4)

    def evaluation_in(self, position: Position) -> float:
        """Seconds until the next evaluation is due; infinite if none will fit any more."""
        s, now = self.settings, self.clock.elapsed()
        cost = self.evaluation_cost(position)
        if s.eval_every_epochs:
            steps = s.eval_every_epochs * self.epoch_steps
            at_end = position.step % steps == 0 and position.evaluated != position.step > 0
            more = 0 if at_end else steps - position.step % steps
            due = more * (self.costs.mean("step") or 0.0)
        elif s.eval_every_minutes:
            due = self.last_evaluation + 60 * s.eval_every_minutes - now
        elif self.evaluations == 0:  # soon: it measures the cost, and beats the floor
            due = self.begun + min(60.0, 0.05 * self.clock.seconds) - now
        else:
            share = self._allowance(EVALUATIONS) / self.clock.seconds
            # Never more often than there is a line about it, however cheap it is.
            score = self.costs.forecast("score", position.items or 1) or 0.0
            due = self.last_evaluation + max(score / share, s.log_every_seconds) - now
        # One that would come right before the last one tells nothing new.
        room = self.clock.left() - self.reserve(position) - max(0.0, due)
        return max(0.0, due) if room > cost + 0.02 * self.clock.seconds else math.inf

    def evaluation_due(self, position: Position) -> bool:
        """True if an evaluation should happen before the next step, and fits."""
        by_epoch = self.settings.eval_every_epochs * self.epoch_steps
        if position.step in (0, position.evaluated) or (by_epoch and position.step % by_epoch):
            return False
        return self.evaluation_in(position) == 0.0

    def validation_items(self, total: int, share: Share) -> int:
        """How many of `total` validation items each evaluation scores, by what one costs.

        `share` is what is left of the first one, which must be able to score so many too.
        """
        if self.settings.eval_items:
            return min(total, self.settings.eval_items)
        item = max(self.costs.mean("score"), 1e-9)
        affordable = max(32, int(min(20.0, 0.007 * self.clock.seconds) / item))
        return min(total, affordable, int(max(0.0, share.left()) / item))

    def save_affordable(self) -> bool:
        """True if one more checkpoint keeps the time for all of them below its share."""
        spent = self.clock.spent().get("save", 0.0) + (self.costs.forecast("save") or 0.0)
        return spent <= SAVE_SHARE * (self.clock.elapsed() + 0.2 * self.clock.seconds)

    def epoch_to_keep(self, position: Position) -> int:
        """The epoch that ends here, if its checkpoint is to be kept and is not yet; else 0."""
        steps = self.settings.save_every_epochs * self.epoch_steps
        if not steps or position.step % steps or position.step in (0, self.kept_step):
            return 0
        return position.step // self.epoch_steps

    def save_due(self, position: Position) -> bool:
        """True if a checkpoint should be written before the next step, and fits."""
        cost = self.costs.forecast("save") or 0.0
        if self.epoch_to_keep(position):  # asked for, whatever share of the time it takes
            return self.clock.left() - self.reserve(position) > cost
        waited = self.clock.elapsed() - self.last_save
        due = waited >= max(self._save_interval(), cost / SAVE_SHARE)
        room = self.clock.left() - self.reserve(position) > cost
        return due and room and self.save_affordable()
