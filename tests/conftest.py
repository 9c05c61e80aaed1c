"""What every test gets: one thread, a clean environment, and a folder of its own to be in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported, and inherited by kernels and commands: tests are many and small.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")  # without it jupyter_core warns

SRC = str(Path(__file__).parents[1] / "src")


@pytest.fixture(autouse=True)
def _apart(monkeypatch, tmp_path):
    """No test sees the caller's session, make or Jupyter, nor leaves files in the checkout."""
    for name in ("TIMEBOX_START", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "JUPYTER_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / ".jupyter"))
    monkeypatch.setenv("PYTHONPATH", SRC)  # for commands and kernels, whatever folder they are in
    monkeypatch.chdir(tmp_path)
