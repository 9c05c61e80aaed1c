"""Asking a run to stop: a signal or a file. Both only set a flag that the work polls."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager, suppress
from pathlib import Path


class Stop:
    """Answers None, or why the run was asked to stop: ``signal`` or ``stop_file``.

    A file named ``stop`` in the run's folder works across processes, GPUs and containers. A
    process that forwards a signal writes the reason into it; an empty file is a user's.
    """

    def __init__(self, folder: Path):
        self.file = folder / "stop"
        self.reason: str | None = None
        self.asked = False

    def __call__(self) -> str | None:
        if self.reason is None and self.file.exists():
            self.reason = "signal" if self._text() == "signal" else "stop_file"
        return self.reason

    def _text(self) -> str:
        try:
            return self.file.read_text(encoding="utf-8").strip()
        except OSError:
            return ""

    def forget_before(self, start: float) -> None:
        """Drop a stop file from before `start` (Unix time): it asked an earlier session."""
        with suppress(OSError):
            if self.file.stat().st_mtime < start:
                self.file.unlink()

    def answered(self) -> None:
        """The request so far is being followed; from now on a new one counts."""
        with suppress(OSError):
            self.file.unlink(missing_ok=True)
        self.reason = None

    @contextmanager
    def signals(self):
        """While inside, SIGTERM and the first SIGINT set the flag; the second SIGINT raises.

        Signals reach only the main thread; elsewhere the stop file still works.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number, frame):
            if number == signal.SIGINT and self.asked:
                raise KeyboardInterrupt
            self.reason, self.asked = "signal", True

        before = {n: signal.signal(n, handle) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
