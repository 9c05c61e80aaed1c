"""The command line: exit codes 0, 1 and 2, plain messages, no traceback for a mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from toy import Toy, child, process, train, wait_for

from timebox import record
from timebox.cli import FAILED, OK, USAGE, _farewell, main
from timebox.tasks.arc.score import ATTEMPTS


def said(capsys):
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return out, err


@pytest.mark.parametrize(("arguments", "words"), [
    ([], ["usage"]),
    (["fly"], ["invalid choice"]),
    (["run"], ["TASK"]),
    (["run", "ark", "--no-notebook"], ["no task 'ark'", "'arc'"]),
    (["run", "ark"], ["'ark'", "arc"]),
    (["run", "arc", "--minutes", "soon"], ["--minutes"]),
    (["run", "arc", "--minutes", "0"], ["positive number of minutes"]),
    (["run", "arc", "--minutes", "-3"], ["positive number of minutes"]),
    (["run", "arc", "--minutes", "nan"], ["positive number of minutes"]),
    (["run", "arc", "--hours", "inf"], ["positive number of minutes"]),
    (["run", "arc", "--minutes", "1", "--hours", "1"], ["not allowed"]),
    (["run", "arc", "--run", "../up"], ["run name", "../up"]),
    (["run", "arc", "--run", "a/b"], ["run name"]),
    (["run", "arc", "--run", ".."], ["run name"]),
    (["run", "arc", "-p", "lr"], ["name=value"]),
    (["run", "arc", "-p", "=3"], ["name=value"]),
    (["run", "arc", "-p", "minutes=3"], ["--minutes"]),
    (["run", "arc", "-p", "lrr=3", "--no-notebook"], ["no parameter 'lrr'", "'lr'"]),
    (["run", "arc", "-p", "lrr=3"], ["no parameter 'lrr'", "'lr'"]),
    (["run", "arc", "-p", "lr=fast", "--no-notebook"], ["lr must be a number", "fast"]),
    (["run", "arc", "-p", "optimizer=sgd"], ["optimizer must be one of", "sgd"]),
    (["run", "arc", "-p", "warmup=0.9", "--no-notebook"], ["warmup", "cooldown"]),
    (["run", "arc", "-p", "preset=huge", "--no-notebook"], ["preset must be one of"]),
    (["run", "arc", "-p", "fresh=1", "--no-notebook"], ["no parameter 'fresh'"]),
    (["run", "arc", "-p", "say=x", "--no-notebook"], ["no parameter 'say'"]),
    (["run", "arc", "-p", "task=x", "--no-notebook"], ["no parameter 'task'"]),
    (["run", "arc", "-p", "views=0", "--no-notebook"], ["views must be from 1"]),
    (["run", "arc", "-p", "batch_tokens=-5", "--no-notebook"], ["batch_tokens must be from 0"]),
    (["run", "../x"], ["'../x'", "task"]),
    (["score", "x.json"], ["--solutions"]),
])  # fmt: skip
def test_a_mistake_in_the_command_is_said_in_words_and_exits_2(tmp_path, capsys, arguments, words):
    assert main(arguments) == USAGE
    out, err = said(capsys)
    for word in words:
        assert word in err
    assert not (tmp_path / "submissions").exists(), "nothing was begun"


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_is_no_mistake(capsys, arguments):
    assert main(arguments) == OK
    assert "timebox" in said(capsys)[0]


def test_a_run_of_a_few_seconds_leaves_everything_and_exits_0(tmp_path):
    """The whole command as a process of its own, without a notebook."""
    began = time.monotonic()
    command = [sys.executable, "-m", "timebox", "run", "arc", "--minutes", "0.4", "--no-notebook"]
    command += ["--run", "few", "--root", str(tmp_path), "-p", "max_steps=2", "-p", "views=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == OK, done.stdout + done.stderr
    assert time.monotonic() - began < 26
    folder = tmp_path / "submissions" / "few"
    data = json.loads((folder / "run.json").read_text())
    assert (data["status"], data["reason"], data["steps"]) == ("finished", "steps", 2)
    assert data["settings"]["max_steps"] == 2 and data["parameters"]["views"] == 2
    assert data["seconds"]["setup"] > 0.5, "starting Python and importing torch counts"
    assert (folder / "submission.json").exists()
    for word in ("finished (steps)", str(folder), "copy the input", "To train further from its"):
        assert word in done.stdout
    command = done.stdout.splitlines()[-1]
    best = tmp_path / "checkpoints" / "few" / "best.pt"
    assert f"weights_from={best}" in command and "--run" not in command, "it is finished"
    assert command.strip() == data["command"]
    assert "Traceback" not in done.stderr


def test_a_run_that_fails_exits_1(tmp_path, capsys, monkeypatch):
    def broken(*ignored, **also):
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr("timebox.run.Run.step", broken)
    code = main(
        ["run", "arc", "--no-notebook", "--run", "r", "--root", str(tmp_path), "--minutes", "1"]
    )
    out, err = said(capsys)
    assert code == FAILED
    assert "failed (error)" in out and "the disk is on fire" in out


def test_a_budget_that_is_gone_before_the_start_exits_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TIMEBOX_START", str(time.time() - 3600))
    arguments = ["run", "arc", "--no-notebook", "--run", "r", "--root", str(tmp_path)]
    assert main([*arguments, "--minutes", "5"]) == USAGE
    assert "used up before the run began" in said(capsys)[1]
    assert not (tmp_path / "submissions").exists()


NOTEBOOK = """\
# %% tags=["parameters"]
minutes: float = 5.0
run: str = ""
root: str = "."
more: dict = {}

