"""One session of a run: everything is checked, locked and made ready before time is spent.

After `start` a valid submission stands in the run's folder; `timebox.fit` makes it better.
"""

from __future__ import annotations

import importlib
import inspect
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from timebox import checkpoint, files, tasks
from timebox.clock import Clock, session_start
from timebox.device import Device, pick
from timebox.record import Record, read
from timebox.settings import (
    SettingError,
    Settings,
    cast_all,
    check_names,
    own_names,
    parameters,
)
from timebox.sinks import check_sinks, open_sinks
from timebox.stop import Stop
from timebox.submission import Submission
from timebox.task import Task
from timebox.world import World


@dataclass
class Session:
    """What `fit` works with: a clock, a task, and a place that is ours to put the results."""

    name: str
    folder: Path  # ROOT/submissions/NAME
    checkpoints: Path  # ROOT/checkpoints/NAME
    clock: Clock
    stop: Stop
    settings: Settings
    task: Task
    identity: dict[str, Any]  # what a checkpoint must share with this run
    device: Device
    world: World
    record: Record
    submission: Submission
    store: checkpoint.Store
    state: dict[str, Any] | None  # the checkpoint to go on from
    weights: dict[str, Any] | None  # weights alone to start from
    further: str  # the command that trains on from this run's weights
    tail: float  # seconds before the deadline that whoever called us needs after `fit`
    say: Callable[[str], None]
    held: ExitStack  # the lock on the run's folder

    def close(self) -> None:
        """Let another process use the run's folder."""
        self.held.close()


def resolve(task: str, given: dict[str, Any]) -> tuple[Settings, dict[str, Any], tuple[str, ...]]:
    """Settings of the loop, options of the task, and which options may change between sessions.

    Both come from one set of names; a SettingError names the first that is unknown or impossible.
    "recipe" stands for the task's set of that name, behind what else is given.
    """
    check_names([task], tasks.names(), "task")
    package = importlib.import_module(f"timebox.tasks.{task}")
    known = [
        name for name in parameters(package.task) if name != "seed"
    ]  # the loop's is the task's
    mine = [f.name for f in fields(Settings)]
    given = own_names(given)
    check_names(given, [*mine, *known, "recipe"], "parameter")
    if recipe := given.pop("recipe", ""):
        if not package.RECIPES:
            raise SettingError(f"the {task} task has no recipes beside its defaults")
        check_names([recipe], package.RECIPES, f"recipe of the {task} task")
        given = {**package.RECIPES[recipe], **given}
    settings = Settings(
        **cast_all({n: v for n, v in given.items() if n in mine}, Settings, "setting")
    )
    options = cast_all({n: v for n, v in given.items() if n not in mine}, package.task, "option")
    defaults = {n: p.default for n, p in inspect.signature(package.task).parameters.items()}
    return settings, {**{n: defaults[n] for n in known}, **options}, package.SESSION_OPTIONS


def start(
    task: str,
    minutes: float | None = None,
    run: str = "",
    root: str | Path = ".",
    fresh: bool = False,
    say: Callable[[str], None] = print,
    **given: Any,
) -> Session:
    """Begin or continue the run named `run` of `task` below `root`; a floor submission then stands.

    The deadline is `minutes` (or `hours`) after the session's start: ``TIMEBOX_START`` where the
    caller set it, else now. `given` are settings of the loop and options of the task by name. The
    same name continues from its checkpoint; `fresh` moves the old folders aside first. Nothing is
    written before every name and value was found possible.
    """
    began = session_start()
    if minutes is not None:
        if "hours" in given:
            raise SettingError("give either minutes or hours, not both")
        if not minutes > 0:
            raise SettingError(f"minutes must be greater than 0, not {minutes}")
        given = {**given, "hours": minutes / 60}
    settings, options, free = resolve(task, given)
    name = files.check_name(run or f"{task}-{datetime.now():%Y%m%d-%H%M%S}")
    built = tasks.load_task(task, seed=settings.seed, **options)
    identity = {n: v for n, v in options.items() if n not in free}
    return prepare(
        built,
        settings,
        name,
        root,
        began=began,
        fresh=fresh,
        say=say,
        options=options,
        identity=identity,
        commands=(
            command(task, settings, options, root, name),
            command(
                task,
                replace(settings, weights_from=str(_checkpoints(root, name) / "best.pt")),
                options,
                root,
            ),
        ),
    )


