"""Train to the deadline, and leave with the best submission that fits in front of it.

The loop knows a clock, a model and a task; not which task. It reads top to bottom: decide what
the next moment is for, do it, write it down. `Plan` says what fits, `Run` holds what changes.
"""

from __future__ import annotations

import errno
import traceback
from contextlib import suppress
from typing import Any

from timebox import optim
from timebox.run import Run, Unstable
from timebox.session import Session
from timebox.settings import SettingError
from timebox.step import OutOfMemory, out_of_memory

SKIPS = 3  # steps skipped in a row before the run rolls back


def fit(session: Session, strict: bool = False) -> dict[str, Any]:
    """Train `session`'s task until its deadline and return what run.json says.

    Every outcome returns normally, with ``status`` and ``reason``; `strict` raises an unexpected
    error instead, after it was written down. The submission in place stays valid throughout.
    """
    record = session.record
    if record.data["status"] != "running":
        raise SettingError("this session has ended; `start` with the same run name continues it")
    with session.held, session.stop.signals():
        try:
            run = Run(session)
            finish(run, train(run))
        except KeyboardInterrupt:
            record.end("stopped", "signal", "a second signal: stopped at once")
        except Exception as error:
            record.data["traceback"] = traceback.format_exc()
            with suppress(Exception):  # the submission in place is of earlier weights, but counts
                report(session)
            record.end("failed", _reason(error), f"{type(error).__name__}: {error}")
            session.say(f"The run failed ({record.data['reason']}): {record.data['error']}")
            if strict:
                raise
    return record.data


def train(run: Run) -> str:
    """Take steps until something ends them; returns why."""
    plan, settings = run.plan, run.settings
    skipped = 0
    while True:
        # What is the next moment for? One rank looks at the clock and the flags, all do the same.
        ended, evaluate, save = run.world.told(plan.next(run.position))
        if ended:
            return ended
        if evaluate:
            key = run.evaluate()
            if key is not None and key == run.position.best and plan.export_due():
                run.submit(key, plan.short_share(run.position))
            continue  # that took time: look again
        if save:
            run.save()
            continue

        # One step, at the rate of how far the schedule has come.
        with run.clock.phase("train"):
            began = run.clock.now()
            planned = plan.progress_after(run.position), run.position.rate_scale
            run.position.progress, run.position.rate_scale = run.world.told(planned)
            rate = optim.rate(run.position.progress, settings.warmup, settings.cooldown)
            batch = run.task.data.batch(run.position.step, run.world.rank, run.world.size)
            step = run.step(batch, rate)
            plan.stepped(run.clock.now() - began)
        run.count(step, rate)

        # A loss or gradient that is not finite was not applied. If it goes on, go back.
        skipped = 0 if step.taken else skipped + 1
        if skipped == SKIPS:
            run.roll_back()
            skipped = 0


def finish(run: Run, reason: str) -> None:
    """Save, score the last weights, submit the best ones, and write down how it ended."""
    plan, asked = run.plan, reason in ("signal", "stop_file")
    run.session.stop.answered()  # from here on only a second request counts
    run.position.ended = reason
    wanted = run.settings.grace_seconds if asked else plan.final(run.position)
    run.save()
    share = run.clock.share(min(wanted, run.clock.left() - plan.tail))
    complete = plan.complete(run.position, reason)
    fresh = run.position.evaluated != run.position.step
    key = run.use_best_weights(than=run.evaluate(share.part(0.6), complete) if fresh else None)
    if key is not None:
        run.submit(key, share)
    if run.world.chief:
        report(run.session)
        if complete:
            run.record.data["command"] = run.session.further
        run.record.end("finished" if complete else "stopped", reason)


def report(session: Session) -> None:
    """Score the predictions that stand in the run's folder by the evaluation answers."""
    floor = session.submission.is_floor()
    if floor:
        session.record.warn(
            "no weights scored better than the floor on validation: the scores of this run are "
            "those of the floor submission"
        )
    with session.clock.phase("score"):
        found = session.task.report(session.folder)
    session.record.data["scores"]["evaluation"] = found["evaluation"]
    session.record.data["baselines"] = found["baselines"]
    session.record.data["submission"]["floor"] = floor


def _reason(error: Exception) -> str:
    if isinstance(error, OutOfMemory) or out_of_memory(error):
        return "oom"
    if isinstance(error, Unstable):
        return "nan"
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "disk" if full else "error"
