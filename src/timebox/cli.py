"""The `timebox` command: run, score, check, runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from timebox import __version__, files, notebook, record
from timebox.settings import SettingError

OK, FAILED, USAGE = 0, 1, 2


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 on success, 2 on bad usage, 1 on failure."""
    parser = _parser()
    try:
        given = parser.parse_args(arguments)
    except SystemExit as end:
        return OK if end.code in (0, None) else USAGE
    try:
        return given.command(given)
    except SettingError as error:
        return _complain(error, USAGE)
    except ValueError as error:
        return _complain(error, FAILED)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}", FAILED)
    except KeyboardInterrupt:
        return _complain("stopped", FAILED)


def _complain(what: object, code: int) -> int:
    print(f"timebox: {what}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="timebox",
        description="Train inside a wall-clock budget; always leave with a valid submission.",
    )
    parser.add_argument("--version", action="version", version=f"timebox {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    run = commands.add_parser(
        "run",
        help="train a task until its deadline",
        description="Train TASK until its deadline, which counts from the start of this command. "
        "The same --run name continues where it stopped.",
        epilog="example: timebox run arc --minutes 30 --run night -p preset=orcasword",
    )
    run.add_argument("task", metavar="TASK", help="the task's name, such as arc")
    budget = run.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, help="the whole budget in minutes (default 5)")
    budget.add_argument("--hours", type=float, help="the same in hours")
    run.add_argument(
        "--run", default="", metavar="NAME", help="name of the run (default: task and time)"
    )
    run.add_argument(
        "--root", default=".", metavar="DIR", help="where submissions/ and checkpoints/ are"
    )
    run.add_argument(
        "-p",
        action="append",
        default=[],
        metavar="name=value",
        dest="parameters",
        help="set a parameter of the notebook, a setting of the loop or an option of the task",
    )
    run.add_argument(
        "--fresh", action="store_true", help="start over; the earlier run is kept aside"
    )
    run.add_argument(
        "--no-notebook", action="store_true", help="run the same code without a notebook"
    )
    run.set_defaults(command=_run)

    score = commands.add_parser("score", help="score a submission by the official rules")
    score.add_argument("submission", metavar="SUBMISSION", type=Path)
    score.add_argument("--solutions", metavar="FILE", type=Path, required=True)
    score.add_argument("--json", action="store_true", help="print JSON, for machines")
    score.set_defaults(command=_score)

    check = commands.add_parser("check", help="find every problem of a submission")
    check.add_argument("submission", metavar="SUBMISSION", type=Path)
    check.add_argument("--challenges", metavar="FILE", type=Path, required=True)
    check.set_defaults(command=_check)

    runs = commands.add_parser("runs", help="list all runs")
    runs.add_argument("--root", default=".", metavar="DIR", type=Path)
    runs.set_defaults(command=_runs)
    return parser


# --- timebox run


def _run(given: argparse.Namespace) -> int:
    started = _command_started()
    source = None if given.no_notebook else notebook.find(given.task)  # refuses an unknown task
    hours = given.hours
    if hours is None:
        hours = (5.0 if given.minutes is None else given.minutes) / 60
    if not 0 < hours < 1e6:
        raise SettingError(f"a budget is a positive number of minutes, not {60 * hours:g}")
    parameters = _assignments(given.parameters)
    if parameters or source is None:  # worth the import of torch: a wrong name costs no more
        from timebox.session import resolve

        settings, options, _ = resolve(given.task, {**parameters, "hours": hours})
        values = {**asdict(settings), **options}
        parameters = {name: values[name] for name in parameters}
    name = files.check_name(given.run or f"{given.task}-{datetime.now():%Y%m%d-%H%M%S}")
    folder = Path(given.root).expanduser().resolve() / "submissions" / name
    if files.is_locked(folder):
        raise files.Busy(f"{folder} is in use by a live process; choose another --run name")
    code, ours = OK, True
    with _environment(TIMEBOX_START=repr(started)):
        if source is None:
            _run_plainly(given, folder, hours, parameters)
        else:
            code, ours = _run_notebook(given, source, folder, parameters, started, hours)
    return max(code, _farewell(folder, started, hours)) if ours else code


def _run_plainly(given, folder: Path, hours: float, parameters: dict) -> None:
    from timebox import fit, start

    root = folder.parent.parent
    fit(start(given.task, hours=hours, run=folder.name, root=root, fresh=given.fresh, **parameters))


