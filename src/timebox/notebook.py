"""Runs a paired notebook through papermill, supervised; keeps the two files of a pair in step.

`notebooks/<task>.py` (percent format) is the source. `notebooks/<task>.ipynb` is written from it,
without outputs, for those who open it in Jupyter or on Kaggle. The id of each cell there is a
hash of its position and its source, so an edit made in Jupyter can be told from an old copy, and
is never thrown away unasked.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import hashlib
import io
import signal
import sys
import threading
import time
import tokenize
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

from timebox import files
from timebox.settings import SettingError, check_names

KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
FILTERS = {"cell_metadata_filter": "tags,-all", "notebook_metadata_filter": "kernelspec,-all"}
KILL_BEFORE = 0.7  # seconds before the deadline at which a kernel that still runs is ended
SAVE_WITHIN = 0.4  # seconds of these in which its notebook must be saved


class Parameter(NamedTuple):
    """One line of a parameters cell: ``name: type = default  # help``."""

    type: Any
    default: Any
    help: str


@dataclass(frozen=True)
class Outcome:
    """How a notebook ended, why, and the error in one line where there was one."""

    status: Literal["completed", "failed", "killed"]
    reason: Literal["", "signal", "error", "deadline"] = ""
    error: str | None = None


# ------------------------------------------------------------------------------ finding, reading


def folder() -> Path:
    """The notebooks: those of the checkout, or those inside the installed package."""
    package = Path(__file__).resolve().parent
    shipped = package / "notebooks"
    return shipped if shipped.is_dir() else package.parents[1] / "notebooks"


def find(task: str) -> Path:
    """The notebook of `task`; a SettingError with the nearest name if there is none."""
    known = sorted(path.stem for path in folder().glob("*.py"))
    check_names([task], known, "task with a notebook")
    return folder() / f"{task}.py"


