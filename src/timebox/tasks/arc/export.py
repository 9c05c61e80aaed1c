"""Predictions: of the validation items for a score, of everything that is asked for files.

Every piece of work here is anytime: the cheapest complete answer comes first (rules that need
no model), then one plain view of each input, then further views, whose answers are turned back
and vote. When the share of the clock is over, what there is so far is what counts.

A model needs one method here: `predict(views) -> [(grid, log-probability), ...]`, one answer per
`data.View`, in the view's own colours and orientation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from timebox.clock import Share
from timebox.files import read_json, refuse, write_json
from timebox.tasks.arc.data import (
    COLOURS,
    SAME_COLOURS,
    TRANSFORMS,
    ArcData,
    Grid,
    Item,
    Puzzle,
    View,
    grid,
    permutations,
    tokens,
    transform,
)
from timebox.tasks.arc.score import (
    BASELINES,
    Answers,
    Layout,
    judge,
    mean,
    problems_of,
    read_submission,
    scores,
    to_layout,
)

SUBMISSION, PREDICTIONS = "submission.json", "eval_predictions.json"
# Tokens in one call of predict: a fraction of a second, so the share is asked often enough.
TOKENS = {"cpu": 4096, "cuda": 131_072}
CHUNK = 48  # items whose views are sorted by size together
FIELDS = ("exact", "accuracy", "size_correct", "solved")  # of a prediction; the truth's verdict


# --- the floor --------------------------------------------------------------------------------


def floor(puzzle: Puzzle, given: Grid) -> list[Grid]:
    """Two different answers that cost nothing.

    First the answer of the first trivial rule that all demonstrations follow, else a copy of
    the input; then the next such rule's or baseline's answer that differs.
    """
    found: list[Grid] = []
    for rule in [r for r in RULES if _agrees(r, puzzle)] + list(BASELINES.values()):
        answer = rule(puzzle, given)
        if answer is not None and not any(np.array_equal(answer, other) for other in found):
            found.append(answer)
    changed = found[0].copy()
    changed[0, 0] = (changed[0, 0] + 1) % COLOURS
    return [*found, changed][:2]


def by_rule(puzzle: Puzzle, given: Grid) -> Grid | None:
    """The answer of the first trivial rule that all demonstrations, two at least, follow.

    On the training tasks 15 of 16 such answers are right, so no model is asked there.
    """
    if len(puzzle.demos) < 2:
        return None
    answers = (rule(puzzle, given) for rule in RULES if _agrees(rule, puzzle))
    return next((answer for answer in answers if answer is not None), None)


def _agrees(rule, puzzle: Puzzle) -> bool:
    for given, output in puzzle.demos:
        answer = rule(puzzle, given)
        if answer is None or not np.array_equal(answer, output):
            return False
    return True


def _constant(puzzle: Puzzle, given: Grid) -> Grid:
    return puzzle.demos[0][1]


def _recoloured(puzzle: Puzzle, given: Grid) -> Grid | None:
    """Each colour becomes the one it becomes in the demonstrations; None if it is in none."""
    became = np.full(COLOURS, COLOURS, dtype=np.uint8)
    for shown, output in puzzle.demos:
        if shown.shape == output.shape:
            became[shown] = output
    answer = became[given]
    return None if (answer == COLOURS).any() else answer


def _whole_ratio(puzzle: Puzzle) -> tuple[int, int]:
    shown, output = puzzle.demos[0]
    return output.shape[0] // shown.shape[0], output.shape[1] // shown.shape[1]


def _fits(given: Grid, ratio: tuple[int, int]) -> bool:
    return all(1 <= n * r <= 30 for n, r in zip(given.shape, ratio, strict=True))


def _enlarged(puzzle: Puzzle, given: Grid) -> Grid | None:
    ratio = _whole_ratio(puzzle)
    return np.kron(given, np.ones(ratio, dtype=np.uint8)) if _fits(given, ratio) else None


def _tiled(puzzle: Puzzle, given: Grid) -> Grid | None:
    ratio = _whole_ratio(puzzle)
    return np.tile(given, ratio) if _fits(given, ratio) else None


def _turned(which: int):
    return lambda puzzle, given: np.ascontiguousarray(transform(given, which))


RULES = [*map(_turned, range(TRANSFORMS)), _constant, _recoloured, _enlarged, _tiled]


# --- predicting -------------------------------------------------------------------------------


def answers(
    model: torch.nn.Module, views: list[View], share: Share
) -> Iterator[tuple[int, Grid, float]]:
    """Index, answer and log-probability of each view, smallest canvas first, until the share ends.

    Views of similar size are predicted together. Where memory runs out the number of tokens
    in one call is halved, and it goes on.
    """
    kind = next(model.parameters()).device.type
    budget = TOKENS.get(kind, TOKENS["cpu"])
    sizes = [tokens(view.canvas) for view in views]
    order = sorted(range(len(views)), key=lambda i: sizes[i][::-1])
    training = model.training
    model.eval()
    try:
        while order and not share.over():
            count, kind_of_token = 1, sizes[order[0]][1]
            while (
                count < len(order)
                and sizes[order[count]][1] == kind_of_token
                and (count + 1) * sizes[order[count]][0] <= budget
            ):
                count += 1
            chosen = order[:count]
            try:
                found = model.predict([views[i] for i in chosen])
            except RuntimeError as error:
                if "memory" not in str(error).lower() or count == 1:
                    raise
                if kind == "cuda":
                    torch.cuda.empty_cache()
                budget = max(1, min(budget, count * sizes[order[count - 1]][0]) // 2)
                continue
            order = order[count:]
            for i, (answer, log_p) in zip(chosen, found, strict=True):
                yield i, answer, log_p
    finally:
        model.train(training)


def _chunks(things: list, size: int = CHUNK) -> Iterator[list]:
    return (things[i : i + size] for i in range(0, len(things), size))


class Votes:
    """The candidate answers of one item and how often, and how surely, each was given."""

    def __init__(self, item: Item):
        self.item = item
        self.found: dict[tuple, list] = {}  # content -> [votes, best log-probability, grid]
        self.ruled = by_rule(item.puzzle, item.input)
        # An exact copy of the input is a lazy guess, unless a demonstration keeps its input.
        self.may_copy = any(np.array_equal(i, o) for i, o in item.puzzle.demos)

    def add(self, answer: Grid, log_p: float) -> None:
        """One more vote."""
        entry = self.found.setdefault((answer.shape, answer.tobytes()), [0, log_p, answer])
        entry[0] += 1
        entry[1] = max(entry[1], log_p)

    def attempts(self) -> list[Grid]:
        """Two different answers: a rule's, then the most voted ones, then the floor's."""

        def rank(entry: list) -> tuple:
            votes, log_p, answer = entry
            return self.may_copy or not np.array_equal(answer, self.item.input), votes, log_p

        voted = [entry[2] for entry in sorted(self.found.values(), key=rank, reverse=True)[:2]]
        ruled = [] if self.ruled is None else [self.ruled]
        best: list[Grid] = []
        for guess in [*ruled, *voted, *floor(self.item.puzzle, self.item.input)]:
            if len(best) < 2 and not any(np.array_equal(guess, other) for other in best):
                best.append(guess)
        return best


# --- the task's functions ---------------------------------------------------------------------


class Predictions:
    """What the ARC task does with a model: score, export, report and check."""

    def __init__(self, data: ArcData, views: int, layout: Layout):
        self.data, self.views, self.layout = data, views, layout
        self.tests = data.items("test")
        self.evaluation = data.items("evaluation")
        # An answer that also judges the evaluation set must not choose the weights.
        judged = {_place(item) for item in self.evaluation}
        validation = [item for item in data.items("training") if _place(item) not in judged]
        order = np.random.default_rng(0).permutation(len(validation))
        self.validation = [validation[i] for i in order]
        self._truth: dict[str, list[Grid]] | None = None
        self._ruled: list[Grid | None] = []

    def score(self, model: torch.nn.Module | None, share: Share, limit: int | None) -> dict:
        """Exact match of first attempts on the first `limit` validation items, from a plain view.

        The validation items are the training tasks' tests, in one fixed random order. Says how
        many were scored; fewer than `limit` where the share ended before. "model_exact" leaves
        the trivial rules aside.
        """
        if self._truth is None:
            self._truth = self.data.source.solutions("training") or {}
            self._ruled = [by_rule(item.puzzle, item.input) for item in self.validation]
        judged: list[dict[str, float]] = []
        alone: list[float] = []
        for items in _chunks(self.validation[:limit]):
            if model is None:
                given = {k: floor(item.puzzle, item.input)[0] for k, item in enumerate(items)}
            else:
                given = {k: a for k, a, _ in answers(model, [i.view() for i in items], share)}
            # A chunk that was cut short would count its small grids only.
            if len(given) < len(items):
                break
            for k, item in enumerate(items):
                truth, ruled = self._truth[item.puzzle.id][item.index], self._ruled[len(judged)]
                judged.append(judge(given[k] if ruled is None else ruled, truth))
                alone.append(judge(given[k], truth)["exact"])
        result = mean(judged)
        model_exact = {} if model is None else {"model_exact": sum(alone) / max(1, len(alone))}
        return {
            **result,
            **model_exact,
            "items": len(judged),
            "items_total": len(self.validation),
            "tie_break": result["cell_accuracy"],
        }

    def export(self, model: torch.nn.Module | None, folder: Path, share: Share) -> dict:
        """Write submission.json and eval_predictions.json, both complete, into `folder`.

        Returns notes: how many inputs there are, how many of them a trivial rule answers, how
        many only have a floor guess, and how many views of each were voted on.
        """
        asked: dict[tuple, Votes] = {}  # where the sets coincide an input is predicted once
        for item in self.tests + self.evaluation:
            asked.setdefault(_place(item), Votes(item))
        work = share.part(0.97)  # the rest is for writing
        began, plain_seconds, done = share.clock.now(), 0.0, 0
        if model is not None:
            rng = np.random.default_rng(self.data.seed)
            votes = list(asked.values())
            movable = np.stack([v.item.puzzle.movable for v in votes]) if votes else None
            while done < self.views and votes and (work.improving() if done else not work.over()):
                done += self._round(model, votes, movable, done, rng, work)
                if done == 1:
                    plain_seconds = share.clock.now() - began
        attempts = {place: votes.attempts() for place, votes in asked.items()}

        def by_task(items: list[Item]) -> Answers:
            found: Answers = {}
            for item in items:
                found.setdefault(item.puzzle.id, []).append(attempts[_place(item)])
            return found

        submission = {id: [] for id in self.data.tasks["test"]} | by_task(self.tests)
        write_json(Path(folder) / SUBMISSION, to_layout(submission, self.layout))
        predictions = [
            {
                "task_id": item.puzzle.id,
                "test_index": item.index,
                "prediction": attempts[_place(item)][0].tolist(),
                "attempt_2": attempts[_place(item)][1].tolist(),
                **dict.fromkeys(FIELDS),
            }
            for item in self.evaluation
        ]
        write_json(Path(folder) / PREDICTIONS, predictions)
        return {
            "inputs": len(asked),
            "floor_only": sum(not votes.found for votes in asked.values()),
            "by_rule": sum(votes.ruled is not None for votes in asked.values()),
            "views": done,
            "complete": model is None or done > 0 or not asked,
            "plain_seconds": plain_seconds,
        }

    def _round(self, model, votes: list[Votes], movable, done: int, rng, work: Share) -> int:
        """One more view of every item; 1 if all were done before the share ended, else 0."""
        same = np.tile(SAME_COLOURS, (len(votes), 1))
        # The 8 symmetries first, in the puzzle's own colours; then with exchanged ones.
        recoloured = done >= TRANSFORMS and self.data.recolour > 0
        colours = permutations(movable, rng) if recoloured else same
        for chunk in _chunks(range(len(votes)), 4 * CHUNK):
            views = [votes[k].item.view(done % TRANSFORMS, colours[k]) for k in chunk]
            count = 0
            for i, answer, log_p in answers(model, views, work):
                votes[chunk[i]].add(views[i].restore(answer), log_p)
                count += 1
            if count < len(views):
                return 0
        return 1

    def report(self, folder: Path) -> dict:
        """Open the evaluation answers: score the predictions, and write the verdict beside each."""
        path = Path(folder) / PREDICTIONS
        predictions = read_json(path)
        truth = self.data.source.solutions("evaluation")
        if truth is None:
            return {"evaluation": {}, "baselines": {"evaluation": {}}}
        given: Answers = {}
        for entry in predictions:
            attempts = [np.array(entry[name], np.uint8) for name in ("prediction", "attempt_2")]
            given.setdefault(entry["task_id"], []).append(attempts)
            right = truth[entry["task_id"]][entry["test_index"]]
            verdict = judge(attempts[0], right)
            entry["exact"] = bool(verdict["exact"])
            entry["accuracy"] = verdict["cell_accuracy"]
            entry["size_correct"] = bool(verdict["size_correct"])
            entry["solved"] = any(np.array_equal(attempt, right) for attempt in attempts)
        write_json(path, predictions)

        def everywhere(attempts: Callable[[Puzzle, Grid], list[Grid]]) -> dict[str, float]:
            puzzles = self.data.tasks["evaluation"].items()
            return scores({id: [attempts(p, grid) for grid in p.tests] for id, p in puzzles}, truth)

        baselines = {
            name: everywhere(lambda puzzle, grid, guess=guess: [guess(puzzle, grid)])
            for name, guess in BASELINES.items()
        }
        baselines["floor submission"] = everywhere(floor)
        return {
            "evaluation": {**scores(given, truth), "items_total": len(self.evaluation)},
            "baselines": {"evaluation": baselines},
        }

    def check(self, folder: Path) -> None:
        """Reload both files; a ValueError that names the problems unless both are valid."""
        tests = {id: len(puzzle.tests) for id, puzzle in self.data.tasks["test"].items()}
        path = Path(folder) / SUBMISSION
        problems = problems_of(path, tests)
        given, _ = read_submission(path)
        problems += [
            f"{id}: test {k}: the two attempts are the same"
            for id, outputs in given.items()
            for k, attempts in enumerate(outputs)
            if len(attempts) == 2 and np.array_equal(*attempts)
        ]
        refuse(path, problems)
        path = Path(folder) / PREDICTIONS
        predictions = read_json(path)
        if type(predictions) is not list:
            raise ValueError(f"{path}: predictions are a list")
        problems = []
        for k, (entry, item) in enumerate(zip(predictions, self.evaluation, strict=False)):
            expected = (item.puzzle.id, item.index)
            if type(entry) is not dict or (entry.get("task_id"), entry.get("test_index")) != (
                expected
            ):
                problems.append(f"entry {k}: is not that of task_id, test_index {expected}")
                continue
            for name in ("prediction", "attempt_2"):
                try:
                    grid(entry.get(name), f"entry {k}: {name}")
                except ValueError as error:
                    problems.append(str(error))
        if len(predictions) != len(self.evaluation):
            problems.append(f"has {len(predictions)} entries, not {len(self.evaluation)}")
        refuse(path, problems)


def _place(item: Item) -> tuple:
    """The same for an input that two sets share."""
    return item.task, item.input.shape, item.input.tobytes()
