"""The `timebox` command: run, walk, plot, score, check, runs."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from timebox import __version__, files, notebook, record
from timebox.settings import ALSO, SettingError, Settings, check_names, own_names

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

    # What a run is, and where: the same for all that begin one.
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument(
        "--root", default=".", metavar="DIR", help="where submissions/ and checkpoints/ are"
    )
    begin = argparse.ArgumentParser(add_help=False, parents=[place])
    begin.add_argument("task", metavar="TASK", help="the task's name, such as arc")
    budget = begin.add_mutually_exclusive_group()
    budget.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="the whole budget in minutes (default: that of the task's notebook)",
    )
    budget.add_argument("--hours", type=float, metavar="H", help="the same in hours")
    begin.add_argument(
        "--run", default="", metavar="NAME", help="name of the run (default: task and time)"
    )
    begin.add_argument(
        "-p",
        action="append",
        default=[],
        metavar="name=value",
        dest="parameters",
        help="set a parameter of the notebook, a setting of the loop or an option of the task",
    )

    run = commands.add_parser(
        "run",
        parents=[begin],
        help="train a task until its deadline",
        description="Train TASK until its deadline, which counts from the start of this command. "
        "The same --run name continues where it stopped.",
        epilog="example: timebox run arc --minutes 30 --run night -p preset=orcasword",
    )
    run.add_argument(
        "--fresh", action="store_true", help="start over; the earlier run is kept aside"
    )
    run.add_argument(
        "--no-notebook", action="store_true", help="run the same code without a notebook"
    )
    run.set_defaults(command=_run)

    walk = commands.add_parser(
        "walk",
        parents=[begin],
        help="go through a task's notebook in the terminal",
        description="Go through the notebook of TASK cell by cell: its prose, its code and what "
        "comes of it, then Enter to go on. It is a run like any other, but time spent reading "
        "does not count against its budget.",
        epilog="example: timebox walk arc --minutes 2",
    )
    walk.add_argument(
        "--no-pause", action="store_true", help="do not wait for Enter between the cells"
    )
    walk.set_defaults(command=_walk)

    plot = commands.add_parser(
        "plot",
        parents=[place],
        help="draw the curves of a run from its files",
        description="Draw loss, score and minutes of RUN, finished or not, into its folder.",
    )
    plot.add_argument("run", metavar="RUN", help="name or folder of the run")
    plot.set_defaults(command=_plot)

    score = commands.add_parser(
        "score",
        parents=[place],
        help="score a run again, or an ARC submission by the official rules",
        description="Score the predictions of a run beside the trivial baselines, from its files; "
        "or with --solutions an ARC submission file.",
    )
    score.add_argument("what", metavar="RUN|SUBMISSION", help="a run's name or folder, or a file")
    score.add_argument("--solutions", metavar="FILE", type=Path, help="for an ARC submission file")
    score.add_argument("--json", action="store_true", help="print JSON, for machines")
    score.set_defaults(command=_score)

    check = commands.add_parser(
        "check",
        parents=[place],
        help="find every problem of a submission",
        description="Check the result files of a run; or with --challenges an ARC submission file.",
    )
    check.add_argument("what", metavar="RUN|SUBMISSION", help="a run's name or folder, or a file")
    check.add_argument("--challenges", metavar="FILE", type=Path, help="for an ARC submission file")
    check.add_argument("--json", action="store_true", help="print JSON, for machines")
    check.set_defaults(command=_check)

    runs = commands.add_parser("runs", parents=[place], help="list all runs")
    runs.set_defaults(command=_runs)
    return parser


# --- timebox run, timebox walk


@dataclass(frozen=True)
class Wanted:
    """What a command asks for: every name and value is known to be possible."""

    task: str
    source: Path | None  # the notebook; None where none is used
    started: float  # Unix time
    hours: float
    folder: Path  # ROOT/submissions/NAME
    parameters: dict[str, Any]

    @property
    def root(self) -> Path:
        return self.folder.parent.parent

    def for_notebook(self) -> dict[str, Any]:
        """The parameters as the notebook takes them: those it does not show are in `more`."""
        known = notebook.parameters(notebook.read(self.source))
        shown = {ALSO.get(name, name): name for name in known}  # a notebook may use either
        return {
            "minutes": 60 * self.hours,
            "run": self.folder.name,
            "root": str(self.root),
            **{shown[n]: v for n, v in self.parameters.items() if n in shown},
            "more": {n: v for n, v in self.parameters.items() if n not in shown},
        }


def _wanted(given: argparse.Namespace, with_notebook: bool = True) -> Wanted:
    """What `given` asks for; a SettingError before anything is begun names what is impossible."""
    started = _command_started()
    source = notebook.find(given.task) if with_notebook else None  # refuses an unknown task
    hours = _hours(given, source)
    parameters: dict[str, Any] = own_names(_assignments(given.parameters))
    if parameters or source is None:  # worth the import of torch: a wrong name costs no more
        from timebox.session import resolve

        settings, options, _ = resolve(given.task, {**parameters, "hours": hours})
        if parameters.keys() & options.keys():  # what is impossible is found before a kernel starts
            from timebox.tasks import load_task

            load_task(given.task, seed=settings.seed, **options)
        values = {**asdict(settings), **options}
        # A recipe is for `start` to follow: it stands behind what else the notebook sets.
        parameters = {name: values.get(name, text) for name, text in parameters.items()}
        parameters = {n: list(v) if isinstance(v, tuple) else v for n, v in parameters.items()}
    name = files.check_name(given.run or f"{given.task}-{datetime.now():%Y%m%d-%H%M%S}")
    folder = Path(given.root).expanduser().resolve() / "submissions" / name
    if files.is_locked(folder):
        raise files.Busy(f"{folder} is in use by a live process; choose another --run name")
    return Wanted(given.task, source, started, hours, folder, parameters)


def _hours(given: argparse.Namespace, source: Path | None) -> float:
    """The budget; where none is given, that of the task's notebook."""
    hours = given.hours
    if hours is None and given.minutes is not None:
        hours = given.minutes / 60
    if hours is None:
        if source is None and given.task in (p.stem for p in notebook.folder().glob("*.py")):
            source = notebook.find(given.task)
        shown = notebook.parameters(notebook.read(source)) if source else {}
        hours = shown["minutes"].default / 60 if "minutes" in shown else Settings().hours
    if not 0 < hours < 1e6:
        raise SettingError(f"a budget is a positive number of minutes, not {60 * hours:g}")
    return hours


