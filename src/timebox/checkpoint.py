"""What a run needs to continue as if it had never stopped, in files that are whole or refused.

A folder holds ``last.pt``, ``previous.pt``, ``best.pt`` and ``top-<step>.pt`` (the best few by
validation), and ``manifest.json``, written last, with the SHA-256 of each. `torch.load` does not
notice a flipped byte; so a file is read only if its hash is in the manifest or, where a crash
came between the two, if every record in it passes its own checksum.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from timebox import files
from timebox.settings import Settings

FORMAT = 1
PARTS = {"format", "identity", "device", "position", "model", "optimizer", "scaler", "random"}


def seed_all(seed: int) -> None:
    """Start all random generators from `seed`, which is less than 2**32."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state(device: str) -> dict[str, Any]:
    """All random generators' states as plain types, which `weights_only` loading accepts."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [kind, [int(k) for k in keys], int(position), int(has_gauss), float(gauss)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if device == "cuda" else [],
    }


def restore_random_state(state: dict[str, Any], device: str) -> None:
    """Put all random generators back to `random_state()`'s answer."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, numpy_gauss = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, numpy_gauss))
    torch.set_rng_state(state["torch"])
    if device == "cuda" and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def read(path: Path) -> dict[str, Any]:
    """The checkpoint in `path`; ValueError if it is not one, is damaged, or of another format."""
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            if (bad := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"the checksum of {bad} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise  # says nothing about the file
    except Exception as error:  # reading damaged or foreign bytes can raise anything
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"checkpoint {path} is damaged or not a checkpoint: {why}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of this version (format {FORMAT})")
    if missing := PARTS - state.keys():
        raise ValueError(f"{path} is not a whole checkpoint: it lacks {', '.join(sorted(missing))}")
    return state


def differences(state: dict[str, Any], identity: dict[str, Any]) -> list[str]:
    """One line for each thing in which a checkpoint's identity differs from the run's."""
    # A checkpoint may be older than a setting: then it was made with what is the default now.
    defaults = {n: value for n, value in Settings().identity().items() if n in identity}
    old = {**defaults, **state["identity"]}
    return [
        f"{name}: checkpoint {old.get(name)!r}, this run {identity.get(name)!r}"
        for name in sorted({*old, *identity})
        if old.get(name) != identity.get(name)
    ]


