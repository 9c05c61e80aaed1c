"""The ARC notebook reads well and runs everywhere, whatever happens to its run.

Under plain papermill and under the supervisor; the tasks are made by the test and are tiny.
"""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from test_show import inverted, official

from timebox import notebook, record
from timebox.notebook import Outcome
from timebox.session import resolve

SOURCE = notebook.folder() / "arc.py"
PICTURES = {"examples", "schedule", "curves", "minutes", "answers"}


@pytest.fixture(scope="module")
def cells():
    return notebook.read(SOURCE).cells


def test_the_pairs_agree():
    assert notebook.check(SOURCE.parent) == []


def test_every_cell_is_short_and_comes_after_prose(cells):
    before = None
    for cell in cells:
        if cell.cell_type == "code":
            assert before == "markdown", f"no prose before:\n{cell.source}"
            assert len(cell.source.splitlines()) <= 12, cell.source
        before = cell.cell_type
    assert cells[0].source.startswith("# "), "it begins with its title"


def test_every_cell_ends_in_something_to_look_at(cells):
    says = {"print", "start", "fit"}
    for cell in cells:
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", ()):
            last = ast.parse(cell.source).body[-1]
            call = last.value if isinstance(last, (ast.Expr, ast.Assign)) else None
            shown = isinstance(last, ast.Expr)
            said = isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] in says
            assert shown or said, cell.source


def test_every_parameter_is_understood_and_explained():
    parameters = notebook.parameters(notebook.read(SOURCE))
    assert list(parameters)[:3] == ["minutes", "run", "root"] and "more" in parameters
    assert all(parameter.help for parameter in parameters.values())
    options = {n: p.default for n, p in parameters.items() if n not in ("run", "root", "more")}
    minutes = options.pop("minutes")
    settings, chosen, _ = resolve("arc", options)
    assert {**vars(settings), **chosen, **options} == {**vars(settings), **chosen}
    assert minutes == 60 * settings.hours


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Four training tasks, two evaluation tasks that nobody solves, and no test task."""
    training = {f"train{k}": inverted(k, 4, 3 + k) for k in range(4)}
    evaluation = {f"eval{k}": inverted(9 + k, 3, 30) for k in range(2)}
    return official(tmp_path_factory.mktemp("arc") / "data", training, evaluation, {})


def shown(executed) -> dict[str, int]:
    """How many outputs of each kind the notebook holds; no error among them."""
    kinds: dict[str, int] = {}
    for cell in executed.cells:
        for output in cell.get("outputs", ()):
            assert output.output_type != "error", output
            for kind in output.get("data", {}):
                kinds[kind] = kinds.get(kind, 0) + 1
    return kinds


def test_it_runs_under_plain_papermill_and_goes_on_under_the_supervisor(data, tmp_path):
    """The first session takes a few steps; the second one has none left to take."""
    values = {"run": "r", "root": str(tmp_path), "data_dir": str(data), "minutes": 2}
    values["more"] = {"max_steps": 3, "views": 2, "eval_every_epochs": 1}
    outputs = tmp_path / "out.ipynb"
    modules = [sys.executable, "-m"]
    began = time.monotonic()
    converted = subprocess.run(
        [*modules, "jupytext", "--to", "ipynb", "--output", "-", str(SOURCE)],
        capture_output=True,
        check=True,
    ).stdout
    # Papermill takes the kernel by its name: it must be this Python's, whatever the user has.
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    argv = [*modules, "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"})
    )
    subprocess.run(
        [*modules, "papermill", "-", str(outputs), "-y", json.dumps(values), "--no-progress-bar"],
        input=converted,
        env={**os.environ, "JUPYTER_PATH": str(tmp_path / "jupyter")},
        capture_output=True,
        check=True,
    )
    assert time.monotonic() - began < 100, "nothing waits for the deadline"
    folder = tmp_path / "submissions" / "r"
    kinds = shown(nbformat.read(outputs, as_version=4))
    assert kinds["image/png"] == len(PICTURES) and kinds["text/html"] >= 5
    assert {path.stem for path in folder.glob("*.png")} == PICTURES
    first = record.read(folder)
    assert (first["status"], first["reason"], first["steps"]) == ("finished", "steps", 3)

    outcome = notebook.execute(
        SOURCE,
        folder / "notebook.ipynb",
        values,
        deadline=time.time() + 120,
        request_stop=print,
        stream=io.StringIO(),
    )
    assert outcome == Outcome("completed")
    kinds = shown(nbformat.read(folder / "notebook.ipynb", as_version=4))
    assert kinds["image/png"] == len(PICTURES)
    second = record.read(folder)
    assert second["steps"] == 3 and len(second["sessions"]) == 2