def _run(given: argparse.Namespace) -> int:
    wanted = _wanted(given, not given.no_notebook)
    code, ours = OK, True
    with _environment(TIMEBOX_START=repr(wanted.started)):
        if wanted.source is None:
            _run_plainly(wanted, given.fresh)
        else:
            code, ours = _run_notebook(wanted, given.fresh)
    return max(code, _farewell(wanted.folder, wanted.started, wanted.hours)) if ours else code


def _run_plainly(wanted: Wanted, fresh: bool) -> None:
    from timebox import fit, start

    fit(
        start(
            wanted.task,
            hours=wanted.hours,
            run=wanted.folder.name,
            root=wanted.root,
            fresh=fresh,
            **wanted.parameters,
        )
    )


def _run_notebook(wanted: Wanted, fresh: bool) -> tuple[int, bool]:
    """Run the notebook; the exit code, and False if no session of ours came of it."""
    folder, root = wanted.folder, wanted.root
    output = folder / "notebook.ipynb"
    parameters = wanted.for_notebook()
    if fresh:
        for old in filter(
            None, map(files.move_aside, (folder, root / "checkpoints" / folder.name))
        ):
            print(f"Starting over; what was there is kept in {old}")
    folder.mkdir(parents=True, exist_ok=True)
    before = folder / ".notebook.before.ipynb"
    if output.exists():
        os.replace(output, before)
    outcome = notebook.execute(
        wanted.source,
        output,
        parameters,
        deadline=wanted.started + 3600 * wanted.hours,
        request_stop=lambda why: files.write_text(folder / "stop", why),
    )
    ours = _ours(wanted)
    code = OK
    if outcome.status != "completed":
        refused = "SettingError" in (outcome.error or "")
        code = _complain(outcome.error, USAGE if refused else FAILED)
        if not ours and before.exists():  # the session before keeps its notebook
            os.replace(before, output)
            return code, False
    before.unlink(missing_ok=True)
    return code, ours or code == OK


