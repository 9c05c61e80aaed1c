"""A file is whole or absent: written beside, flushed to the disk, then put in place."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from timebox.settings import SettingError

# torch.save reports a full disk as RuntimeError, everything else as OSError.
WRITE_ERRORS = (OSError, RuntimeError)


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, then put it in place; a failure changes nothing."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(beside)
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
        _sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """`text` as the whole content of `path`."""
    write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """`value` as strict JSON (NaN and infinity are refused) in `path`."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`; a ValueError names the file and the place where it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def refuse(path: Path, problems: list[str]) -> None:
    """Where a file has any `problems`, a ValueError with the first of them."""
    if problems:
        more = f" and {len(problems) - 5} more problems" if len(problems) > 5 else ""
        raise ValueError(f"{path} is not valid: {'; '.join(problems[:5])}{more}")


def sha256(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put_in_place(staged: Path, folder: Path, names: list[str]) -> None:
    """Move the checked files `names` from `staged` into `folder`, each whole, replacing the old."""
    for name in names:
        with open(staged / name, "rb") as file:
            os.fsync(file.fileno())
        os.replace(staged / name, folder / name)
    _sync_folder(folder)


def check_name(name: str) -> str:
    """A plain name for a run's folders; a separator, ``..`` or an odd character is refused."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}", name) or ".." in name:
        raise SettingError(
            f"a run name is letters, digits, '.', '_', '+' and '-' alone (at most 100, not "
            f"starting with a dot or a dash), not {name!r}"
        )
    return name


class Busy(SettingError):
    """Another live process uses the folder."""


@contextmanager
def lock(folder: Path):
    """Hold `folder` for this process; Busy if another live one does.

    The kernel drops the lock with its process, however that ends, so it is never stale.
    """
    file = open(folder / ".lock", "a+")  # noqa: SIM115 - the lock lives as long as the file is open
    try:
        for attempt in range(4):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt < 3:  # who only looks whether it is locked holds it for a moment
                    time.sleep(0.05)
                    continue
                file.seek(0)
                holder = file.read().strip() or "unknown"
                what = (
                    f"is in use by process {holder}: wait for it, stop it, or choose another name"
                )
                if holder == str(os.getpid()):
                    what = "is held by a session of this process: fit() it, or close() it"
                raise Busy(f"{folder} {what}") from None
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield
    finally:
        file.close()


def move_aside(folder: Path) -> Path | None:
    """Rename `folder` so that its name is free, and return the new one; None if there is none."""
    if not folder.exists():
        return None
    with lock(folder):  # what a live process uses is not moved from under its feet
        name = f"{folder.name}.before-{datetime.now():%Y%m%d-%H%M%S}"
        taken = len(list(folder.parent.glob(f"{name}*")))  # earlier in this very second
        aside = folder.with_name(f"{name}.{taken}" if taken else name)
        folder.rename(aside)
    return aside


def is_locked(folder: Path) -> bool:
    """True while a live process holds `folder`."""
    path = folder / ".lock"
    if not path.exists():
        return False
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _sync_folder(folder: Path) -> None:
    # The rename itself must survive a power cut; some file systems cannot flush a folder.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