def read(path: Path) -> Any:
    """The percent-format file `path` as a notebook: kernelspec, tags and stable ids, no outputs."""
    import jupytext

    try:
        notebook = jupytext.read(path, fmt="py:percent")
    except (SyntaxError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a notebook: {error}") from None
    return _normal(notebook)


def parameters(notebook: Any) -> dict[str, Parameter]:
    """Type, default and help of each parameter; ValueError if its cell holds anything else.

    Papermill changes a parameter by assigning it in a cell of its own after this one, so a value
    that is computed here would keep what it was computed from.
    """
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    if len(cells) != 1:
        raise ValueError(
            f"a notebook has one code cell with the tag 'parameters', this one has {len(cells)}"
        )
    source = cells[0].source
    comments = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found: dict[str, Parameter] = {}
    for node in ast.parse(source).body:
        line = f"line {node.lineno} of the parameters cell, {ast.unparse(node)!r},"
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            raise ValueError(f"{line} is not of the form 'name: type = value  # help'")
        name = node.target.id
        if name in found:
            raise ValueError(f"{line} sets {name!r} a second time")
        try:
            kind = _type(node.annotation)
        except ValueError:
            raise ValueError(f"{line} is annotated with something else than a plain type") from None
        try:
            default = ast.literal_eval(node.value) if node.value else None
        except ValueError:
            raise ValueError(f"{line} is not a literal value") from None
        accepted = (int, float) if kind is float else kind
        if isinstance(default, bool) and kind in (int, float) or not isinstance(default, accepted):
            raise ValueError(f"{line} has a default that is not of its type")
        found[name] = Parameter(kind, default, comments.get(node.lineno, ""))
    return found


def _type(node: ast.expr) -> Any:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _type(node.left) | _type(node.right)
    if isinstance(node, ast.Constant) and node.value is None:
        return type(None)
    if isinstance(node, ast.Name) and node.id in ("bool", "int", "float", "str", "list", "dict"):
        return getattr(builtins, node.id)
    raise ValueError


def _normal(notebook: Any) -> Any:
    """`notebook` reduced to what a pair must agree in, each cell with the id of its source."""
    import nbformat

    cells = []
    for index, cell in enumerate(notebook.cells):
        new = {
            "cell_type": cell.cell_type,
            "id": _cell_id(index, cell),
            "metadata": {"tags": list(cell.metadata["tags"])} if cell.metadata.get("tags") else {},
            "source": cell.source,
        }
        if cell.cell_type == "code":
            new |= {"execution_count": None, "outputs": []}
        cells.append(new)
    return nbformat.from_dict(
        {
            "cells": cells,
            "metadata": {"kernelspec": KERNELSPEC, "language_info": {"name": "python"}},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
    )


def _cell_id(index: int, cell: Any) -> str:
    return hashlib.sha256(f"{index}\n{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]


# --------------------------------------------------------------------------------------- running


def execute(
    source: Path,
    output: Path,
    parameters: dict[str, Any],
    *,
    deadline: float,
    request_stop: Callable[[str], None],
    stream: TextIO | None = None,
) -> Outcome:
    """Run the notebook `source` with `parameters`, save it to `output`, and say how it ended.

    What the cells print appears on `stream` (standard output) as it is printed. The first SIGTERM
    or SIGINT calls ``request_stop("signal")`` and lets the notebook come to its end; a SIGINT
    after that ends the kernel at once. Shortly before `deadline` (Unix time) a kernel that still
    runs is ended, so this returns in time whatever the notebook does. A failing cell, a dead
    kernel or a full disk is an Outcome, never an exception; the notebook is saved as far as it
    came. An unknown parameter is a SettingError, before anything is started or written.
    """
    stream = stream or sys.stdout
    end = time.monotonic() + deadline - time.time()
    notebook = read(source)
    _refuse_unknown(parameters, notebook, source)
    if Path(output).resolve().parent == Path(source).resolve().parent:
        raise SettingError(f"the executed notebook cannot be kept beside its source: {output}")
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    with _signals() as seen:
        from timebox.kernel import Run  # papermill: a second that only a run should cost

        run = Run(notebook, Path(output), parameters, stream)
        try:
            run.start()
            _supervise(run, seen, end, request_stop)
        finally:
            run.close()
    if run.ran_all:
        return Outcome("completed", "signal" if seen else "")
    if run.killed:
        return Outcome("killed", "deadline" if run.killed == DEADLINE else "signal", run.killed)
    return Outcome("failed", "error", run.error)


DEADLINE = "it was still running at the deadline"
SECOND_SIGINT = "it was interrupted a second time"


def _supervise(run: Any, seen: list[int], end: float, request_stop: Callable[[str], None]) -> None:
    """Wait for `run`, forward the first signal, and end it at the second or at `end`."""
    asked = False
    give_up = float("inf")
    while not run.done.wait(0.05):
        now = time.monotonic()
        if seen and not asked:
            asked = True
            run.lines.write("Stopping: the run saves and exports first (Ctrl-C again: at once)\n")
            try:
                request_stop("signal")
            except OSError as error:
                run.lines.write(f"WARNING: the run could not be asked to stop: {error}\n")
        if now > give_up:
            return  # nothing runs any more; the notebook stays as it was saved last
        if now > end - KILL_BEFORE or signal.SIGINT in seen[1:]:
            run.kill(DEADLINE if now > end - KILL_BEFORE else SECOND_SIGINT)
            give_up = min(give_up, now + (SAVE_WITHIN if run.killed == DEADLINE else 5.0))


def _refuse_unknown(given: dict[str, Any], notebook: Any, source: Path) -> None:
    try:
        known = parameters(notebook)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    check_names(given, known, f"parameter of {source.name}")


@contextmanager
def _signals():
    """The list of the SIGTERM, SIGINT and SIGHUP that arrive while inside; they do nothing else."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup asked to go on
        numbers.append(signal.SIGHUP)
    before = {n: signal.signal(n, lambda number, frame: seen.append(number)) for n in numbers}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


# ----------------------------------------------------------------------------------------- pairs


def sync(notebooks: Path, from_ipynb: bool = False, say: Callable[[str], None] = print) -> None:
    """Write each .ipynb in `notebooks` from its .py; the same source gives the same bytes.

    An .ipynb that was edited in Jupyter is a ValueError, unless `from_ipynb` asks for its cells
    to be written back to the .py first.
    """
    import jupytext
    import nbformat

    edits = {path: _edits(path) for path in sorted(notebooks.glob("*.ipynb"))}
    if from_ipynb:
        for path, cells in edits.items():
            if cells:
                edited = _normal(nbformat.read(path, as_version=4))
                edited.metadata["jupytext"] = FILTERS
                files.write_text(path.with_suffix(".py"), jupytext.writes(edited, fmt="py:percent"))
                say(f"{path.stem}.py has the cells of {path.name} now: {', '.join(cells)}")
    elif any(edits.values()):
        raise ValueError(
            "\n".join(
                f"{path} was edited outside {path.stem}.py: {', '.join(cells)}"
                for path, cells in edits.items()
                if cells
            )
            + "\nAdd --from-ipynb to write these cells back to the .py, or delete the .ipynb."
        )
    for source in sorted(notebooks.glob("*.py")):
        pair, text = source.with_suffix(".ipynb"), _text(read(source))
        if not pair.exists() or pair.read_text(encoding="utf-8") != text:
            files.write_text(pair, text)
            say(f"wrote {pair}")


def check(notebooks: Path) -> list[str]:
    """Every way in which the pairs in `notebooks` do not agree; [] if they all do."""
    import nbformat

    problems = []
    for pair in sorted(notebooks.glob("*.ipynb")):
        if not pair.with_suffix(".py").exists():
            problems.append(f"{pair.name} has no {pair.stem}.py")
    for source in sorted(notebooks.glob("*.py")):
        pair = source.with_suffix(".ipynb")
        if "kernelspec:" not in source.read_text(encoding="utf-8").split("# %%")[0]:
            problems.append(f"{source.name} has no kernelspec in its header, which papermill needs")
        if not pair.exists():
            problems.append(f"{source.name} has no {pair.name}")
            continue
        wanted = read(source)
        try:
            found = nbformat.read(pair, as_version=4)
        except Exception as error:  # nbformat raises whatever its parts raise
            problems.append(f"{pair.name} is not a notebook: {error}")
            continue
        differences = list(_differences(wanted, found, pair.name, source.name))
        if not differences and pair.read_text(encoding="utf-8") != _text(wanted):
            differences = [f"{pair.name} holds more than {source.name} gives"]
        problems += differences
    return problems


def _differences(wanted: Any, found: Any, name: str, source: str):
    if found.metadata.get("kernelspec") != wanted.metadata.kernelspec:
        yield f"{name}: the kernelspec is {found.metadata.get('kernelspec')}, not {KERNELSPEC}"
    if len(found.cells) != len(wanted.cells):
        yield f"{name} has {len(found.cells)} cells, {source} has {len(wanted.cells)}"
    for number, (a, b) in enumerate(zip(wanted.cells, found.cells, strict=False), 1):
        start = f"{name}: cell {number} ({_title(b)})"
        if a.cell_type != b.cell_type:
            yield f"{start} is {b.cell_type}, in {source} it is {a.cell_type}"
        if a.source != b.source:
            yield f"{start} differs from {source} ({_title(a)})"
        if (tags := b.metadata.get("tags", [])) != (own := a.metadata.get("tags", [])):
            yield f"{start} has the tags {tags}, not {own}"
        if b.get("outputs") or b.get("execution_count"):
            yield f"{start} holds outputs"
        if a.source == b.source and a.id != b.get("id"):
            yield f"{start} has the id {b.get('id')!r}, not {a.id!r}"


def _edits(path: Path) -> list[str]:
    """The cells of the .ipynb that were changed since it was written: their ids no longer fit."""
    import nbformat

    if path.with_suffix(".py").exists():
        source = read(path.with_suffix(".py")).cells
    else:
        source = []
    try:
        cells = nbformat.read(path, as_version=4).cells
    except Exception as error:
        raise ValueError(f"{path} is not a notebook: {error}") from None
    same = [(cell.cell_type, cell.source) for cell in source]
    if [(cell.cell_type, cell.source) for cell in cells] == same:
        return []
    return [
        f"cell {number} ({_title(cell)})"
        for number, cell in enumerate(cells, 1)
        if cell.get("id") != _cell_id(number - 1, cell)
    ]


def _title(cell: Any) -> str:
    first = next((line for line in cell.source.splitlines() if line.strip()), "empty")
    return repr(first.strip()[:50])


def _text(notebook: Any) -> str:
    import nbformat

    return nbformat.writes(notebook) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """``python -m timebox.notebook sync|check FOLDER``: the pairs of a folder; 0 if they agree."""
    parser = argparse.ArgumentParser(prog="python -m timebox.notebook", description=sync.__doc__)
    parser.add_argument("command", choices=("sync", "check"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--from-ipynb", action="store_true", help="write edits back to the .py")
    given = parser.parse_args(arguments)
    try:
        if not given.folder.is_dir():
            raise ValueError(f"there is no folder {given.folder}")
        if given.command == "sync":
            sync(given.folder, given.from_ipynb)
        problems = check(given.folder)
    except ValueError as error:
        problems = [str(error)]
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems and given.command == "check":
        print("Write the pairs again with: make notebooks", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
