"""How answers to ARC's tests are judged, what costs nothing scores, and what a valid file is.

Three rules circulate, so all three are named and computed: the competition's (test outputs
solved by either attempt, of all test outputs), the mean over tasks of the share of its outputs
solved, and the tasks solved completely. Whatever is judged, the solutions are gone through, so
a missing answer counts as wrong.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np

from timebox.files import read_json
from timebox.tasks.arc.data import Grid, Puzzle, grid, read_solutions

ATTEMPTS = ("attempt_1", "attempt_2")
Layout = Literal["official", "records"]
Answers = dict[str, list[list[Grid]]]  # by task id, by test input: the attempts


# --- judging ----------------------------------------------------------------------------------


def exact(answer: Grid, truth: Grid) -> bool:
    """True if the two grids are the same."""
    return np.array_equal(answer, truth)


def cell_accuracy(answer: Grid, truth: Grid) -> float:
    """Share of the true grid's cells that are right; 0 where the size is wrong."""
    return float((answer == truth).mean()) if answer.shape == truth.shape else 0.0


def judge(answer: Grid, truth: Grid) -> dict[str, float]:
    """One answer against the truth."""
    return {
        "exact": float(exact(answer, truth)),
        "cell_accuracy": cell_accuracy(answer, truth),
        "size_correct": float(answer.shape == truth.shape),
    }


def mean(judged: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each score; all 0 where nothing was judged."""
    names = ("exact", "cell_accuracy", "size_correct")
    return {name: float(np.mean([j[name] for j in judged])) if judged else 0.0 for name in names}


def scores(answers: Answers, solutions: dict[str, list[Grid]]) -> dict[str, float]:
    """Every score of `answers` by every rule, as shares of 1; "items" is the number of outputs.

    "exact", "cell_accuracy" and "size_correct" are those of the first attempts alone, so "exact"
    is pass@1; "competition" is pass@2.
    """
    first, solved = [], {}
    wrong = dict.fromkeys(("exact", "cell_accuracy", "size_correct"), 0.0)
    for id, truths in solutions.items():
        solved[id] = []
        for k, truth in enumerate(truths):
            given = answers.get(id, [])
            attempts = given[k] if k < len(given) else []
            first.append(judge(attempts[0], truth) if attempts else wrong)
            solved[id].append(any(exact(attempt, truth) for attempt in attempts))
    tasks, outputs = max(1, len(solved)), max(1, len(first))
    return {
        **mean(first),
        "pass@1": mean(first)["exact"],
        "pass@2": sum(map(sum, solved.values())) / outputs,
        "competition": sum(map(sum, solved.values())) / outputs,
        "mean_over_tasks": sum(sum(s) / len(s) for s in solved.values()) / tasks,
        "tasks_solved_completely": sum(map(all, solved.values())) / tasks,
        "items": len(first),
        "tasks": len(solved),
    }


# --- answers that cost nothing ----------------------------------------------------------------


def copy(puzzle: Puzzle, given: Grid) -> Grid:
    """The input itself."""
    return given


def background(puzzle: Puzzle, given: Grid) -> Grid:
    """The puzzle's most common output colour, in the input's size."""
    return np.full_like(given, _common_colour(puzzle))


def common_size(puzzle: Puzzle, given: Grid) -> Grid:
    """The puzzle's most common output colour, in its most common output size."""
    shape = Counter(output.shape for _, output in puzzle.demos).most_common(1)[0][0]
    return np.full(shape, _common_colour(puzzle), dtype=np.uint8)


def _common_colour(puzzle: Puzzle) -> int:
    return int(np.bincount(np.concatenate([o.ravel() for _, o in puzzle.demos])).argmax())


BASELINES = {
    "copy the input": copy,
    "all background": background,
    "most common size": common_size,
}


# --- files ------------------------------------------------------------------------------------


def to_layout(answers: Answers, layout: Layout) -> dict | list:
    """`answers` as the content of a submission file.

    "official" is the competition's: a dict from task id to one {attempt_1, attempt_2} per test
    input, in order. "records" is a list of {task_id, attempt_1, attempt_2}, one per test input,
    those of a task in order.
    """
    plain = {
        id: [
            dict(zip(ATTEMPTS, (attempt.tolist() for attempt in attempts), strict=True))
            for attempts in outputs
        ]
        for id, outputs in answers.items()
    }
    if layout == "official":
        return plain
    return [{"task_id": id, **output} for id, outputs in plain.items() for output in outputs]


def read_submission(path: str | Path) -> tuple[Answers, list[str]]:
    """The answers in a submission file of either layout, and every problem met while reading.

    A grid that cannot be read is left out of the answers, so it solves nothing.
    """
    try:
        raw = read_json(path)
    except ValueError as error:
        return {}, [str(error)]
    problems: list[str] = []
    if type(raw) is list:
        by_task: dict[str, list] = {}
        for k, record in enumerate(raw):
            if type(record) is dict and type(record.get("task_id")) is str:
                by_task.setdefault(record["task_id"], []).append(record)
            else:
                problems.append(f"record {k}: is not a dict with a task_id")
        raw = by_task
    if type(raw) is not dict:
        return {}, [f"{path}: a submission is a dict by task id or a list of records"]
    answers: Answers = {}
    for id, outputs in raw.items():
        answers[id] = []
        if type(outputs) is not list:
            problems.append(f"{id}: is not a list of attempts")
            continue
        for k, output in enumerate(outputs):
            answers[id].append([])
            for name in ATTEMPTS:
                if type(output) is not dict or name not in output:
                    problems.append(f"{id}: test {k}: {name} is missing")
                    continue
                try:
                    attempt = grid(output[name], f"{id}: test {k}: {name}")
                except ValueError as error:
                    problems.append(str(error))
                else:
                    answers[id][-1].append(attempt)
    return answers, problems


def score_files(submission_path: str | Path, solutions_path: str | Path) -> dict[str, float]:
    """Every score of a submission file against a solutions file; see `scores`.

    A submission with unreadable parts is scored without them; one that is not JSON is refused.
    """
    answers, problems = read_submission(submission_path)
    if problems and not answers:
        raise ValueError(problems[0])
    solutions = read_solutions(solutions_path, None)
    if not solutions:
        raise ValueError(f"{solutions_path}: holds no solutions")
    return scores(answers, solutions)


def check_files(submission_path: str | Path, challenges_path: str | Path) -> list[str]:
    """Every problem of a submission file for the challenges in a file; empty if it is valid."""
    raw = read_json(challenges_path)
    if type(raw) is not dict:
        raise ValueError(f"{challenges_path}: a set of challenges is a dict by task id")
    for id, task in raw.items():
        if type(task) is not dict or type(task.get("test")) is not list:
            raise ValueError(f"{challenges_path}: {id}: there is no list 'test'")
    return problems_of(submission_path, {id: len(task["test"]) for id, task in raw.items()})


def problems_of(submission_path: str | Path, tests: dict[str, int]) -> list[str]:
    """As `check_files`, for the number of test inputs by task id."""
    answers, problems = read_submission(submission_path)
    if not answers and problems:
        return problems
    for id, count in tests.items():
        if id not in answers:
            problems.append(f"{id}: the task is missing")
        elif len(answers[id]) != count:
            problems.append(f"{id}: has {len(answers[id])} outputs for {count} test inputs")
    problems += [f"{id}: there is no such task" for id in answers if id not in tests]
    return problems