# %%
import json
from pathlib import Path
"""
REFUSED = """
from timebox.settings import SettingError

raise SettingError("run 'r' has a checkpoint of other settings:\\n  lr: 0.0, 0.5\\n  seed: 0, 3")
"""
FAILED_LATE = """
path = Path(root) / "submissions" / run / "run.json"
now = "2099-01-01T00:00:00+00:00"
path.write_text(json.dumps({**json.loads(path.read_text()), "started": now}))
1 / 0
"""


@pytest.fixture
def earlier(tmp_path, monkeypatch):
    """A finished run of yesterday with its notebook; the task's notebook is still to be written."""
    train(tmp_path, max_steps=4)
    folder = tmp_path / "submissions" / "r"
    yesterday = {**record.read(folder), "started": "2020-01-01T00:00:00+00:00"}
    (folder / "run.json").write_text(json.dumps(yesterday))
    (folder / "notebook.ipynb").write_text("the good one")
    source = tmp_path / "source" / "small.py"
    source.parent.mkdir()
    monkeypatch.setattr("timebox.notebook.find", lambda task: source)
    return folder, source


def test_a_refused_run_exits_2_with_every_difference_and_changes_nothing(earlier, capsys):
    folder, source = earlier
    source.write_text(NOTEBOOK + REFUSED)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["run", "arc", "--run", "r", "--root", str(folder.parent.parent)]) == USAGE
    out, err = capsys.readouterr()
    for line in ("SettingError: run 'r' has a checkpoint", "  lr: 0.0, 0.5", "  seed: 0, 3"):
        assert line in err
    assert "finished" not in out and "this run" not in out, "the old result is not the answer"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_notebook_that_fails_after_its_run_shows_the_result_and_exits_1(earlier, capsys):
    folder, source = earlier
    source.write_text(NOTEBOOK + FAILED_LATE)
    assert main(["run", "arc", "--run", "r", "--root", str(folder.parent.parent)]) == FAILED
    out, err = capsys.readouterr()
    assert "ZeroDivisionError" in err
    assert "finished (steps)" in out and "always the first" in out
    assert "ZeroDivisionError" in (folder / "notebook.ipynb").read_text()


