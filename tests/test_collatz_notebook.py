"""The Collatz notebook reads well and runs, with our settings and with those of a recipe."""

from __future__ import annotations

import ast
import io
import time

import nbformat
import pytest

from timebox import notebook, record
from timebox.notebook import Outcome
from timebox.session import resolve
from timebox.tasks import load_task

SOURCE = notebook.folder() / "collatz.py"
PICTURES = {"steps", "digits", "schedule", "curves", "learning", "levels", "minutes"}


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
    assert cells[0].source.startswith("# "), "it begins with its title"


def given(**changed) -> dict:
    """What the notebook asks of timebox.start with these parameters."""
    known = notebook.parameters(notebook.read(SOURCE))
    values = {name: parameter.default for name, parameter in known.items()} | changed
    code = [c.source for c in notebook.read(SOURCE).cells if "timebox.start(" in c.source]
    lines = [node for node in ast.parse(code[0]).body if "asked" in ast.unparse(node)]
    exec(compile(ast.Module(lines, []), "cell", "exec"), values)
    return values["chosen"]


def test_every_parameter_is_understood_and_explained():
    parameters = notebook.parameters(notebook.read(SOURCE))
    assert list(parameters)[:3] == ["minutes", "run", "root"] and list(parameters)[-1] == "more"
    assert all(parameter.help for parameter in parameters.values())
    assert parameters["minutes"].default == 10
    settings, chosen, _ = resolve("collatz", given())
    assert (settings, chosen) == resolve("collatz", {})[:2], "left as it is, it is ours"


def test_a_recipe_is_followed_where_the_notebook_says_nothing_else():
    _, chosen, _ = resolve("collatz", given(recipe="guide"))
    assert chosen["range_max"] == 10_000 and chosen["d_model"] == 512
    _, chosen, _ = resolve("collatz", given(recipe="guide", range_max=5000, more={"d_model": 64}))
    assert chosen["range_max"] == 5000 and chosen["d_model"] == 64


def test_the_example_of_the_guide_is_a_finite_range():
    task = load_task("collatz", **resolve("collatz", given(base=24, range_max=10_000))[1])
    assert task.data.finite and task.data.examples == 4000


def test_it_runs_and_shows_its_pictures(tmp_path):
    folder = tmp_path / "submissions" / "r"
    values = {"run": "r", "root": str(tmp_path), "minutes": 2, "range_max": 10_000}
    small = {"d_model": 16, "nhead": 2, "num_layers": 1, "batch_size": 32}
    values["more"] = {**small, "max_steps": 3, "eval_every_epochs": 1}
    outcome = notebook.execute(
        SOURCE,
        folder / "notebook.ipynb",
        values,
        deadline=time.time() + 120,
        request_stop=print,
        stream=io.StringIO(),
    )
    assert outcome == Outcome("completed")
    kinds: dict[str, int] = {}
    for cell in nbformat.read(folder / "notebook.ipynb", as_version=4).cells:
        for output in cell.get("outputs", ()):
            assert output.output_type != "error", output
            for kind in output.get("data", {}):
                kinds[kind] = kinds.get(kind, 0) + 1
    assert kinds["image/png"] == len(PICTURES) and kinds["text/html"] >= 7
    assert {path.stem for path in folder.glob("*.png")} == PICTURES
    found = record.read(folder)
    assert (found["status"], found["reason"], found["steps"]) == ("finished", "steps", 3)
    assert found["scores"]["evaluation"]["items"] == 500
