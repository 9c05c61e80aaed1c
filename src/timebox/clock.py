"""The one clock. It counts everything: import, compile, evaluation, saving, export.

Other trainers leave evaluation or compilation out of their budget; the session they run in
does not. Here there is one absolute deadline, and nothing starts unless an upper quantile of
what it cost before still fits in front of it.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict, deque
from contextlib import contextmanager

_paused = {"seconds": 0.0, "since": None}  # of this process: since None, time goes on


@contextmanager
def paused():
    """While inside, time stands still for every clock of this process: somebody is reading."""
    if _paused["since"] is not None:  # already standing still
        yield
        return
    _paused["since"] = time.monotonic()
    try:
        yield
    finally:
        _paused["seconds"] += time.monotonic() - _paused["since"]
        _paused["since"] = None


def paused_seconds() -> float:
    """Seconds of this process that were spent in `paused`."""
    since = _paused["since"]
    return _paused["seconds"] + (0.0 if since is None else time.monotonic() - since)


def session_start() -> float:
    """Unix time at which this session began: ``TIMEBOX_START`` where a caller set it, else now.

    What was spent in `paused` since then does not count, so the start lies as much later.
    """
    given = os.environ.get("TIMEBOX_START", "")
    if not given:
        return time.time()
    try:
        start = float(given)
    except ValueError:
        raise ValueError(f"TIMEBOX_START must be a Unix time in seconds, not {given!r}") from None
    if not 0 <= time.time() - start < 30 * 86400:
        raise ValueError(f"TIMEBOX_START must lie within the last 30 days, not {given!r}")
    return start + paused_seconds()


class Clock:
    """One absolute deadline, `seconds` after `start` (Unix time; default now).

    `now` is a monotonic source in seconds, replaced by a fake in tests. `stop` answers
    whether somebody asked the run to end (see `timebox.stop`); every `Share` polls it too.
    """

    def __init__(self, seconds: float, start: float | None = None, now=time.monotonic, stop=None):
        if not seconds > 0:
            raise ValueError(f"a budget is a positive number of seconds, not {seconds!r}")
        self.seconds = float(seconds)
        self._source = now
        self.stop = stop or (lambda: None)
        # A wall clock may be set back while a run goes on; it is read once and never again.
        self.started = self.now() - (max(0.0, time.time() - start) if start is not None else 0.0)
        self._spent: dict[str, float] = defaultdict(float)
        self._phases = ["setup"]
        self._since = self.started

    def now(self) -> float:
        """Seconds of the monotonic source; it stands still in `paused`."""
        return self._source() - paused_seconds()

    def elapsed(self) -> float:
        """Seconds since the session began."""
        return self.now() - self.started

    def left(self) -> float:
        """Seconds to the deadline; negative behind it."""
        return self.seconds - self.elapsed()

    def share(self, seconds: float, improve: bool = True) -> Share:
        """A part of what is left, at most `seconds`, for something that can stop early."""
        return Share(self, seconds, improve)

    @contextmanager
    def phase(self, name: str):
        """Charge the seconds inside to `name`; an inner phase interrupts the outer one."""
        self._charge()
        self._phases.append(name)
        try:
            yield
        finally:
            self._charge()
            self._phases.pop()

    def spent(self) -> dict[str, float]:
        """Seconds by phase; what is in no other phase is ``setup``. They sum to ``total``."""
        self._charge()
        return {"total": self._since - self.started, **self._spent}

    def _charge(self) -> None:
        now = self.now()
        self._spent[self._phases[-1]] += now - self._since
        self._since = now


class Share:
    """A stretch of the clock for anytime work: a complete answer first, then better ones.

    The work asks `over()` between items, and once it has a complete answer `improving()`; when
    told to end it returns what it has. Without `improve` a complete answer is all that is wanted.
    """

    def __init__(self, clock: Clock, seconds: float, improve: bool = True):
        self.clock, self.improve = clock, improve
        self.end = clock.now() + min(seconds, clock.left())

    def left(self) -> float:
        """Seconds until this share ends."""
        return self.end - self.clock.now()

    def over(self) -> bool:
        """True once the share is used up, or somebody asked the run to stop."""
        return self.left() <= 0 or self.clock.stop() is not None

    def improving(self) -> bool:
        """True while there is time to make a complete answer better."""
        return self.improve and not self.over()

    def part(self, fraction: float) -> Share:
        """The first `fraction` of what is left of this share."""
        return Share(self.clock, fraction * max(0.0, self.left()), self.improve)


class Costs:
    """What each kind of work cost here, and the upper quantile that a forecast of it uses."""

    def __init__(self, keep: int = 64):
        self._seen: dict[str, deque] = defaultdict(lambda: deque(maxlen=keep))

    def add(self, kind: str, seconds: float, items: float = 1) -> None:
        """Record that `items` of `kind` took `seconds`."""
        if items > 0:
            self._seen[kind].append(seconds / items)

    def forecast(self, kind: str, items: float = 1) -> float | None:
        """Seconds that `items` of `kind` will hardly exceed; None before anything was measured.

        The 95% quantile of what was seen. Few measurements deserve little trust, so the
        quantile is raised by half for one measurement and by less for each further one.
        """
        seen = sorted(self._seen[kind])
        if not seen:
            return None
        quantile = seen[min(len(seen) - 1, int(0.95 * len(seen)))]
        return items * quantile * (1 + 0.5 / len(seen))

    def mean(self, kind: str) -> float | None:
        """The mean seconds of one item of `kind`; None before anything was measured.

        What took more than five times the median (a step that was compiled first) is no guide.
        """
        seen = sorted(self._seen[kind])
        usual = [s for s in seen if s <= 5 * seen[len(seen) // 2]]
        return sum(usual) / len(usual) if usual else None

    def last(self, kind: str) -> float | None:
        """The seconds of the latest item of `kind`; None before anything was measured."""
        return self._seen[kind][-1] if self._seen[kind] else None

    def count(self, kind: str) -> int:
        """How many measurements of `kind` are remembered."""
        return len(self._seen[kind])