def test_what_to_type_next_depends_on_how_the_run_ended(tmp_path, capsys):
    stop = Toy(on_batch=lambda s: s == 3 and (tmp_path / "submissions/r/stop").touch())
    commands = ("timebox run on", "timebox run further")
    train(tmp_path, stop, max_steps=8, commands=commands)
    folder = tmp_path / "submissions" / "r"
    assert _farewell(folder, time.time(), 1.0) == OK
    assert said(capsys)[0].endswith("To continue:\n  timebox run on\n")
    train(tmp_path, max_steps=8, commands=commands)
    assert _farewell(folder, time.time(), 1.0) == OK
    assert said(capsys)[0].endswith("To train further from its weights:\n  timebox run further\n")


def test_a_folder_in_use_exits_2_and_names_its_owner(tmp_path, capsys):
    run = process(child, tmp_path, {}, {"hours": 0.05}, {"batch": 0.002})
    wait_for(tmp_path / "at-batch", run)
    for extra in ([], ["--no-notebook"], ["--fresh", "--no-notebook"]):
        assert main(["run", "arc", "--run", "r", "--root", str(tmp_path), *extra]) == USAGE
        assert "in use" in said(capsys)[1]
    os.kill(run.pid, signal.SIGKILL)
    run.join()


def test_a_run_of_another_task_exits_2(tmp_path, capsys):
    train(tmp_path, max_steps=2)
    assert main(["run", "arc", "--run", "r", "--root", str(tmp_path), "--no-notebook"]) == USAGE
    assert "toy" in said(capsys)[1]


# --- timebox runs


def test_runs_are_listed_with_status_score_and_baseline(tmp_path, capsys):
    train(tmp_path, name="good", max_steps=30)
    train(tmp_path, Toy(on_batch=lambda step: 1 / 0), name="bad")
    run = process(child, tmp_path, {}, {"hours": 0.05, "name": "dead"}, {"batch": 0.002})
    wait_for(tmp_path / "at-batch", run)
    assert main(["runs", "--root", str(tmp_path)]) == OK
    assert "running" in said(capsys)[0]
    os.kill(run.pid, signal.SIGKILL)
    run.join()
    assert main(["runs", "--root", str(tmp_path)]) == OK
    lines = {line.split()[0]: line for line in said(capsys)[0].splitlines()}
    assert list(lines) == ["run", "bad", "dead", "good"]
    assert "finished" in lines["good"] and "exact" in lines["good"] and "CPU" in lines["good"]
    assert "failed" in lines["bad"] and "error" in lines["bad"]
    assert "killed" in lines["dead"]


def test_folders_that_are_no_runs_are_passed_over(tmp_path, capsys):
    train(tmp_path, max_steps=2)
    for name, text in (("a", "{}"), ("b", "{"), ("c", "[1]"), ("d", '{"run": "d", "task": 1}')):
        (tmp_path / "submissions" / name).mkdir()
        (tmp_path / "submissions" / name / "run.json").write_text(text)
    (tmp_path / "submissions" / "e").mkdir()
    (tmp_path / "submissions" / "notes.txt").write_text("x")
    assert main(["runs", "--root", str(tmp_path)]) == OK
    assert [line.split()[0] for line in said(capsys)[0].splitlines()] == ["run", "r"]


def test_no_runs_is_no_mistake(tmp_path, capsys):
    assert main(["runs", "--root", str(tmp_path / "nowhere")]) == OK
    assert "no runs" in said(capsys)[0]


def test_a_failed_session_of_a_run_is_still_listed_with_its_minutes(tmp_path, capsys):
    train(tmp_path, max_steps=2)
    data = record.read(tmp_path / "submissions" / "r")
    assert data["seconds"]["total"] > 0


# --- timebox score and check, on a set of two tasks


