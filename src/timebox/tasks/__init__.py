"""The tasks: one folder each, found on disk. Adding one edits no other file."""

from __future__ import annotations

import importlib
from pathlib import Path

from timebox.settings import cast_all, check_names
from timebox.task import Task


def names() -> list[str]:
    """The tasks there are: the folders beside this file that are packages."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/__init__.py"))


def load_task(name: str, **options) -> Task:
    """The task `name`, built with `options`; a SettingError names what is unknown or wrong."""
    check_names([name], names(), "task")
    build = importlib.import_module(f"{__name__}.{name}").task
    return build(**cast_all(options, build, f"option of the {name} task"))