def command(task: str, settings: Settings, options: dict[str, Any], root, name: str = "") -> str:
    """The command that continues the run `name`, or begins a new one, with the same settings."""
    build = importlib.import_module(f"timebox.tasks.{task}").task
    defaults = {n: p.default for n, p in inspect.signature(build).parameters.items()}
    defaults |= asdict(Settings())
    changed = [
        f"-p {n}={shlex.quote(','.join(value) if isinstance(value, tuple) else str(value))}"
        for n, value in (asdict(settings) | options).items()
        if n != "hours" and value != defaults[n]
    ]
    root = Path(root).expanduser().resolve()
    named = [f"--run {name}"] if name else []
    place = [] if root == Path.cwd() else [f"--root {shlex.quote(str(root))}"]
    budget = f"--minutes {60 * settings.hours:g}"
    return " ".join([f"timebox run {task} {budget}", *named, *place, *changed])


def _checkpoints(root: str | Path, name: str) -> Path:
    return Path(root).expanduser().resolve() / "checkpoints" / name


def prepare(
    task: Task,
    settings: Settings,
    name: str,
    root: str | Path,
    began: float | None = None,
    fresh: bool = False,
    say: Callable[[str], None] = print,
    options: dict[str, Any] | None = None,
    identity: dict[str, Any] | None = None,
    commands: tuple[str, str] = ("", ""),
    now: Callable[[], float] = time.monotonic,
) -> Session:
    """A session of the built `task`: what `start` does once names and values are known.

    `identity` are the options that a checkpoint must share, beside the settings and the data;
    `commands` are what a user types to continue the run, and to train further from its weights.
    """
    root = Path(root).expanduser().resolve()
    folder, checkpoints = root / "submissions" / name, _checkpoints(root, name)
    world = World.join()
    say = say if world.chief else _silent
    budget = 3600 * settings.hours
    device = pick(settings.device, settings.dtype, settings.compile, budget, world.local_rank)
    chosen = {"task": task.name, "data": task.data.digest, **settings.identity()}
    identity = {**chosen, **(identity or {})}
    if settings.select == "loss" and not task.validation_loss:
        raise SettingError(f"select=loss: the {task.name} task measures no validation loss")
    check_sinks(settings.sinks)
    weights, weights_warning = _weights(settings.weights_from, task)
    stop = Stop(folder)
    stop.forget_before(began if began is not None else time.time())
    clock = Clock(budget, start=began, now=now, stop=stop)
    if clock.left() <= 0:
        gone = f"{clock.elapsed() / 60:.1f} of {budget / 60:g} minutes"
        raise SettingError(f"the budget was used up before the run began: {gone} are gone")
    with ExitStack() as held, stop.signals():
        if world.chief:
            if fresh:
                for old in filter(None, map(files.move_aside, (folder, checkpoints))):
                    say(f"Starting over; what was there is kept in {old}")
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(files.lock(folder))
            checkpoints.mkdir(parents=True, exist_ok=True)
        world.told(None)
        store = checkpoint.Store(checkpoints, settings.keep_top, say)
        state = store.load()
        earlier = read(folder, ours=True) or {}
        _refuse_other(earlier, state, identity, name, store)
        if state is not None:
            device = _as_before(device, state["device"], settings)
        record = Record(folder, clock, earlier, say, writes=world.chief)
        record.data.update(
            task=task.name, metric=task.metric, better=task.better,
            examples_total=task.data.examples, settings=asdict(settings), command=commands[0],
            parameters={**(options or {}), "root": str(root)}, device=device.record(),
        )  # fmt: skip
        if world.chief:
            shown = {**asdict(settings), **(options or {})}
            record.sinks = open_sinks(settings.sinks, folder, name, shown, record.warn)
        say(f"timebox {task.name}, run {name}: {_budget(clock)}")
        say(f"Device: {device.name}, {device.dtype} ({device.reason})")
        if earlier.get("status") == "killed":
            say("The session before was ended by force; what it saved is used.")
        if weights_warning:
            record.warn(weights_warning)
        if state is None:
            record.forget_after(-1)  # lines of a session that left no checkpoint
        else:
            _continue(state["position"], record, store, say)
        submission = Submission(folder, task, record)
        if world.chief:
            with clock.phase("export"):
                written = submission.floor(clock.share(0.1 * clock.seconds))
            what = "the floor" if written else "of the session before"
            say(f"Valid from now on ({what}): {folder / 'submission.json'}")
        # What comes after the last export (the report, in a notebook its pictures too) takes the
        # longer, the longer this machine took to get here.
        in_notebook = not {"ipykernel", "timebox.walk"}.isdisjoint(sys.modules)
        tail = 3.0 + 0.5 * clock.elapsed() if in_notebook else 1.0 + 0.25 * clock.elapsed()
        tail += 2.0 * len(settings.sinks)
        return Session(
            name, folder, checkpoints, clock, stop, settings, task, identity, device, world, record,
            submission, store, state, weights, commands[1], min(tail, 0.2 * clock.seconds), say,
            held.pop_all(),
        )  # fmt: skip


