"""run.json is the truth about a run, metrics.jsonl its course, and the printed lines are few."""

from __future__ import annotations

import json
import math
import os
import re
import signal

import pytest
from toy import (
    FakeTime,
    Toy,
    child,
    metrics,
    open_session,
    process,
    run_json,
    train,
    wait_for,
)

from timebox import files
from timebox.clock import Clock
from timebox.loop import fit
from timebox.record import Record, code_sha256, list_files, read, summary, versions

KEYS = (
    "task run status reason error metric better scores baselines budget_seconds seconds epochs "
    "steps examples_seen examples_total resumed_from settings parameters versions code_sha256 "
    "device files history"
).split()


def record(folder, earlier=None):
    return Record(folder, Clock(60.0), earlier or {}, lambda text: None)


def test_run_json_says_everything_that_is_promised(tmp_path):
    train(tmp_path, max_steps=40, eval_every_epochs=5)
    data = run_json(tmp_path)
    assert not [key for key in KEYS if key not in data]
    assert (data["task"], data["run"], data["metric"], data["better"]) == ("toy", "r", "exact", 1)
    assert (data["status"], data["reason"], data["error"]) == ("finished", "steps", None)
    assert set(data["scores"]) == {"validation", "evaluation"}
    assert 0 <= data["scores"]["evaluation"]["exact"] <= 1
    assert data["baselines"]["evaluation"]["always the first"]["exact"] < 0.5
    assert data["budget_seconds"] == 300
    assert set(data["seconds"]) == {"total", "setup", "train", "score", "save", "export"}
    assert (data["epochs"], data["steps"], data["examples_seen"]) == (10, 40, 640)
    assert data["settings"]["optimizer"] == "muon" and data["settings"]["max_steps"] == 40
    assert data["parameters"]["root"] == str(tmp_path)
    assert set(data["device"]) >= {"name", "dtype", "compile", "reason"}
    assert data["versions"]["torch"] and data["versions"]["python"]
    assert re.fullmatch("[0-9a-f]{64}", data["code_sha256"])
    assert {e["kind"] for e in data["history"]} == {"epoch", "evaluation"}


def test_the_hashes_of_the_files_are_those_of_the_files(tmp_path):
    def check(data):
        folder = tmp_path / "submissions" / "r"
        assert {"submission.json", "eval_predictions.json", "metrics.jsonl"} <= set(data["files"])
        for name, entry in data["files"].items():
            assert entry["sha256"] == files.sha256(folder / name), name
            assert entry["bytes"] == (folder / name).stat().st_size, name

    train(tmp_path, max_steps=10)
    check(run_json(tmp_path))
    toy = Toy(on_batch=lambda step: 1 / 0 if step == 14 else None)  # two epochs' lines are waiting
    assert train(tmp_path, toy, fresh=True)["status"] == "failed"
    check(run_json(tmp_path))


def test_a_failed_run_has_every_key_too(tmp_path):
    train(tmp_path, Toy(on_batch=lambda step: 1 / 0))
    data = run_json(tmp_path)
    assert not [key for key in KEYS if key not in data]
    assert (data["status"], data["reason"]) == ("failed", "error")
    assert "ZeroDivisionError" in data["error"]
    assert summary(data)


def test_a_running_run_has_every_key_and_is_up_to_date(tmp_path):
    seen = []
    toy = Toy(on_batch=lambda step: seen.append(run_json(tmp_path)) if step == 30 else None)
    train(tmp_path, toy, max_steps=31, log_every_seconds=1e-6)
    assert not [key for key in KEYS if key not in seen[0]]
    assert seen[0]["status"] == "running"
    assert seen[0]["steps"] == 30


def test_a_killed_run_is_shown_as_killed_and_a_live_one_as_running(tmp_path):
    run = process(child, tmp_path, {}, {"hours": 0.05}, {"batch": 0.002})
    wait_for(tmp_path / "at-batch", run)
    folder = tmp_path / "submissions" / "r"
    assert read(folder)["status"] == "running"
    os.kill(run.pid, signal.SIGKILL)
    run.join()
    found = read(folder)
    assert (found["status"], found["reason"]) == ("killed", "error")
    assert "force" in found["error"]


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3", '{"status": ', "\xff"])
def test_what_is_no_run_json_is_no_run(tmp_path, text):
    if text is not None:
        (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    assert read(tmp_path) is None


def test_a_broken_run_json_does_not_keep_a_run_from_going_on(tmp_path):
    toy = Toy(on_batch=lambda s: s == 9 and (tmp_path / "submissions/r/stop").touch())
    train(tmp_path, toy, max_steps=20)
    (tmp_path / "submissions" / "r" / "run.json").write_text("{")
    data = train(tmp_path, max_steps=20)
    assert (data["status"], data["resumed_from"]["step"]) == ("finished", 10)


def test_numbers_that_json_lacks_become_null(tmp_path):
    made = record(tmp_path)
    made.metric("train", step=1, loss=math.nan, rate=math.inf)
    made.write(scores={"validation": {"exact": -math.inf}})
    strict = {"parse_constant": lambda name: pytest.fail(f"{name} is not JSON")}
    found = json.loads((tmp_path / "run.json").read_text(), **strict)
    assert found["scores"]["validation"]["exact"] is None
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), **strict)["loss"] is None