class Store:
    """The checkpoints of one run; `say` is told what was damaged and what stood in for it."""

    def __init__(self, folder: Path, keep_top: int = 3, say: Callable[[str], None] = print):
        self.folder = Path(folder)
        self.keep_top = keep_top
        self.say = say
        self.manifest = self._read_manifest()

    def save(self, state: dict[str, Any]) -> None:
        """Write `state` as last.pt; the one before becomes previous.pt.

        Raises OSError or RuntimeError on a full disk, with all earlier checkpoints as they were.
        """
        incoming = self.folder / "incoming.pt"
        size = self.manifest.get("last.pt", {}).get("bytes", 0)
        if shutil.disk_usage(self.folder).free < size:
            raise OSError(
                errno.ENOSPC, f"no room for a checkpoint of {size:,} bytes", str(incoming)
            )
        for leftover in self.folder.glob(f".{incoming.name}.*.tmp"):  # of a process that was killed
            leftover.unlink(missing_ok=True)
        files.write_whole(incoming, lambda beside: torch.save(state, beside))
        entry = {
            "sha256": files.sha256(incoming),
            "bytes": incoming.stat().st_size,
            "step": state["position"]["step"],
        }
        last, previous = self.folder / "last.pt", self.folder / "previous.pt"
        if last.exists():
            os.replace(last, previous)
            self.manifest["previous.pt"] = self.manifest.pop("last.pt", {})
        os.replace(incoming, last)
        self.manifest["last.pt"] = entry
        self._write_manifest()

    def belongs_to_top(self, key: list[float]) -> bool:
        """True if a checkpoint of this validation `key` belongs to the kept top."""
        keys = sorted((e["key"] for e in self._top().values()), reverse=True)
        return self.keep_top > 0 and (len(keys) < self.keep_top or key >= keys[self.keep_top - 1])

    def keep_last_as_top(self, key: list[float]) -> None:
        """Keep the checkpoint just saved among the top by validation; best.pt is the first."""
        entry = {**self.manifest["last.pt"], "key": key}
        name = f"top-{entry['step']:08d}.pt"
        self._link("last.pt", name, entry)
        ordered = sorted(self._top().items(), key=lambda item: (item[1]["key"], item[1]["step"]))
        best_name, best_entry = ordered[-1]
        if self.manifest.get("best.pt", {}).get("sha256") != best_entry["sha256"]:
            self._link(best_name, "best.pt", best_entry)
        dropped = [n for n, _ in ordered[: -self.keep_top]]
        for name in dropped:
            del self.manifest[name]
        self._write_manifest()
        for name in dropped:
            (self.folder / name).unlink(missing_ok=True)

    def keep_last_as(self, name: str) -> None:
        """Keep the checkpoint just saved under a name of its own, which nothing rotates away."""
        self._link("last.pt", name, self.manifest["last.pt"])
        self._write_manifest()

    def load(self) -> dict[str, Any] | None:
        """The newest whole checkpoint; a damaged one is put aside, said, and stood in for.

        None if there never was one; ValueError if there was one and none is whole any more.
        """
        top = sorted((path.name for path in self.folder.glob("top-*.pt")), reverse=True)
        names = ["last.pt", "previous.pt", "best.pt", *top]
        found, damaged = [n for n in names if (self.folder / n).exists()], []
        if "last.pt" in self.manifest and "last.pt" not in found:
            self.say("checkpoint last.pt is missing")
        for name in found:
            state = self._load(name)
            if state is not None:
                if damaged or name != "last.pt":
                    self.say(f"continuing from {name}, step {state['position']['step']}")
                return state
            damaged.append(name)
        aside = sorted(path.name for path in self.folder.glob("*.damaged"))
        if damaged or aside or "last.pt" in self.manifest:
            what = f"damaged: {', '.join(aside)}" if aside else "missing"
            raise ValueError(
                f"this run has been trained, but no checkpoint in {self.folder} is whole ({what}): "
                "--fresh starts it over"
            )
        return None

    def best_key(self) -> list[float] | None:
        """The validation key of best.pt; None if there is none."""
        return self.manifest.get("best.pt", {}).get("key")

    def load_best(self) -> dict[str, Any] | None:
        """The best checkpoint by validation; None if there is none, or (said) it is damaged."""
        return self._load("best.pt") if (self.folder / "best.pt").exists() else None

    def _load(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        entry = self.manifest.get(name)
        known = {e.get("sha256") for e in self.manifest.values()}
        try:
            state = read(path)
            # A crash between putting a file in place and writing the manifest leaves a whole
            # file of a later step; the same step with another hash is damage.
            if entry and files.sha256(path) not in known:
                if state["position"]["step"] == entry.get("step"):
                    raise ValueError(f"checkpoint {name} is damaged: not the bytes that were saved")
            return state
        except (ValueError, OSError) as error:
            self.say(str(error))
            # Put aside, not deleted: rotation must not push it over the good one before it.
            with suppress(OSError):
                os.replace(path, path.with_name(path.name + ".damaged"))
            self.manifest.pop(name, None)
            return None

    def _top(self) -> dict[str, dict]:
        return {n: e for n, e in self.manifest.items() if n.startswith("top-")}

    def _link(self, source: str, name: str, entry: dict) -> None:
        beside = self.folder / f".{name}.tmp"
        beside.unlink(missing_ok=True)
        try:
            os.link(self.folder / source, beside)
        except OSError:  # a file system without hard links
            shutil.copyfile(self.folder / source, beside)
        os.replace(beside, self.folder / name)
        self.manifest[name] = entry

    def _read_manifest(self) -> dict[str, dict]:
        try:
            found = files.read_json(self.folder / "manifest.json")
            return {n: e for n, e in found["files"].items() if (self.folder / n).exists()} | (
                # A missing last.pt is worth a word; the others are then looked at anyway.
                {"last.pt": found["files"]["last.pt"]} if "last.pt" in found["files"] else {}
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def _write_manifest(self) -> None:
        files.write_json(
            self.folder / "manifest.json", {"format": FORMAT, "files": self.manifest}, indent=1
        )
