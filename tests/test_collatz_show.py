"""Pictures and tables of the Collatz task: what they say, on runs made by the test."""

from __future__ import annotations

import json

import numpy as np
import pytest

from timebox.clock import Clock
from timebox.tasks import load_task
from timebox.tasks.collatz import score, show
from timebox.tasks.collatz.data import long_step

BITS = 5


@pytest.fixture(scope="module")
def task():
    return load_task("collatz", range_max=2**22, validation_numbers=3000, test_numbers=2000)


@pytest.fixture(scope="module")
def folder(task, tmp_path_factory):
    """A run that learned one level a minute and ended with k + k' = 4; two sessions."""
    folder = tmp_path_factory.mktemp("run")
    n = task.data.validation
    result, k, k_prime = long_step(n)
    lines = ["not JSON", json.dumps({"kind": "train", "minutes": 0.5, "loss": 1.0})]
    for minutes, learned in ((1.0, 1), (2.0, 2), (0.5, 3), (1.5, 4)):
        judged = score.judge(n, np.where(k + k_prime <= learned, result, 2 * result))
        line = {"kind": "evaluation", "minutes": minutes, "exact": float(judged.right.mean())}
        lines.append(json.dumps({**line, "by_class": score.by_class(judged, BITS)}))
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    task.export(None, folder, Clock(100).share(50))
    entries = json.loads((folder / "eval_predictions.json").read_text())
    for entry in entries:
        truth = int(long_step(np.array([entry["n"]]))[0][0])
        level = entry["k"] + entry["k_prime"]
        entry["answer"] = truth if level <= 4 else 2 * truth if level <= 7 else 0
    (folder / "eval_predictions.json").write_text(json.dumps(entries))
    task.report(folder)
    return folder


@pytest.mark.parametrize("n", [1, 27, 95, 127])
def test_an_orbit_ends_at_the_long_step(n):
    numbers = show.orbit(n)
    result, k, k_prime = (int(v[0]) for v in long_step(np.array([n])))
    assert numbers[0] == n and numbers[-1] == result and len(numbers) == 1 + k + k_prime


def test_the_steps_are_drawn_and_said(tmp_path):
    drawn = show.steps(tmp_path)
    assert (tmp_path / "steps.png").read_bytes() == drawn.data
    assert "27 ↑41 ↑62 ↓31" in drawn.text and "k = 5 up, k' = 3 down" in drawn.text


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, "27   3  1  ·  ·  ·  →   7  1  |"),
        ({"order": "most"}, "27   ·  ·  ·  1  3  →   1  7  |"),
        ({"base": 2, "range_max": 10_000}, "27  11011·········  →  11111|"),
    ],
)
def test_the_digits_are_those_that_the_model_sees(options, line, tmp_path):
    task = load_task("collatz", **{"range_max": 2**22, **options})
    drawn = show.digits(task, tmp_path)
    assert (tmp_path / "digits.png").exists() and line in drawn.text


def test_digits_of_a_range_without_the_examples(tmp_path):
    task = load_task("collatz", range_min=1000, range_max=9000)
    assert "27" not in show.digits(task, tmp_path).text.split()


def test_the_sets_are_counted(task):
    assert list(show.sets(task)["different numbers"]) == ["about 2,031,616", "3,000", "2,000"]
    small = load_task("collatz", range_max=10_000)
    assert list(show.sets(small)["different numbers"]) == ["4,000", "500", "500"]


def test_minutes_of_later_sessions_come_after_those_before(folder):
    assert [line["at"] for line in show.evaluations(folder)] == [1.0, 2.0, 2.5, 3.5]


def test_learning_is_shown_class_by_class(folder):
    drawn = show.learning(folder)
    assert (folder / "learning.png").exists()
    rows = [line for line in drawn.text.splitlines() if "…" in line]
    assert len(rows) == 2 ** (BITS - 1)
    shades = {row.split("…")[1][:BITS]: row.split("│")[1] for row in rows}
    assert shades["00001"] == " ███"  # k + k' = 2
    assert shades["11101"] == "  ██"  # 3
    assert shades["00111"] == "   █"  # 4
    assert shades["11111"] == "    "
    assert rows[0].startswith("k + k'  2") and rows[-1].startswith("k + k'  5+")