def _ours(wanted: Wanted) -> bool:
    """True if the run's files are of a session that this command began."""
    data = record.read(wanted.folder)
    return data is not None and (
        datetime.fromisoformat(data["started"]).timestamp() > wanted.started - 1
    )


def _walk(given: argparse.Namespace) -> int:
    from timebox import walk
    from timebox.terminal import Terminal

    wanted = _wanted(given)
    with suppress(AttributeError):  # also in a pipe each line is passed on as it is printed
        sys.stdout.reconfigure(line_buffering=True)
    pause = walk.somebody_there() and not given.no_pause
    terminal = Terminal(sys.stdout)
    walking = walk.Walk(wanted.source, wanted.for_notebook(), terminal, pause)
    words = (
        f"{wanted.source.stem}: {len(walking.steps)} steps, {60 * wanted.hours:g} minutes of work"
    )
    print(words + ("; time spent reading does not count." if pause else "."))
    if pause:
        print("After each step: Enter goes on, q ends the walk.")
    how, error = walk.FAILED, "the walk was interrupted"
    try:
        with _environment(TIMEBOX_START=repr(wanted.started)):
            how = walking.run()
        error = "" if how == walk.QUIT else "a cell of the notebook failed"
    finally:
        _end_sessions(walking.values(), how == walk.QUIT, error)
    if how == walk.QUIT:
        print("The walk ends here.")
    code = FAILED if how == walk.FAILED else OK
    if not _ours(wanted):
        return code
    data = record.read(wanted.folder)
    _relist(wanted.folder)
    print()
    _where(wanted.folder, data)
    return max(code, OK if data["status"] in ("finished", "stopped") else FAILED)


def _end_sessions(values: list[Any], asked: bool, error: str) -> None:
    """Write down how the sessions among `values` ended that have not come to their end."""
    if "timebox.session" not in sys.modules:
        return
    from timebox.session import Session

    for session in {id(v): v for v in values if isinstance(v, Session)}.values():
        if session.record.data["status"] == "running":
            how = ("stopped", "signal") if asked else ("failed", "error")
            session.record.end(*how, error or None)
            session.close()


def _farewell(folder: Path, started: float, hours: float) -> int:
    data = record.read(folder)
    if data is None:
        return _complain(f"run {folder.name} ended before it could write anything", FAILED)
    data = _relist(folder) or data  # the notebook and its pictures came after run.json
    print()
    print(record.summary(data))
    train = data["seconds"].get("train", 0.0)
    print(
        f"\n{data['status']} ({data['reason']}) after {(time.time() - started) / 60:.2f} of "
        f"{60 * hours:g} minutes, {train / (36 * hours):.0f}% of the budget in training steps"
    )
    _where(folder, data)
    return OK if data["status"] in ("finished", "stopped") else FAILED


def _relist(folder: Path) -> dict[str, Any] | None:
    """Bring the files in run.json up to date; what it says then, None while a session runs."""
    with suppress(OSError, files.Busy), files.lock(folder):
        data = record.read(folder, ours=True)
        data["files"] = record.list_files(folder)
        files.write_json(folder / "run.json", data, indent=1)
        return data
    return None


def _where(folder: Path, data: dict[str, Any]) -> None:
    """Say where the results of a run are, and how to go on from them."""
    if data["error"]:
        print(f"error: {data['error']}")
    print(f"Results: {folder}")
    print("         " + "  ".join(record.list_files(folder)))
    if data.get("command"):
        further = data["status"] == "finished"
        print("To train further from its weights:" if further else "To continue:")
        print(f"  {data['command']}")


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


# --- timebox plot, score, check, runs


def _find(what: str, root: str) -> Path:
    """The folder of the run `what`, a name or a folder; a SettingError with the nearest name."""
    place = Path(root).expanduser().resolve() / "submissions"
    for folder in (Path(what).expanduser(), place / what):
        if record.read(folder) is not None:
            return folder.resolve()
    known = [folder.name for folder in sorted(place.glob("*/")) if record.read(folder)]
    if Path(what).is_dir():
        raise SettingError(f"the folder {what} holds no run.json of a run")
    if not known:
        raise SettingError(f"there is no run {what!r}: {place} holds no runs")
    check_names([what], known, "run")
    raise SettingError(f"{place / what} holds no run.json of a run")


