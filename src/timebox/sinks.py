"""Places beside metrics.jsonl where a run's metrics go: TensorBoard, Weights & Biases.

They are other people's programs, and a run must not depend on them: each works in a thread of its
own, and one that fails or hangs is said once and left behind.
"""

from __future__ import annotations

import importlib
import math
import os
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from timebox.settings import SettingError, check_names

WAITING = 10_000  # calls that may wait for a slow sink; what comes on top is lost
CLOSE_SECONDS = 8.0

PACKAGES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}


class Writer(Protocol):
    """What a sink does in its thread: it may be slow, and it may raise."""

    def write(self, kind: str, step: int, values: dict[str, float]) -> None: ...
    def close(self) -> None: ...


def check_sinks(names: Iterable[str]) -> None:
    """A SettingError if a sink is unknown, or if its package is not installed."""
    check_names(dict.fromkeys(names), PACKAGES, "sink")
    for name in names:
        try:
            importlib.import_module(PACKAGES[name])
        except ImportError:
            raise SettingError(
                f"the sink {name!r} needs a package that is not installed: pip install {name}"
            ) from None


def open_sinks(
    names: Iterable[str],
    folder: Path,
    run: str,
    settings: Mapping[str, Any],
    warn: Callable[[str], None] = warnings.warn,
) -> list[Sink]:
    """The sinks `names` of the run called `run`, whose files go into `folder`.

    Returns at once. `settings` are shown beside the metrics. SettingError as in `check_sinks`,
    before any is opened; what goes wrong later is told to `warn`, once for each sink.
    """
    names = list(dict.fromkeys(names))
    check_sinks(names)
    build = {"tensorboard": TensorBoard, "wandb": Wandb}
    return [
        Sink(name, lambda name=name: build[name](Path(folder), run, dict(settings)), warn)
        for name in names
    ]


class Sink:
    """A writer in a thread of its own: `log` and `close` never wait for it longer than they say."""

    def __init__(self, name: str, build: Callable[[], Writer], warn: Callable[[str], None]):
        self.name, self.warn = name, warn
        self.error = ""
        self._waiting: queue.Queue = queue.Queue(WAITING)
        self._dropped = False  # it was said
        self._thread = threading.Thread(
            target=self._work, args=(build,), name=f"sink {name}", daemon=True
        )
        self._thread.start()

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Pass on the numbers in `values`, nested ones as "outer/inner"; never waits or raises."""
        if self._dropped or self._failed():
            return
        numbers = flat({name: value for name, value in values.items() if name != "step"})
        if not numbers:
            return
        try:
            self._waiting.put_nowait((kind, int(step), numbers))
        except queue.Full:
            self._drop("it is too slow")

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Let it write what waits, for at most `seconds`."""
        if self._dropped or self._failed():
            return
        try:
            end = time.monotonic() + seconds
            self._waiting.put(None, timeout=seconds)
            self._thread.join(max(0.0, end - time.monotonic()))
        except queue.Full:
            pass
        if not self._failed() and self._thread.is_alive():
            self._drop(f"it did not end within {seconds:g} s")

    def _work(self, build: Callable[[], Writer]) -> None:
        try:
            writer = build()
            while (item := self._waiting.get()) is not None:
                writer.write(*item)
            writer.close()
        except BaseException as error:  # also what a library means to end the process with
            self.error = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"

    def _failed(self) -> bool:
        if self.error:
            self._drop(self.error)
        return bool(self.error)

    def _drop(self, why: str) -> None:
        if not self._dropped:
            self._dropped = True
            self.warn(f"the sink {self.name} is left out from here on: {why}")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers in a nest of dicts by name, those inside another as "outer/inner"."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            if math.isfinite(value):
                found[f"{prefix}{name}"] = value
    return found


class TensorBoard:
    """Event files in FOLDER/tensorboard, one a session: ``tensorboard --logdir submissions``."""

    def __init__(self, folder: Path, run: str, settings: dict[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))
        rows = "\n".join(f"| {name} | {value} |" for name, value in settings.items())
        self.writer.add_text("settings", f"| {run} | |\n|---|---|\n{rows}")

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """A run in FOLDER/wandb, offline unless WANDB_MODE says otherwise; ``wandb sync`` uploads it.

    Its id is the run's name, so the sessions of a run are one run there too.
    """

    def __init__(self, folder: Path, run: str, settings: dict[str, Any]):
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "timebox"),
            id=run,
            name=run,
            dir=str(folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            resume="allow",
            config=settings,
            settings=wandb.Settings(
                console="off", silent=True, quiet=True, disable_code=True, disable_git=True
            ),
        )
        # Steps of its own would refuse those of a run that has gone back to a checkpoint.
        self.run.define_metric("*", step_metric="step")

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        self.run.log({"step": step, **{f"{kind}/{n}": v for n, v in values.items()}})

    def close(self) -> None:
        self.run.finish()
