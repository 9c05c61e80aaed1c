"""The submission: valid from the first minute, checked after reloading, and never made worse."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from timebox import files
from timebox.clock import Share
from timebox.record import Record
from timebox.task import Task

NAMES = ["submission.json", "eval_predictions.json"]
STAGED = ".staged"
FLOOR = [float("-inf"), float("-inf")]


class Submission:
    """The two result files in a run's folder, and the validation key of the weights they came from.

    run.json remembers the key for each file's hash, written before the file is put in place: so
    whichever of two versions a crash leaves behind, the next session knows how good it is.
    """

    def __init__(self, folder: Path, task: Task, record: Record):
        self.folder, self.task, self.record = folder, task, record
        before = record.earlier.get("submission") or {}
        self.keys: dict[str, Any] = before.get("keys", {})
        record.data["submission"] = before
        if record.writes:
            self._finish_move()
        self._remember({})

    def valid(self) -> bool:
        """True if the files in place exist and pass the task's check."""
        try:
            self.task.check(self.folder)
        except (ValueError, OSError):
            return False
        return True

    def floor(self, share: Share) -> bool:
        """Put the floor submission in place unless a valid one stands; True if it was written."""
        if self.valid():
            return False
        self._offer(None, FLOOR, share)
        return True

    def key(self) -> list[float]:
        """The validation key behind the submission that is in place now."""
        path = self.folder / NAMES[0]
        known = self.keys.get(files.sha256(path)) if path.exists() else None
        return [float("-inf") if v is None else v for v in known] if known else FLOOR

    def is_floor(self) -> bool:
        """True if no model's submission is in place."""
        return self.key() == FLOOR

    def offer(self, model, key: list[float], share: Share) -> dict | None:
        """Export `model`, whose validation key is `key`; its notes if it was put in place.

        What stands stays if it is of better weights, and of the same weights unless the new one
        is complete where the old one was not, or more views voted for it.
        """
        return None if key < self.key()[: len(key)] else self._offer(model, key, share)

    def _offer(self, model, key: list[float], share: Share) -> dict | None:
        staged = self.folder / STAGED
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        try:
            notes = self.task.export(model, staged, share)
            self.task.check(staged)
            new = [*key, float(notes["complete"]), float(notes.get("views", 0))]
            worse = new <= self.key() or not (notes["complete"] or self.key() == FLOOR)
            if model is not None and worse:
                return None
            self._remember({files.sha256(staged / NAMES[0]): FLOOR if model is None else new})
            files.put_in_place(staged, self.folder, NAMES)
            self._remember({}, notes=notes)
            return notes
        finally:
            self._finish_move()

    def _finish_move(self) -> None:
        """Put the second file of a pair in place if a kill came right after the first."""
        staged = self.folder / STAGED
        if (staged / NAMES[1]).exists() and not (staged / NAMES[0]).exists():
            with suppress(ValueError, OSError):
                files.put_in_place(staged, self.folder, NAMES[1:])
        shutil.rmtree(staged, ignore_errors=True)

    def _remember(self, new: dict[str, Any], **notes: Any) -> None:
        path = self.folder / NAMES[0]
        current = files.sha256(path) if path.exists() else None
        self.keys = {h: key for h, key in self.keys.items() if h == current} | new
        self.record.write(submission={**self.record.data["submission"], "keys": self.keys, **notes})