def _plot(given: argparse.Namespace) -> int:
    folder = _find(given.run, given.root)
    from timebox import show

    pictures = [show.curves(folder), show.minutes(folder)]
    for picture in pictures:
        print(f"{picture.text}\n")
    if not files.is_locked(folder):
        _relist(folder)
    for picture in pictures:
        if not picture.path.exists():
            raise OSError(f"{picture.path} could not be written")
        print(picture.path)
    return OK


def _file_of(given: argparse.Namespace, option: str) -> Path | None:
    """The submission file that `given` means, None where it means a run to be judged by its task.

    `option` names the file to judge an ARC submission by; a run of another task has no use for it.
    """
    path, judge = Path(given.what).expanduser(), vars(given)[option]
    if not path.is_file():
        if judge is None:
            return None
        try:
            path = _find(given.what, given.root) / "submission.json"
        except SettingError:
            return path  # a file that is missing
    data = record.read(path.parent)
    if data is not None and data["task"] != "arc":
        raise SettingError(
            f"{path} is of a run of the task {data['task']!r}, which has no --{option}: name the "
            f"run alone, {path.parent}"
        )
    if judge is None:
        run = f", or name the run, {path.parent}" if data is not None else ""
        raise SettingError(f"a submission file needs --{option} FILE{run}")
    return path


def _task_of(given: argparse.Namespace, option: str) -> tuple[Path, dict[str, Any], Any]:
    """Folder and record of the run that `given` names, and its task built anew."""
    try:
        folder = _find(given.what, given.root)
    except SettingError as error:
        raise SettingError(f"{error} (a submission file needs --{option} FILE)") from None
    data = record.read(folder)
    from timebox import tasks
    from timebox.settings import parameters

    check_names([data["task"]], tasks.names(), "task")
    known = parameters(importlib.import_module(f"timebox.tasks.{data['task']}").task)
    options = {n: v for n, v in data["parameters"].items() if n in known}
    options["seed"] = data["settings"]["seed"]
    return folder, data, tasks.load_task(data["task"], **options)


def _score(given: argparse.Namespace) -> int:
    path = _file_of(given, "solutions")
    if path is None:
        return _score_run(given)
    from timebox.tasks.arc.score import score_files

    scores = score_files(path, given.solutions)
    if given.json:
        print(json.dumps(scores))
        return OK
    width = max(map(len, scores))
    for name, value in scores.items():
        shown = f"{value:.4f}" if isinstance(value, float) else value
        print(f"{name.replace('_', ' '):<{width}}  {shown}")
    return OK


def _score_run(given: argparse.Namespace) -> int:
    folder, data, task = _task_of(given, "solutions")
    task.check(folder)
    with tempfile.TemporaryDirectory(prefix="timebox-") as copy:  # the report writes verdicts
        for path in folder.iterdir():
            if path.is_file() and path.suffix == ".json":
                shutil.copy(path, copy)
        found = task.report(Path(copy))
    if given.json:
        print(json.dumps({"run": data["run"], "task": data["task"], **found}))
        return OK
    print(f"Run {data['run']} of the task {data['task']}: {folder}")
    print(
        record.summary(
            {
                "error": "the task has no answers to judge by",
                "scores": {"evaluation": found["evaluation"]},
                "baselines": found["baselines"],
            }
        )
    )
    return OK


def _check(given: argparse.Namespace) -> int:
    path = _file_of(given, "challenges")
    if path is not None:
        from timebox.tasks.arc.score import check_files

        what, problems = str(path), check_files(path, given.challenges)
    else:
        folder, _, task = _task_of(given, "challenges")
        what, problems = f"the submission in {folder}", []
        try:
            task.check(folder)
        except (ValueError, OSError) as error:
            problems = [str(error)]
    if given.json:
        print(json.dumps({"valid": not problems, "problems": problems}))
        return FAILED if problems else OK
    for problem in problems[:10]:
        print(problem)
    if len(problems) > 10:
        print(f"... and {len(problems) - 10} more")
    if problems:
        return FAILED
    print(f"{what} is valid")
    return OK


def _runs(given: argparse.Namespace) -> int:
    place = Path(given.root).expanduser() / "submissions"
    found = [
        data for folder in sorted(place.glob("*/")) if (data := record.read(folder)) is not None
    ]
    if not found:
        print(f"no runs in {place}")
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