def test_a_disk_that_takes_no_record_is_warned_about_once_and_not_fatal(tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device")

    made, said = record(tmp_path), []
    made.say = said.append
    monkeypatch.setattr(files, "write_text", full)
    for step in range(5):
        made.write(steps=step)
    assert len(said) == 1 and "run.json" in said[0]
    monkeypatch.undo()
    made.write()
    found = json.loads((tmp_path / "run.json").read_text())
    assert found["steps"] == 4 and len(found["warnings"]) == 1


def test_lines_behind_the_checkpoint_are_dropped_and_torn_ones_too(tmp_path):
    made = record(tmp_path)
    for step in range(5):
        made.metric("train", step=step)
    made.write()
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'3\n"x"\n{"kind": "tr\xff')
    made.forget_after(2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]


def test_only_the_process_that_writes_writes(tmp_path):
    made = Record(tmp_path, Clock(60.0), {}, lambda text: None, writes=False)
    made.metric("train", step=1)
    made.write(steps=3)
    made.end("finished", "steps")
    assert list(tmp_path.iterdir()) == []
    assert made.data["status"] == "finished"


def test_the_code_digest_follows_the_code_and_nothing_else(tmp_path):
    assert code_sha256() == code_sha256()
    assert {"python", "torch", "numpy"} <= set(versions())


def test_files_that_are_listed_are_results_only(tmp_path):
    for name in ("run.json", "stop", ".lock", "plot.png"):
        (tmp_path / name).write_text("x")
    (tmp_path / "folder").mkdir()
    assert list(list_files(tmp_path)) == ["plot.png"]


def test_the_summary_puts_the_baselines_beside_the_score(tmp_path):
    text = summary(train(tmp_path, max_steps=40))
    assert "this run" in text and "always the first" in text and "exact" in text
    assert "50 of 50 evaluation items" in text


# --- what is said on the way


def hour(root, minutes=20, **given):
    """A run on a fake clock with steps of half a second, and every line it says with its time."""
    now, said = FakeTime(), []
    began = now()
    toy = Toy(examples=640, hidden=8, on_batch=lambda step: now.pass_by(0.5))
    toy.on_score = lambda item: now.pass_by(0.05)
    session = open_session(
        root, toy, now=now, hours=minutes / 60, optimizer="adamw",
        say=lambda text: said.append((now() - began, text)), **given,
    )  # fmt: skip
    return fit(session), said


def test_there_is_one_plain_line_every_fifteen_seconds(tmp_path):
    data, said = hour(tmp_path)
    lines = [(at, text) for at, text in said if re.match(r"Epoch \d+ +step", text)]
    gaps = [b - a for (a, _), (b, _) in zip(lines, lines[1:], strict=False)]
    assert all(10 <= gap <= 30 for gap in gaps), gaps
    assert len(said) < 2.5 * 1200 / 15
    for _, text in lines:
        for part in ("step", "loss", "acc", "examples/s", "epoch ends in", "deadline in"):
            assert part in text, text
        assert re.search(r"next eval in|last eval at the end", text), text
        assert "\n" not in text and "\r" not in text
    minutes = float(re.search(r"deadline in ([\d.]+) min", lines[0][1])[1])
    assert 60 * minutes == pytest.approx(1200 - lines[0][0], abs=4)
    # Evaluations and saves take time too, but none of the speed of training.
    speeds = [float(re.search(r"(\d+) examples/s", text)[1]) for _, text in lines]
    assert speeds == pytest.approx([32] * len(lines), abs=1)
    assert any("last eval at the end" in text for _, text in lines[-3:])


def test_the_next_evaluation_comes_when_the_line_said(tmp_path):
    data, said = hour(tmp_path, eval_every_minutes=4.0)
    evaluated = [at for at, text in said if text.startswith("Validation at step")]
    for at, text in said:
        if found := re.search(r"next eval in ([\d.]+) (s|min)", text):
            due = at + float(found[1]) * (60 if found[2] == "min" else 1)
            # A tenth of a minute is what the line says, and scoring takes a few seconds.
            assert min(abs(due - e) for e in evaluated) < 13, (at, text, evaluated)


def test_the_cadence_of_lines_is_a_setting(tmp_path):
    data, said = hour(tmp_path, minutes=5, log_every_seconds=60.0)
    assert 3 <= sum(bool(re.match(r"Epoch \d+ +step", text)) for _, text in said) <= 5
    assert 3 <= sum(line["kind"] == "train" for line in metrics(tmp_path)) <= 5


def test_metrics_hold_what_a_plot_needs(tmp_path):
    data, said = hour(tmp_path, minutes=5)
    lines = metrics(tmp_path)
    assert {line["kind"] for line in lines} >= {"train", "evaluation", "epoch", "save"}
    for line in lines:
        assert line["step"] >= 0 and line["minutes"] >= 0
    minutes = [line["minutes"] for line in lines]
    assert minutes == sorted(minutes)
    training = [line for line in lines if line["kind"] == "train"]
    for line in training:
        assert {"epoch", "progress", "loss", "rate", "examples_per_second"} <= set(line)
    progress = [line["progress"] for line in training]
    assert progress == sorted(progress)
    assert all("exact" in line for line in lines if line["kind"] == "evaluation")
    assert all(line["examples_seen"] == 640 for line in lines if line["kind"] == "epoch")


def test_what_is_said_first_names_device_deadline_and_submission(tmp_path):
    data, said = hour(tmp_path, minutes=5)
    head = "\n".join(text for _, text in said[:4])
    assert "5 minutes, deadline" in head
    assert "Device: CPU" in head
    assert "submission.json" in head


def test_seconds_by_phase_are_what_the_clock_saw(tmp_path):
    data, said = hour(tmp_path, minutes=10)
    assert data["seconds"]["train"] == pytest.approx(0.5 * data["steps"], abs=1)
    assert data["seconds"]["total"] <= 600
