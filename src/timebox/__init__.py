"""Train inside a wall-clock budget; always leave with a valid submission."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["Clock", "Session", "SettingError", "Settings", "fit", "start"]

_HOME = {
    "Clock": "clock",
    "Session": "session",
    "SettingError": "settings",
    "Settings": "settings",
    "fit": "loop",
    "start": "session",
}


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds of somebody's budget: only who trains pays for it.
    if name in _HOME:
        return getattr(importlib.import_module(f"timebox.{_HOME[name]}"), name)
    raise AttributeError(f"module 'timebox' has no attribute {name!r}")
