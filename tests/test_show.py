"""Pictures and tables say what happened, also where little happened, and take no time."""

from __future__ import annotations

import json
import re
import struct
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from toy import Toy, open_session

from timebox import fit, record, show, tasks
from timebox.picture import metrics
from timebox.record import PHASES
from timebox.tasks.arc import show as arc


def size(picture) -> tuple[int, int]:
    """Width and height in pixels of a PNG."""
    assert picture.data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", picture.data[16:24])


# -------------------------------------------------------------------------- what every task shares


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    session = open_session(
        tmp_path_factory.mktemp("run"), max_steps=40, log_every_seconds=0.001, eval_every_epochs=2
    )
    fit(session)
    return session


def test_the_pictures_of_a_run_are_shown_and_kept(trained):
    began = time.perf_counter()
    for draw, name in (
        (show.schedule, "schedule"),
        (show.curves, "curves"),
        (show.minutes, "minutes"),
    ):
        picture = draw(trained)
        assert picture.data == (trained.folder / f"{name}.png").read_bytes()
        assert size(picture)[0] == 2 * 900 and picture.width == 900
        assert picture.metadata["alt"]
    assert time.perf_counter() - began < 3, "they are drawn inside the budget"
    assert "steps" in show.minutes(trained).metadata["alt"]


def test_a_session_that_did_nothing_yet_has_pictures_and_tables_too(tmp_path):
    session = open_session(tmp_path)
    for picture in (show.schedule(session), show.curves(session, 0.5), show.minutes(session)):
        assert size(picture)[0] == 1800
    assert "nothing was scored" in show.results(session).to_string()
    assert "submission.json" in show.kept(session).to_string()
    session.close()


def test_a_disk_that_is_full_costs_only_the_file(trained, monkeypatch):
    monkeypatch.setattr(trained, "folder", trained.folder / "not there")
    assert size(show.minutes(trained))[0] == 1800
    assert size(show.curves(trained))[0] == 1800