def _silent(text: str) -> None:
    """What the other ranks say."""


def _continue(position: dict, record: Record, store: checkpoint.Store, say: Callable) -> None:
    earlier = record.earlier
    if earlier.get("status") == "killed":  # what it spent after its last checkpoint is gone too
        parts = [earlier.get("seconds_before") or {}, earlier.get("seconds") or {}]
        for phase in parts[1]:
            spent = sum(part.get(phase, 0.0) for part in parts)
            position["seconds"][phase] = max(position["seconds"].get(phase, 0.0), spent)
    record.data["resumed_from"] = {k: position[k] for k in ("step", "progress", "seconds")}
    record.forget_after(position["step"])
    say(f"Continuing at step {position['step']}, {100 * position['progress']:.0f}% of the schedule")
    if position["progress"] >= 1:
        say(
            "The schedule has ended, so nothing is left to train. For more, start a new run with "
            f"-p weights_from={store.folder / 'best.pt'}"
        )


def _refuse_other(earlier, state, identity: dict, name: str, store: checkpoint.Store) -> None:
    """A SettingError if the run's folders are of another task, or of other settings or data."""
    if earlier.get("task") not in (None, identity["task"]):
        raise SettingError(
            f"run {name!r} is a run of task {earlier['task']!r}, not {identity['task']!r}: choose "
            "another --run name"
        )
    if state is not None and (differing := checkpoint.differences(state, identity)):
        raise SettingError(
            f"run {name!r} has a checkpoint of other settings:\n  "
            + "\n  ".join(differing)
            + "\nUse the same settings, or another --run name, or --fresh to start over, or start "
            f"a new run from its weights with -p weights_from={store.folder / 'last.pt'}"
        )


def _as_before(device: Device, before: dict[str, str], settings: Settings) -> Device:
    """The number format of the sessions before: on one device a measured choice may change."""
    same = device.name == before["name"]
    if settings.dtype != "auto" or not same or device.dtype == before["dtype"]:
        return device
    reason = f"{before['dtype']} as in the session before, though {device.reason}"
    return replace(device, dtype=before["dtype"], reason=reason)


def _weights(path: str, task: Task) -> tuple[dict[str, torch.Tensor] | None, str]:
    """The weights in the checkpoint `path`, and a warning if they were trained on other data."""
    if not path:
        return None, ""
    state = checkpoint.read(Path(path).expanduser())
    weights = state["model"]
    try:
        task.model().load_state_dict(weights)
    except RuntimeError as error:
        raise SettingError(f"weights_from {path} holds another model: {error}") from None
    same = state["identity"].get("data") == task.data.digest
    warning = "" if same else (
        "the weights were trained on other data, or in another split of it: they may have seen "
        "some of what judges this run"
    )  # fmt: skip
    return weights, warning


def _budget(clock: Clock) -> str:
    end = datetime.fromtimestamp(time.time() + clock.left())
    return f"{clock.seconds / 60:g} minutes, deadline {end:%H:%M:%S}, {clock.elapsed():.1f} s gone"