@pytest.fixture
def two(tmp_path):
    """Two tasks with three test inputs: challenges, solutions, and a submission, two right."""
    demo = [{"input": [[0]], "output": [[1]]}]
    challenges = {
        "aaaaaaaa": {"train": demo, "test": [{"input": [[1, 2]]}]},
        "bbbbbbbb": {"train": demo, "test": [{"input": [[3]]}, {"input": [[4]]}]},
    }
    solutions = {"aaaaaaaa": [[[2, 1]]], "bbbbbbbb": [[[3, 3]], [[4], [4]]]}

    def attempts(one, two):
        return dict(zip(ATTEMPTS, (one, two), strict=True))

    submission = {
        "aaaaaaaa": [attempts([[2, 1]], [[0]])],
        "bbbbbbbb": [attempts([[0]], [[3, 3]]), attempts([[4]], [[4, 4]])],
    }
    for name, value in (("c", challenges), ("s", solutions), ("sub", submission)):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    return tmp_path


def test_score_gives_the_official_number(two, capsys):
    arguments = ["score", str(two / "sub.json"), "--solutions", str(two / "s.json")]
    assert main([*arguments, "--json"]) == OK
    scores = json.loads(said(capsys)[0])
    assert 2 / 3 in [pytest.approx(v) for v in scores.values()], "two of three test outputs"
    assert 3 / 4 in [pytest.approx(v) for v in scores.values()], "the mean over tasks of 1 and 1/2"
    assert main(arguments) == OK
    assert "0.6667" in said(capsys)[0]


def test_files_given_in_the_wrong_place_exit_1_with_a_message(two, capsys):
    (two / "no-test.json").write_text('{"aaaaaaaa": {"train": []}}')
    for wrong in ("s.json", "sub.json", "no-test.json"):
        arguments = ["check", str(two / "sub.json"), "--challenges", str(two / wrong)]
        assert main(arguments) == FAILED
        out, err = said(capsys)
        assert (out + err).strip()


def test_check_passes_a_valid_file_and_lists_what_is_wrong(two, capsys):
    arguments = ["check", str(two / "sub.json"), "--challenges", str(two / "c.json")]
    assert main(arguments) == OK
    assert "is valid" in said(capsys)[0]
    broken = json.loads((two / "sub.json").read_text())
    del broken["aaaaaaaa"]
    broken["bbbbbbbb"][0]["attempt_1"] = [[0, 1], [2]]
    broken["bbbbbbbb"][1]["attempt_2"] = [[10]]
    (two / "sub.json").write_text(json.dumps(broken))
    assert main(arguments) == FAILED
    out = said(capsys)[0]
    for word in ("aaaaaaaa", "bbbbbbbb: test 0: attempt_1", "bbbbbbbb: test 1: attempt_2"):
        assert word in out


@pytest.mark.parametrize("text", [None, "", "{", "3", "null", "[[1]]", "\xff"])
def test_what_is_no_submission_exits_1_with_a_message(two, capsys, text):
    if text is None:
        (two / "sub.json").unlink()
    else:
        (two / "sub.json").write_bytes(text.encode("latin-1"))
    assert main(["check", str(two / "sub.json"), "--challenges", str(two / "c.json")]) == FAILED
    out, err = said(capsys)
    assert (out + err).strip()
    assert main(["score", str(two / "sub.json"), "--solutions", str(two / "s.json")]) == FAILED
    assert said(capsys)[1].startswith("timebox: ")


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"aaaaaaaa": 3}', "null"])
def test_broken_challenges_or_solutions_exit_1_with_a_message(two, capsys, text):
    for name in ("c.json", "s.json"):
        if text is None:
            (two / name).unlink()
        else:
            (two / name).write_text(text)
    for command, option, name in (("check", "--challenges", "c"), ("score", "--solutions", "s")):
        code = main([command, str(two / "sub.json"), option, str(two / f"{name}.json")])
        out, err = said(capsys)
        assert code == FAILED, (command, out)
        assert (out + err).strip()
