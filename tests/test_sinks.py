"""Metrics go to other programs too, and nothing that these do can hurt the run."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from timebox import sinks
from timebox.settings import SettingError
from timebox.sinks import Sink, check_sinks, flat, open_sinks

STEPS = [{"loss": 2.0, "accuracy": {"max": 0.5, "min": 0.25}}, {"loss": 1.0, "best": True}]


def log_all(opened, folder):
    for step, values in enumerate(STEPS, 1):
        for sink in opened:
            sink.log("train", step, {"step": step, **values})
    for sink in opened:
        sink.close(60)


def test_numbers_are_flattened_and_everything_else_is_left_out():
    nested = {"a": 1, "b": {"c": 2.5, "d": {"e": 3}}, "text": "x", "flag": True, "none": None}
    nested |= {"nan": float("nan"), "list": [1, 2]}
    assert flat(nested) == {"a": 1, "b/c": 2.5, "b/d/e": 3}


def test_tensorboard_reads_back_what_was_logged(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    said = []
    log_all(open_sinks(["tensorboard"], tmp_path, "r", {"lr": 0.5}, said.append), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {
        "train/loss", "train/accuracy/max", "train/accuracy/min"
    }  # fmt: skip
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 2.0), (2, 1.0)]
    (text,) = events.Tensors("settings/text_summary")
    assert b"| lr | 0.5 |" in text.tensor_proto.string_val[0]
    assert said == []


def test_wandb_is_offline_and_quiet_and_named_as_the_run(tmp_path, capfd, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    said = []
    log_all(open_sinks(["wandb"], tmp_path, "r.1", {"lr": 0.5}, said.append), tmp_path)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*-r.1")
    (file,) = folder.glob("*.wandb")
    end = time.monotonic() + 20  # its own process writes the file, on a busy machine a little later
    while b"train/accuracy/max" not in file.read_bytes() and time.monotonic() < end:
        time.sleep(0.2)
    assert b"train/accuracy/max" in file.read_bytes(), said
    assert said == []
    assert "".join(capfd.readouterr()) == ""


def test_an_unknown_sink_is_refused_before_any_is_opened(tmp_path):
    with pytest.raises(SettingError, match="no sink 'tensorbord'; did you mean 'tensorboard'"):
        open_sinks(["tensorboard", "tensorbord"], tmp_path, "r", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_refused_with_the_command_that_installs_it(tmp_path, name):
    """In a process of its own: this one may have imported it already."""
    code = (
        f"import sys; sys.modules[{name!r}] = None\n"
        "from pathlib import Path; from timebox.sinks import open_sinks, SettingError\n"
        f"try: open_sinks(['tensorboard', 'wandb'], Path({str(tmp_path)!r}), 'r', {{}})\n"
        "except SettingError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == (
        f"the sink {name!r} needs a package that is not installed: pip install {name}"
    ), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_names_are_checked_without_opening_anything(tmp_path):
    check_sinks([])
    check_sinks(["tensorboard"])
    assert list(tmp_path.iterdir()) == []


class Writer:
    """Notes what it is told; `before` is called first, with the word write or close."""

    def __init__(self, before=lambda what: None):
        self.before, self.seen = before, []

    def write(self, kind, step, values):
        self.before("write")
        self.seen.append((kind, step, values))

    def close(self):
        self.before("close")


def test_a_sink_that_fails_is_left_out_and_said_once():
    def fail(what):
        raise OSError("No space left\n on device")

    said, writer = [], Writer(fail)
    sink = Sink("tensorboard", lambda: writer, said.append)
    for step in range(50):
        sink.log("train", step, {"loss": 1.0})
        time.sleep(0.001)
    sink.close()
    assert said == [
        "the sink tensorboard is left out from here on: OSError: No space left on device"
    ]


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1), KeyboardInterrupt()])
def test_a_sink_that_cannot_be_opened_is_left_out_too(error):
    def build():
        raise error

    said = []
    sink = Sink("wandb", build, said.append)
    sink.close()
    sink.log("train", 1, {"loss": 1.0})
    assert len(said) == 1 and type(error).__name__ in said[0]


def test_a_sink_that_hangs_neither_slows_the_run_nor_keeps_it_from_ending():
    hang = threading.Event()
    said, writer = [], Writer(lambda what: hang.wait(30))
    sink = Sink("wandb", lambda: writer, said.append)
    began = time.monotonic()
    for step in range(1000):
        sink.log("train", step, {"loss": 1.0})
    assert time.monotonic() - began < 0.5
    sink.close(0.2)
    assert time.monotonic() - began < 1.5
    assert said == ["the sink wandb is left out from here on: it did not end within 0.2 s"]
    hang.set()


def test_more_than_can_wait_is_dropped_and_said(monkeypatch):
    monkeypatch.setattr(sinks, "WAITING", 10)
    hang, said = threading.Event(), []
    sink = Sink("wandb", lambda: Writer(lambda what: hang.wait(30)), said.append)
    for step in range(50):
        sink.log("train", step, {"loss": 1.0})
    assert said == ["the sink wandb is left out from here on: it is too slow"]
    hang.set()


def test_everything_that_was_logged_is_written_before_the_close_ends():
    writer = Writer(lambda what: time.sleep(0.002))
    sink = Sink("wandb", lambda: writer, print)
    for step in range(50):
        sink.log("train", step, {"loss": 1.0, "text": "x"})
    sink.log("event", 50, {"text": "nothing to log"})
    sink.close()
    assert [step for _, step, _ in writer.seen] == list(range(50))


def test_a_process_ends_though_a_sink_hangs(tmp_path):
    code = (
        "import time; from timebox.sinks import Sink\n"
        "class Writer:\n"
        "    def write(self, *ignored): time.sleep(60)\n"
        "sink = Sink('x', Writer, lambda text: None); sink.log('a', 1, {'b': 1}); sink.close(0.1)"
    )
    began = time.monotonic()
    environment = {**os.environ}
    done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=50)
    assert done.returncode == 0 and time.monotonic() - began < 30
