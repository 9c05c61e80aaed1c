"""The listops notebook reads well, knows its parameters, and runs on tiny and odd settings."""

from __future__ import annotations

import ast
import contextlib
import io

import pytest
import torch

from timebox import notebook
from timebox.session import resolve
from timebox.tasks import load_task
from timebox.tasks.listops import show

SOURCE = notebook.folder() / "listops.py"
PICTURES = {
    "operations", "before", "schedule", "accuracy", "after", "attention", "patterns", "asked",
    "curves", "minutes",
}  # fmt: skip


@pytest.fixture(scope="module")
def cells():
    return notebook.read(SOURCE).cells


def test_every_cell_is_short_and_comes_after_prose(cells):
    before = None
    for cell in cells:
        if cell.cell_type == "code":
            assert before == "markdown", f"no prose before:\n{cell.source}"
            assert len(cell.source.splitlines()) <= 12, cell.source
        before = cell.cell_type
    assert cells[0].source.startswith("# ")


def test_every_cell_ends_in_something_to_look_at(cells):
    says = {"print", "start", "fit"}
    for cell in cells:
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", ()):
            last = ast.parse(cell.source).body[-1]
            calls = [node.func for node in ast.walk(last) if isinstance(node, ast.Call)]
            said = {ast.unparse(call).split(".")[-1] for call in calls} & says
            starts = "timebox.start(" in cell.source  # says where it stands by itself
            assert isinstance(last, ast.Expr) or said or starts, cell.source


def test_the_ten_steps_are_there_in_order(cells):
    prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
    steps = [text.splitlines()[0] for text in prose if text.startswith("## Step ")]
    assert [step.split(":")[0] for step in steps] == [f"## Step {n}" for n in range(1, 11)]


def test_every_parameter_is_understood_and_explained():
    parameters = notebook.parameters(notebook.read(SOURCE))
    assert list(parameters)[:3] == ["minutes", "run", "root"] and "more" in parameters
    assert all(parameter.help for parameter in parameters.values())
    given = {n: p.default for n, p in parameters.items() if n not in ("minutes", "run", "root")}
    given.pop("more")
    dials = ("epochs", "batch_size", "lr")  # None leaves these to the task, or to a recipe
    assert [given.pop(name) for name in dials] == [None, None, None]
    settings, chosen, _ = resolve("listops", given)
    assert {**vars(settings), **chosen, **given} == {**vars(settings), **chosen}
    for name in dials:
        resolve("listops", {name: 1})


def run(cells, folder, **values) -> dict:
    """The names that the notebook's code leaves behind, run here with `values`; its pictures."""
    names: dict = {}
    shown = []
    for cell in cells:
        if cell.cell_type != "code":
            continue
        body = ast.parse(cell.source)
        last = body.body.pop() if isinstance(body.body[-1], ast.Expr) else None
        exec(compile(body, "cell", "exec"), names)
        if "parameters" in cell.metadata.get("tags", ()):
            names.update(values, root=str(folder), run="r")
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
    return {**names, "shown": shown}


ODD = {
    "the default": {"more": {"max_steps": 3}},
    "long lists": {
        "size": "medium", "items": "2-8", "max_value": 99, "batch_size": 512,
        "more": {"max_steps": 2, "test_items": "9-20", "nhead": 2, "num_layers": 1},
    },
    "two values, the longest lists": {"items": "20", "max_value": 1, "more": {"max_steps": 1}},
    "the guide's recipe": {"epochs": 1, "more": {"recipe": "guide", "max_steps": 2}},
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
def test_it_runs_from_top_to_bottom(cells, tmp_path, what):
    with contextlib.redirect_stdout(io.StringIO()):
        names = run(cells, tmp_path, minutes=2.0, **ODD[what])
    assert names["result"]["status"] == "finished"
    pictures = [value for value in names["shown"] if hasattr(value, "alt")]
    assert {picture.path.stem for picture in pictures} == PICTURES
    assert {path.stem for path in names["folder"].glob("*.png")} == PICTURES
    for picture in pictures:
        assert picture.text and picture.alt, "a terminal has something to show"
    if what == "the guide's recipe":
        session = names["session"]
        assert session.settings.optimizer == "adamw" and session.settings.epochs == 1
        assert session.task.data.batch_size == 32


def test_the_likeliest_answers_are_marked_right_or_wrong(tmp_path):
    task = load_task("listops")
    picture = show.top(task, show.untrained(task), tmp_path, ["Max(3, 7, 1)", "Min(1, 2, 3)"])
    lines = picture.text.splitlines()
    assert lines[0].startswith("Max(3, 7, 1) = 7   model: ")
    assert len([line for line in lines if "%" in line]) == 10
    picture = show.top(task, Sure(8), tmp_path, ["Max(3, 7, 1)", "Min(1, 2, 3)"])
    lines = picture.text.splitlines()
    assert lines[0].endswith("= 7   model: 8, wrong") and lines[7].endswith("= 1   model: 8, wrong")
    marked = [line.split()[0] for line in lines if "(right)" in line]
    assert marked == ["7"], "1 is not among the five likeliest: 8, 7, 9, 6 and 5"
    lines = show.top(task, Sure(1), tmp_path, ["Max(3, 7, 1)", "Min(1, 2, 3)"]).text.splitlines()
    assert lines[0].endswith("model: 1, wrong") and lines[7].endswith("= 1   model: 1, right")
    assert [line.split()[0] for line in lines if "(right)" in line] == ["1"]


class Sure(torch.nn.Module):
    """Takes one value for the likeliest answer to everything, then those beside it."""

    def __init__(self, value: int):
        super().__init__()
        self.logits_V = -(torch.arange(10) - value + 0.1).abs()

    def forward(self, tokens_BL, mask_BL):
        return self.logits_V.expand(len(tokens_BL), -1)


def test_the_untrained_model_is_the_one_that_training_begins_with(tmp_path):
    from timebox import checkpoint

    task = load_task("listops", seed=5)
    model = show.untrained(task)
    checkpoint.seed_all(5)
    again = task.model()
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


def test_every_matrix_is_in_the_table_of_layers():
    task = load_task("listops")
    table = show.layers(task.model())
    counts = [int(text.replace(",", "")) for text in table["parameters"]]
    assert sum(counts[:-1]) == counts[-1]
    assert "layer 1 attention query norm gain" in table.index


def test_the_longer_lists_are_one_item_longer_where_there_can_be_such():
    for items, expected in (("3", 4), ("2-19", 20), ("20", 20)):
        texts = show.longer(load_task("listops", items=items))
        assert {text.count(",") + 1 for text in texts} == {expected}


def test_a_picture_of_a_run_without_predictions_is_drawn_all_the_same(tmp_path):
    task = load_task("listops")
    assert "0 of 100" in show.accuracy(task, tmp_path).text
    assert len(show.mistakes(task, tmp_path)) == 1