def test_the_sessions_of_a_run_follow_each_other_on_the_axis(tmp_path):
    lines = [(0.5, 9.0), (1.0, 8.0), (0.25, 7.0), (2.0, 6.0)]
    text = "".join(json.dumps({"kind": "train", "minutes": m, "loss": x}) + "\n" for m, x in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"kind": "tra')
    found = [(line["at"], line["from"], line["loss"]) for line in metrics(tmp_path)]
    assert found == [(0.5, 0, 9.0), (1.0, 0, 8.0), (1.25, 1.0, 7.0), (3.0, 1.0, 6.0)]


def test_the_pictures_have_a_form_for_terminals(trained):
    schedule, curves, minutes = (
        show.schedule(trained), show.curves(trained, 0.125), show.minutes(trained)
    )  # fmt: skip
    assert schedule.text.startswith("Learning rate, trains from ")
    assert ", at most 40 steps\n" in schedule.text
    for words in ("Training loss\n", "Validation: exact\n", "minutes of the run", "┄ floor 12.50%"):
        assert words in curves.text
    assert re.search(r"● best \d+\.\d\d%", curves.text)
    assert "went into training steps\n" in minutes.text
    assert [line.split()[0] for line in minutes.text.splitlines()[1:]] == [*PHASES, "left"]
    for picture in (schedule, curves, minutes):
        assert max(map(len, picture.text.splitlines())) <= 80 and "\x1b" not in picture.text
        assert picture.path == trained.folder / picture.path.name and picture.path.exists()


def test_the_curves_and_minutes_of_a_run_are_drawn_from_its_folder_alone(trained):
    session, folder = show.curves(trained), show.curves(trained.folder)
    assert folder.text == session.text and folder.data == session.data
    assert show.minutes(trained.folder).text == show.minutes(trained).text
    with pytest.raises(ValueError, match="holds no run.json"):
        show.curves(trained.folder / "nowhere")


def run_of(folder: Path, *lines: dict, better: int = 1) -> Path:
    """A folder with the files of a run that never was: `lines` of its metrics."""
    names = dict.fromkeys(record.KEYS)
    data = {**names, "task": "t", "run": "r", "status": "finished", "metric": "exact"}
    data |= {"better": better, "budget_seconds": 60, "seconds": {"train": 30.0}}
    (folder / "run.json").write_text(json.dumps(data))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def evaluation(minutes: float, exact: float, loss: float | None = None, best: bool | None = None):
    line = {"kind": "evaluation", "minutes": minutes, "exact": exact, "loss": loss, "best": best}
    return {name: value for name, value in line.items() if value is not None}


def test_validation_loss_stands_over_training_loss_where_it_was_measured(tmp_path):
    train = [{"kind": "train", "minutes": m, "loss": 2.0 - m} for m in (0.1, 0.5, 0.9)]
    picture = show.curves(run_of(tmp_path, *train, evaluation(0.5, 0.5)))
    assert picture.alt.startswith("Training loss and validation exact")
    assert "o validation" not in picture.text
    picture = show.curves(run_of(tmp_path, *train, evaluation(0.5, 0.5, 3.25)))
    assert picture.alt.startswith("Training and validation loss and validation exact")
    assert "⠒ training   o validation" in picture.text and " 3.25 ┤" in "\n " + picture.text


def test_the_best_is_the_evaluation_whose_weights_were_kept(tmp_path):
    """Chosen by loss, or of more items, it need not be the one of the best metric."""
    scores = evaluation(0.2, 0.5, best=True), evaluation(0.4, 0.75, best=False)
    assert "● best 50.00%" in show.curves(run_of(tmp_path, *scores)).text
    scores = evaluation(0.2, 0.5), evaluation(0.4, 0.75)  # nothing is said
    assert "● best 75.00%" in show.curves(run_of(tmp_path, *scores)).text
    assert "● best 50.00%" in show.curves(run_of(tmp_path, *scores, better=-1)).text


def test_the_results_stand_beside_the_baselines(trained):
    results = show.results(trained)
    assert list(results.columns) == ["this run", "always the first"]
    exact = trained.record.data["scores"]["evaluation"]["exact"]
    assert results.loc["exact", "this run"] == f"{100 * exact:.2f}%"
    assert results.index.name == "50 of 50 items"


def test_results_of_the_floor_are_called_so(tmp_path):
    session = open_session(tmp_path, Toy(scores=lambda measured: 0.0), max_steps=8)
    fit(session)
    assert list(show.results(session).columns) == ["this run (the floor)", "always the first"]


def test_shares_are_percent_and_other_numbers_are_not():
    rows = {"run": {"exact": 0.125, "bits_per_byte": 0.98, "items": 1234, "tie_break": 1.0}}
    rows["uniform"] = {"exact": 0.0, "bits_per_byte": 8.0}
    rows["run"] |= {"by_class": {"1": 0.5}, "example": "1 + 1 = 2"}  # no columns of a table
    assert show.table(rows).to_dict("index") == {
        "run": {"exact": "12.50%", "bits per byte": "0.98", "items": "1,234"},
        "uniform": {"exact": "0.00%", "bits per byte": "8", "items": ""},
    }


def test_the_parts_of_a_model_add_up():
    model = torch.nn.Module()
    model.up = torch.nn.Linear(10, 20)
    model.down = torch.nn.Linear(20, 9, bias=False)
    model.scale = torch.nn.Parameter(torch.ones(()))
    parts = show.parts(model)
    assert parts["parameters"].to_dict() == {"up": "220", "down": "180", "other": "1", "all": "401"}
    assert parts.loc["up", "share"] == "54.9%"


def test_every_kept_file_is_named_with_its_size(trained):
    kept = show.kept(trained)
    name = f"submissions/{trained.name}/submission.json"
    assert kept.loc[name, "size"] == f"{(trained.folder / 'submission.json').stat().st_size} bytes"
    assert kept["what it is"].map(len).gt(0).all(), "every file is explained"
    assert kept["what it is"].map(len).max() < pd.get_option("display.max_colwidth")


# ------------------------------------------------------------------------------------------- ARC


def official(folder: Path, training: dict, evaluation: dict, test: dict) -> Path:
    """Files as the competition has them; each task: a list of pairs, the last one is its test."""
    folder.mkdir()
    for name, puzzles in (("training", training), ("evaluation", evaluation), ("test", test)):
        challenges, solutions = {}, {}
        for id, pairs in puzzles.items():
            *demos, (given, output) = [
                (np.array(i).tolist(), np.array(o).tolist()) for i, o in pairs
            ]
            train = [{"input": i, "output": o} for i, o in demos]
            challenges[id] = {"train": train, "test": [{"input": given}]}
            solutions[id] = [output]
        (folder / f"arc-agi_{name}_challenges.json").write_text(json.dumps(challenges))
        if name != "test":
            (folder / f"arc-agi_{name}_solutions.json").write_text(json.dumps(solutions))
    return folder


def inverted(seed: int, rows: int, columns: int) -> list:
    """Three pairs of one rule: swap the colours 1 and 2."""
    grids = np.random.default_rng(seed).integers(1, 3, (3, rows, columns))
    return [(grid, 3 - grid) for grid in grids]


@pytest.fixture(scope="module")
def puzzles(tmp_path_factory):
    """A small ARC task without test tasks."""
    training = {f"train{k}": inverted(k, 6, 4 + k) for k in range(3)}
    evaluation = {f"eval{k}": inverted(9 + k, 5, 30) for k in range(9)}
    folder = official(tmp_path_factory.mktemp("arc") / "data", training, evaluation, {})
    return tasks.load_task("arc", data_dir=str(folder))


def test_a_grid_is_painted_cell_by_cell_in_the_official_colours():
    canvas = arc.Canvas(height=50, width=100)
    grid = np.array([[0, 1, 2], [9, 8, 7]], dtype=np.uint8)
    canvas.grid(grid, x=30, y=0, box=50, wrong=grid == 8)
    cell = 100 // 3  # of 2 * 50 pixels, across the longer side
    top, left = (100 - 2 * cell) // 2, 60 + (100 - 3 * cell) // 2
    for row in range(2):
        for column in range(3):
            pixel = canvas.pixels[top + row * cell + cell // 6, left + column * cell + cell // 6]
            assert tuple(pixel) == tuple(arc.PALETTE[grid[row, column]]), (row, column)
    middle = canvas.pixels[top + 3 * cell // 2, left + 3 * cell // 2]
    assert tuple(middle) == (255, 255, 255), "the wrong cell is marked"
    assert (canvas.pixels[:, :58] == 255).all() and (canvas.pixels[:, 162:] == 255).all()


def test_the_examples_are_drawn_at_once_and_whole(tmp_path):
    """Six real puzzles, inside the picture; and any set, also an empty one, has a picture."""
    task = tasks.load_task("arc")
    began = time.perf_counter()
    picture = arc.examples(task, tmp_path)
    assert time.perf_counter() - began < 2
    assert picture.data == (tmp_path / "examples.png").read_bytes()
    assert size(picture)[0] == 1800 and "6 ARC puzzles" in picture.metadata["alt"]
    counts = arc.sets(task)
    assert (
        counts.loc["training", "tasks"] == 1000 and counts.loc["evaluation", "test inputs"] == 172
    )


def test_few_puzzles_and_no_test_tasks_are_shown_too(puzzles, tmp_path):
    assert "3 ARC puzzles" in arc.examples(puzzles, tmp_path).metadata["alt"]
    assert arc.sets(puzzles).loc["test"].tolist() == [0, 0, 0]


def predictions(task, folder: Path, solved: dict[int, int], judged: bool = True) -> None:
    """eval_predictions.json: copies of the input, but for the items solved by attempt 1 or 2."""
    truth = task.data.source.solutions("evaluation")
    entries = []
    for k, item in enumerate(task.data.items("evaluation")):
        right, copy = truth[item.puzzle.id][item.index], item.input
        first, second = (right if solved.get(k) == n else copy for n in (1, 2))
        if k == 8:
            first = first[:, :-1]
        same = first.shape == right.shape
        verdict = {
            "exact": bool(np.array_equal(first, right)),
            "accuracy": float((first == right).mean()) if same else 0.0,
            "size_correct": same,
            "solved": k in solved,
        }
        verdict = verdict if judged else dict.fromkeys(verdict)
        answers = {"prediction": first.tolist(), "attempt_2": second.tolist()}
        place = {"task_id": item.puzzle.id, "test_index": item.index}
        entries.append({**place, **answers, **verdict})
    (folder / "eval_predictions.json").write_text(json.dumps(entries))


def words(monkeypatch) -> list[str]:
    """The words that are put on pictures from now on."""
    said: list[str] = []
    word = arc.Canvas.word

    def spy(canvas, text, *rest, **how):
        said.append(text)
        word(canvas, text, *rest, **how)

    monkeypatch.setattr(arc.Canvas, "word", spy)
    return said


def test_solved_and_failed_answers_stand_beside_the_truth(puzzles, tmp_path, monkeypatch):
    said = words(monkeypatch)
    predictions(puzzles, tmp_path, {2: 1, 5: 2})
    arc.answers(puzzles, tmp_path)
    assert said[0] == "2 of 9 evaluation outputs solved by either attempt"
    assert [text for text in said if text.startswith("eval")][:2] == ["eval2", "eval5"]
    assert "solved by attempt 1" in said and "solved by attempt 2" in said
    assert said.count("150 of 150 cells wrong") == 4, "a copy has every cell wrong here"


@pytest.mark.parametrize(("solved", "count"), [({}, 0), ({k: 1 for k in range(9)}, 9)])
def test_none_solved_and_all_solved_have_a_picture(puzzles, tmp_path, monkeypatch, solved, count):
    said = words(monkeypatch)
    predictions(puzzles, tmp_path, solved)
    assert size(arc.answers(puzzles, tmp_path))[0] == 1800
    assert said[0].startswith(f"{count} of 9")
    assert sum(text.startswith("eval") for text in said) == 6


def test_answers_that_were_never_judged_are_said_to_be_so(puzzles, tmp_path, monkeypatch):
    said = words(monkeypatch)
    arc.answers(puzzles, tmp_path)
    predictions(puzzles, tmp_path, {}, judged=False)
    arc.answers(puzzles, tmp_path)
    assert said == ["No answer was judged in this run."] * 2