def _run_notebook(
    given, source: Path, folder: Path, parameters: dict, started: float, hours: float
) -> tuple[int, bool]:
    """Run the notebook; the exit code, and False if no session of ours came of it."""
    shown = notebook.parameters(notebook.read(source))
    root, output = folder.parent.parent, folder / "notebook.ipynb"
    if given.fresh:
        for old in filter(
            None, map(files.move_aside, (folder, root / "checkpoints" / folder.name))
        ):
            print(f"Starting over; what was there is kept in {old}")
    folder.mkdir(parents=True, exist_ok=True)
    before = folder / ".notebook.before.ipynb"
    if output.exists():
        os.replace(output, before)
    outcome = notebook.execute(
        source,
        output,
        {
            "minutes": 60 * hours,
            "run": folder.name,
            "root": str(root),
            **{n: v for n, v in parameters.items() if n in shown},
            "more": {n: v for n, v in parameters.items() if n not in shown},
        },
        deadline=started + 3600 * hours,
        request_stop=lambda why: files.write_text(folder / "stop", why),
    )
    data = record.read(folder)
    ours = data is not None and datetime.fromisoformat(data["started"]).timestamp() > started - 1
    code = OK
    if outcome.status != "completed":
        refused = "SettingError" in (outcome.error or "")
        code = _complain(outcome.error, USAGE if refused else FAILED)
        if not ours and before.exists():  # the session before keeps its notebook
            os.replace(before, output)
            return code, False
    before.unlink(missing_ok=True)
    return code, ours or code == OK


def _farewell(folder: Path, started: float, hours: float) -> int:
    data = record.read(folder)
    if data is None:
        return _complain(f"run {folder.name} ended before it could write anything", FAILED)
    data["files"] = record.list_files(folder)  # the notebook and its pictures came after run.json
    with suppress(OSError, files.Busy), files.lock(folder):
        files.write_json(folder / "run.json", data, indent=1)
    print()
    print(record.summary(data))
    train = data["seconds"].get("train", 0.0)
    print(
        f"\n{data['status']} ({data['reason']}) after {(time.time() - started) / 60:.2f} of "
        f"{60 * hours:g} minutes, {train / (36 * hours):.0f}% of the budget in training steps"
    )
    if data["error"]:
        print(f"error: {data['error']}")
    print(f"Results: {folder}")
    print("         " + "  ".join(data["files"]))
    if data.get("command"):
        further = data["status"] == "finished"
        print("To train further from its weights:" if further else "To continue:")
        print(f"  {data['command']}")
    return OK if data["status"] in ("finished", "stopped") else FAILED


def _command_started() -> float:
    """Unix time at which this command began, the start of the interpreter included."""
    began = psutil.Process().create_time()
    # A caller may have started the clock before us; a process that lived long (a test, a
    # notebook) called us just now.
    if "TIMEBOX_START" in os.environ:
        from timebox.clock import session_start

        return session_start()
    return began if 0 <= time.time() - began < 20 else time.time()


@contextmanager
def _environment(**values: str):
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _assignments(texts: list[str]) -> dict[str, str]:
    """`name=value` pairs; the budget, name and place of a run have options of their own."""
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise SettingError(f"-p takes name=value, not {text!r}")
        if name in ("minutes", "hours", "run", "root"):
            raise SettingError(f"set {name} with --{name}, not with -p")
        pairs[name] = value
    return pairs


# --- timebox score, check, runs


def _score(given: argparse.Namespace) -> int:
    from timebox.tasks.arc.score import score_files

    scores = score_files(given.submission, given.solutions)
    if given.json:
        print(json.dumps(scores))
        return OK
    width = max(map(len, scores))
    for name, value in scores.items():
        shown = f"{value:.4f}" if isinstance(value, float) else value
        print(f"{name.replace('_', ' '):<{width}}  {shown}")
    return OK


def _check(given: argparse.Namespace) -> int:
    from timebox.tasks.arc.score import check_files

    problems = check_files(given.submission, given.challenges)
    for problem in problems[:10]:
        print(problem)
    if len(problems) > 10:
        print(f"... and {len(problems) - 10} more")
    if problems:
        return FAILED
    print(f"{given.submission} is valid")
    return OK


def _runs(given: argparse.Namespace) -> int:
    found = [
        data
        for folder in sorted((given.root / "submissions").glob("*/"))
        if (data := record.read(folder)) is not None
    ]
    if not found:
        print(f"no runs in {given.root / 'submissions'}")
        return OK
    heads = ("run", "task", "status", "reason", "minutes", "device", "score", "baseline")
    rows = [heads, *(_row(data) for data in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    for row in rows:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())
    return OK


def _row(data: dict[str, Any]) -> tuple[str, ...]:
    metric = data["metric"]
    score = (data["scores"].get("evaluation") or {}).get(metric)
    beside = [b.get(metric) for b in data["baselines"].get("evaluation", {}).values()]
    beside = [b for b in beside if b is not None]
    best = max(beside, key=lambda b: data["better"] * b) if beside else None
    seconds = sum(data[part].get("total", 0.0) for part in ("seconds_before", "seconds"))
    return (
        data["run"],
        data["task"] or "",
        data["status"],
        data["reason"] or "",
        f"{seconds / 60:.1f}",
        data["device"].get("name", ""),
        "" if score is None else f"{metric} {score:.4f}",
        "" if best is None else f"{best:.4f}",
    )
