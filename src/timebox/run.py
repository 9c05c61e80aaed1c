"""The moving parts of a run: weights, optimizer, where it stands, and what it has saved."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import torch

from timebox import checkpoint, files
from timebox.clock import Costs, Share
from timebox.plan import Plan, Position
from timebox.progress import Means, Progress
from timebox.session import Session
from timebox.step import Step, take

# Of a position: what an evaluation moves.
COUNTED = ("to_beat", "stale", "plateau", "since", "evaluated", "rate_scale", "overfitting")
OVERFITTING = 1.2  # times the training loss
SMALL_LOSS = 0.01  # below it, a ratio says nothing
ROLLBACKS = 3  # in a row, each halving the rate; after the last one the run gives up
EPOCHS_KEPT = 500  # in run.json and the checkpoint, which are written whole


class Unstable(Exception):
    """Loss or gradients stay non-finite whatever the rate."""


class Run:
    """A session's model with everything that changes while it trains."""

    def __init__(self, session: Session):
        self.session, self.settings, self.clock = session, session.settings, session.clock
        self.task, self.device, self.world = session.task, session.device, session.world
        self.record, self.store, self.say = session.record, session.store, session.say
        checkpoint.seed_all(self.settings.seed)
        self.model = self.task.model().to(self.device.type)
        self.world.same_weights(self.model)
        self.optimizer = self.task.optimizer(self.model, self.settings)
        self.scaler = self.device.scaler()
        self.costs, self.position = Costs(), Position()
        self.uncounted: dict[str, Any] = {}  # what the checkpoint says of COUNTED instead
        if session.weights is not None:
            self.model.load_state_dict(session.weights)
        if session.state is not None:
            self._restore(session.state)
            for kind, seconds in self.position.costs.items():
                self.costs.add(kind, seconds)  # until this session has measured its own
        if self.device.compile:
            # Where a graph cannot be compiled, the plain one is used.
            from torch import _dynamo

            _dynamo.config.suppress_errors = True
            self.model.compile(dynamic=True)
        self.plan = Plan(self.settings, self.clock, self.costs, self.task.data.steps, session.tail)
        self.progress = Progress(
            self.record, self.clock, self.plan, self.say, self.settings.log_every_seconds
        )
        count = sum(p.numel() for p in self.model.parameters())
        data = self.task.data
        self.say(
            f"Model: {count:,} parameters; an epoch is {data.examples:,} examples "
            f"in {data.steps:,} steps"
        )
        self.write()
        if session.state is not None:
            self.plan.kept_step = self.position.step
        else:
            self.save()  # something to roll back to, and proof that saving works and what it costs

    # --- one step

    def step(self, batch: dict[str, torch.Tensor], rate: float) -> Step:
        """Train on `batch` at `rate` times each group's peak rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * rate * self.position.rate_scale
        return take(
            self.model, self.optimizer, self.scaler, self.device, self.world, batch,
            self.settings.clip, self.position.pieces,
        )  # fmt: skip

    def count(self, step: Step, rate: float) -> None:
        """Move on by one step, and by one epoch where it was the epoch's last."""
        position, data = self.position, self.task.data
        if step.pieces > position.pieces:
            self.event(f"out of memory: {step.pieces} micro-batches a step from here on")
        position.pieces = step.pieces
        position.step += 1
        if step.taken and position.step >= position.trouble + data.steps:
            position.rollbacks = 0  # an epoch beyond it: the next trouble is another
        position.examples_seen += step.examples
        position.epoch_examples += step.examples
        if step.taken:
            Means(position.epoch_sums).add(step)
            Means(position.since).add(step)
        else:
            self.event("skipped a step: loss or gradient is not finite")
        if position.step % data.steps == 0:
            number, means = position.step // data.steps, Means(position.epoch_sums).values()
            entry = {
                "kind": "epoch", "epoch": number, "step": position.step, **means,
                "examples_seen": position.epoch_examples, "examples_total": data.examples,
            }  # fmt: skip
            self.progress.epoch(number, means, position.epoch_examples, data.examples)
            self._remember(entry)
            position.epoch_sums, position.epoch_examples = {}, 0
        if step.taken:
            self.progress.count(position, step, rate)

    def roll_back(self) -> None:
        """Return to the last good checkpoint at half the rate; Unstable after the last try."""
        tries, scale = self.position.rollbacks + 1, self.position.rate_scale / 2
        seconds, trouble = self.position.seconds, self.position.step
        state = self.store.load() if tries <= ROLLBACKS else None
        if state is None:
            raise Unstable(f"loss or gradient still not finite after {tries - 1} roll-backs")
        self._restore(state)
        self.position.rollbacks, self.position.rate_scale = tries, scale
        self.position.seconds, self.position.trouble = seconds, trouble
        self.record.forget_after(self.position.step)
        self.event(
            f"rolled back to step {self.position.step}, rate now {scale:g} of the planned one"
        )

    # --- once in a while

    def evaluate(self, share: Share | None = None, counts: bool = True) -> list[float] | None:
        """Score the weights on validation, keep the best; the key, or None if time ran out.

        One that does not count comes out of turn, because the session ends: the run that goes
        on from its checkpoint has its patience and its rate from those before.
        """
        position, plan = self.position, self.plan
        if not counts:
            self.uncounted = {name: position.plain()[name] for name in COUNTED}
        position.evaluated = position.step
        plan.evaluated()
        if not self.world.chief:
            return None
        share = share or plan.evaluation_share(position)
        scores = None
        with self.clock.phase("score"), self._judging():
            if self.settings.eval_items:
                position.items = self.settings.eval_items
            elif position.items is None:  # a small first one shows what an item costs
                scores = self._score(share, 32)
                if not scores["items"]:
                    return None
                fitting = plan.validation_items(scores["items_total"], share)
                position.items = max(scores["items"], fitting)
            elif plan.evaluations == 2 and "items_total" in position.best_scores:
                # The first one was cold: an item may cost much less than it seemed to.
                fitting = plan.validation_items(position.best_scores["items_total"], share)
                position.items = fitting if fitting > 1.5 * position.items else position.items
            if scores is None or scores["items"] < position.items:
                scores = self._score(share, position.items)
            # Two items right of two scored is not better than a hundred of two hundred.
            key = self._key(scores)
            if not scores["items"] or (position.best is not None and key[0] < position.best[0]):
                return None
            if position.floor is None or position.floor[0] != scores["items"]:
                position.floor = self._floor_key(scores["items"])
        best = position.best is None or key > position.best
        if best:
            position.best, position.best_scores = key, scores
        better = position.to_beat is None or key > position.to_beat
        position.to_beat = key if better else position.to_beat
        position.stale = 0 if better else position.stale + 1
        position.plateau = 0 if better else position.plateau + 1
        trained = Means(position.since).values().get("loss")
        position.since = {}
        beside = {"train_loss": trained} if "loss" in scores and trained is not None else {}
        self.progress.evaluation(scores, position, best)
        self._remember(
            {"kind": "evaluation", "step": position.step, "best": best, **beside, **scores}
        )
        self._consider(scores.get("loss"), trained)
        self.write()
        sound = key[1] > float("-inf")
        if sound and self.store.belongs_to_top(key) and plan.save_affordable() and self.save():
            with self._tolerant("the list of the best checkpoints", OSError):
                self.store.keep_last_as_top(key)
        return key

    def _consider(self, loss: float | None, trained: float | None) -> None:
        """What an evaluation tells beside the score: overfitting, and a rate that is too high."""
        position, settings = self.position, self.settings
        known = loss is not None and trained is not None and not position.overfitting
        if known and loss > max(SMALL_LOSS, OVERFITTING * trained):
            position.overfitting = True
            self.record.warn(
                f"step {position.step}: the validation loss {loss:.3f} is more than {OVERFITTING} "
                f"times the training loss {trained:.3f}: the model overfits"
            )
        if settings.plateau_patience and position.plateau > settings.plateau_patience:
            position.plateau = 0
            position.rate_scale *= settings.plateau_factor
            self.event(
                f"no improvement in {settings.plateau_patience + 1} evaluations, rate now "
                f"{position.rate_scale:g} of the planned one"
            )

    def submit(self, key: list[float], share: Share) -> None:
        """Offer the predictions of the present weights, to which validation gave `key`."""
        submission = self.session.submission
        if not self.world.chief or self._below_floor(key):
            return
        self.plan.exported()
        began, notes = self.clock.now(), None
        refused = (OSError, ValueError)
        with self._tolerant("a submission", *refused), self.clock.phase("export"), self._judging():
            notes = submission.offer(self.model, key, share)
        seconds = self.clock.now() - began
        # One that was cut short would have taken longer than that.
        complete = notes is not None and notes["complete"]
        self.costs.add("export", notes.get("plain_seconds", seconds) if complete else 1.5 * seconds)
        if notes is not None:
            self.record.metric("export", step=self.position.step, seconds=seconds, **notes)
            self.write()

    def use_best_weights(self, than: list[float] | None) -> list[float] | None:
        """Load the best weights that were kept, if their key is better; the key of those in use."""
        kept = self.store.best_key() if self.world.chief else None
        if kept is None or (than is not None and than >= kept):
            return than
        state = self.store.load_best()
        if state is None:
            return than
        self.model.load_state_dict(state["model"])
        if state["position"]["best"] == kept:
            self.position.best, self.position.best_scores = kept, state["position"]["best_scores"]
        self.say(f"Best weights by validation: step {state['position']['step']}")
        return kept

    def save(self) -> bool:
        """Write a checkpoint; False, with a warning, if the disk did not take it."""
        if not self.world.chief:
            self.plan.saved(True)
            return False
        began, saved = self.clock.now(), False
        epoch = self.plan.epoch_to_keep(self.position)
        self.plan.kept_step = self.position.step  # also if it fails: it is not tried for ever
        with self._tolerant("a checkpoint", *files.WRITE_ERRORS), self.clock.phase("save"):
            self.store.save(self.state())
            saved = True
            if epoch:
                self.store.keep_last_as(f"epoch-{epoch}.pt")
        seconds = self.clock.now() - began
        self.costs.add("save", seconds)
        self.plan.saved(saved)
        if saved:
            self.record.metric("save", step=self.position.step, seconds=seconds)
            self.write()
        return saved

    # --- what is written down

    def write(self) -> None:
        """Bring run.json up to date."""
        p = self.position
        self.record.write(
            epochs=p.step // self.task.data.steps, steps=p.step, examples_seen=p.examples_seen,
            history=p.history, seconds_before=p.seconds, progress=p.progress,
            scores={**self.record.data["scores"], "validation": p.best_scores},
        )  # fmt: skip

    def event(self, text: str) -> None:
        """Something worth a line and a place in the record."""
        self.say(f"Step {self.position.step}: {text}")
        self.record.metric("event", step=self.position.step, text=text)
        self.write()

    def _remember(self, entry: dict[str, Any]) -> None:
        history = self.position.history
        history.append(entry)
        epochs = [i for i, e in enumerate(history) if e["kind"] == "epoch"]
        if len(epochs) > EPOCHS_KEPT:  # metrics.jsonl has them all
            del history[epochs[0]]
        self.record.metric(**entry)

    def state(self) -> dict[str, Any]:
        """What `_restore` needs, as plain types and tensors."""
        spent, before = self.clock.spent(), self.position.seconds
        seconds = {n: spent.get(n, 0.0) + before.get(n, 0.0) for n in sorted({*spent, *before})}
        costs = {kind: self.costs.mean(kind) for kind in ("score", "export", "save")}
        costs = {kind: cost for kind, cost in costs.items() if cost is not None}
        return {
            "format": checkpoint.FORMAT,
            "identity": self.session.identity,
            "device": {"name": self.device.name, "dtype": self.device.dtype},
            "position": {
                **self.position.plain(),
                **self.uncounted,
                "seconds": seconds,
                "costs": costs,
            },
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": checkpoint.random_state(self.device.type),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty where the sessions before needed none
            self.scaler.load_state_dict(state["scaler"])
        self.position = Position(**state["position"])
        if self.position.progress < 1:
            self.position.ended = ""  # that was the session before; this one goes on
        checkpoint.restore_random_state(state["random"], self.device.type)

    def _key(self, scores: dict[str, Any]) -> list[float]:
        judged = self.task.better * scores[self.task.metric]
        if self.settings.select == "loss":
            judged = -scores.get("loss", float("inf"))  # of no items there is none
        # A score that is not a number is the worst.
        judged = judged if judged == judged else float("-inf")
        return [float(scores["items"]), judged, scores.get("tie_break", 0.0)]

    def _metric_key(self, scores: dict[str, Any]) -> list[float]:
        metric, tie_break = scores[self.task.metric], scores.get("tie_break", 0.0)
        return [float(scores["items"]), self.task.better * metric, tie_break]

    def _below_floor(self, key: list[float]) -> bool:
        """True if the floor submission, which has no loss, is better by the metric."""
        position = self.position
        if position.floor is None:  # the checkpoint gone on from is an early one
            return False
        if self.settings.select == "loss":
            known = key == position.best
            return known and self._metric_key(position.best_scores)[:2] < position.floor[:2]
        return key < position.floor

    def _floor_key(self, items: int) -> list[float]:
        # It takes no model and next to no time; if it does take time, any model may replace it.
        scores = self.task.score(None, self.clock.share(0.02 * self.clock.seconds), items)
        cut = scores["items"] < items
        return [float(items), float("-inf"), float("-inf")] if cut else self._metric_key(scores)

    def _score(self, share: Share, items: int) -> dict[str, Any]:
        began = self.clock.now()
        scores = self.task.score(self.model, share, items)
        # Where the time was too short for a single item, one costs at least that much.
        self.costs.add("score", self.clock.now() - began, max(1, scores["items"]))
        return scores

    @contextmanager
    def _tolerant(self, what: str, *errors: type[Exception]):
        # A full disk, or predictions that fail their check, must not end the training: what
        # was there before still stands.
        try:
            yield
        except errors as error:
            why = f"{type(error).__name__}: {error}"
            self.record.warn(f"{what} could not be written, the earlier one stands: {why}")

    @contextmanager
    def _judging(self):
        # Evaluation happens when the clock says so; it must not move the training's random state.
        devices = [torch.cuda.current_device()] if self.device.type == "cuda" else []
        self.model.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices), self.device.autocast():
                yield
        finally:
            self.model.train()