def test_shades_are_fifths(tmp_path):
    shares = {"001": 0.19, "101": 0.25, "011": 0.45, "111": 0.95}
    line = {"kind": "evaluation", "minutes": 1.0, "exact": 0.5, "by_class": shares}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line))
    rows = [r for r in show.learning(tmp_path).text.splitlines() if "…" in r]
    assert [row.split("│")[1] for row in rows] == [" ", "░", "▒", "█"]


def test_levels_are_bars_beside_the_share_of_numbers(folder):
    drawn = show.levels(folder)
    rows = {line.split()[0]: line for line in drawn.text.splitlines()[1:]}
    assert rows["2"].endswith("100.0%") and rows["5"].endswith(" 0.0%")
    assert list(rows) == list(score.by_level(show.read(folder)))


def test_errors_are_counted_by_kind_with_an_example(folder):
    table = show.errors(folder)
    judged = show.read(folder)
    row = table.loc[score.KINDS["power_of_two"]]
    assert row["ratio"] == "2" and int(row["answer"]) == 2 * int(row["truth"])
    k, k_prime = (int(part) for part in row["k, k'"].split(", "))
    assert k + k_prime == 5, "of the lowest level"
    assert row["taken for"] == f"{k}, {k_prime - 1}"
    assert sum(int(n.replace(",", "")) for n in table["answers"]) == (~judged.right).sum()
    assert table.loc[score.KINDS["not_a_number"]]["answer"] == ""
    k, k_prime = (int(part) for part in table.loc[score.KINDS["not_a_number"]]["k, k'"].split(", "))
    assert k + k_prime == 8


def test_an_error_of_the_right_size_has_a_row_of_its_own(tmp_path):
    truth = int(long_step(np.array([6_115_775]))[0][0])
    entry = {"n": 6_115_775, "answer": truth - 191_575}
    (tmp_path / "eval_predictions.json").write_text(json.dumps([entry]))
    table = show.errors(tmp_path)
    assert list(table.index) == [score.KINDS["wrong_digits"]]
    row = table.iloc[0]
    assert (row["share"], row["ratio"], row["taken for"]) == ("100.0%", "0.9945", "")


def test_loop_lengths_of_the_answers_are_compared(folder):
    table = show.lengths(folder)
    judged = show.read(folder)
    told = judged.implied_k >= 0
    few = float((judged.implied_k_prime < judged.k_prime)[told].mean())
    assert table.loc["k, ups"]["right"] == "100.00%"
    assert table.loc["k', halvings"]["too few"] == f"{few:.2%}"
    assert table.loc["k', halvings"]["too many"] == "0.00%"


def test_the_tables_by_k_and_by_rung(folder):
    table = show.loops(folder)
    assert table.shape == (6, 6)
    assert table.loc["k = 1", "k' = 1"].startswith("100% of ")
    assert table.loc["k = 1", "k' = 4"].startswith("0% of ")
    rungs = show.rungs(folder)
    assert list(rungs["learned"]) == ["yes"] * 3 + [""] * 8
    assert rungs.loc["k + k' = 4"]["all up to here"] == "68.75%"


def test_a_run_that_left_nothing_is_no_error(tmp_path):
    assert show.learning(tmp_path).text == "No evaluation was made."
    assert show.levels(tmp_path).text
    assert "no wrong answer" in str(show.errors(tmp_path))
    for table in (show.loops, show.rungs, show.lengths):
        table(tmp_path)


def test_the_example_of_an_error_is_one_of_the_lowest_level(tmp_path):
    entries = [{"n": n, "answer": 2 * int(long_step(np.array([n]))[0][0])} for n in (95, 27)]
    (tmp_path / "eval_predictions.json").write_text(json.dumps(entries))
    assert list(show.errors(tmp_path)["n"]) == ["27"]
