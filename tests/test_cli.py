"""The command line: exit codes 0, 1 and 2, plain messages, no traceback for a mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types

import pytest
from toy import Toy, child, process, train, wait_for

from timebox import files, record
from timebox.cli import FAILED, OK, USAGE, Wanted, _farewell, main
from timebox.settings import own_names
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
    (["walk"], ["TASK"]),
    (["walk", "ark"], ["'ark'", "arc"]),
    (["walk", "arc", "-p", "lrr=3"], ["no parameter 'lrr'", "'lr'"]),
    (["walk", "arc", "--minutes", "-1"], ["positive number of minutes"]),
    (["plot"], ["RUN"]),
    (["plot", "x"], ["no run 'x'", "holds no runs"]),
    (["check", "x.json"], ["--challenges"]),
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


# --- the budget that was not given


@pytest.mark.parametrize("extra", [[], ["--no-notebook"]])
def test_without_a_budget_the_notebooks_own_counts(tmp_path, monkeypatch, extra):
    """Its parameters cell says how long it takes; five minutes is not right for every task."""
    source = tmp_path / "notebooks" / "arc.py"
    source.parent.mkdir()
    source.write_text(NOTEBOOK.replace("minutes: float = 5.0", "minutes: float = 0.75"))
    monkeypatch.setattr("timebox.notebook.folder", lambda: source.parent)
    wanted = []
    for name in ("_run_plainly", "_run_notebook"):
        monkeypatch.setattr(f"timebox.cli.{name}", lambda *given: wanted.append(given[0]) or (1, 0))
    monkeypatch.setattr("timebox.cli._farewell", lambda *given: OK)
    main(["run", "arc", "--root", str(tmp_path), *extra])
    main(["run", "arc", "--root", str(tmp_path), *extra, "--minutes", "2"])
    main(["run", "arc", "--root", str(tmp_path), *extra, "--hours", "2"])
    assert [60 * w.hours for w in wanted] == pytest.approx([0.75, 2, 120])


@pytest.mark.parametrize("shown", ["lr", "learning_rate"])
def test_a_setting_reaches_the_notebook_by_the_name_that_it_shows(tmp_path, shown):
    source = tmp_path / "arc.py"
    source.write_text(NOTEBOOK.replace("more: dict", f"{shown}: float = 0.0\nmore: dict"))
    for given in ("lr", "learning_rate"):
        settings = own_names({given: 0.5, "num_epochs": 3})
        wanted = Wanted("arc", source, 0.0, 1.0, tmp_path / "submissions" / "r", settings)
        passed = wanted.for_notebook()
        assert passed[shown] == 0.5 and passed["more"] == {"epochs": 3}
        assert (passed["minutes"], passed["run"], passed["root"]) == (60, "r", str(tmp_path))


# --- timebox plot, score and check of a run


def test_the_curves_of_a_run_are_drawn_from_its_files(tmp_path, capsys):
    train(tmp_path, max_steps=40, log_every_seconds=0.001, eval_every_epochs=2)
    folder = tmp_path / "submissions" / "r"
    for what in ("r", str(folder)):
        assert main(["plot", what, "--root", str(tmp_path)]) == OK
        out = said(capsys)[0]
        for words in ("Training loss", "Validation: exact", "● best", "minutes of the run"):
            assert words in out
        assert "went into training steps" in out
        assert out.splitlines()[-2:] == [str(folder / "curves.png"), str(folder / "minutes.png")]
        listed = record.read(folder)["files"]
        for name in ("curves.png", "minutes.png"):
            assert (folder / name).read_bytes()[:4] == b"\x89PNG"
            assert listed[name]["sha256"] == files.sha256(folder / name)


def test_the_curves_of_running_and_of_killed_runs_are_drawn_too(tmp_path, capsys):
    settings = {"hours": 0.05, "log_every_seconds": 0.01}
    run = process(child, tmp_path, {}, settings, {"batch": 0.002})
    wait_for(tmp_path / "at-batch", run)
    time.sleep(0.3)
    folder = tmp_path / "submissions" / "r"
    assert main(["plot", "r", "--root", str(tmp_path)]) == OK
    assert run.is_alive() and (folder / "curves.png").exists()
    os.kill(run.pid, signal.SIGKILL)
    run.join()
    said(capsys)
    assert main(["plot", "r", "--root", str(tmp_path)]) == OK
    assert "Training loss" in said(capsys)[0]
    assert record.read(folder)["status"] == "killed"


@pytest.mark.parametrize("command", ["plot", "score", "check"])
def test_a_run_that_is_not_there_is_named_with_the_nearest(tmp_path, capsys, command):
    train(tmp_path, name="night", max_steps=2)
    (tmp_path / "submissions" / "empty").mkdir()
    for what, words in (
        ("nigt", "there is no run 'nigt'; did you mean 'night'?"),
        ("xyz", "there is no run 'xyz'; known: night"),
        (str(tmp_path), f"the folder {tmp_path} holds no run.json of a run"),
    ):
        assert main([command, what, "--root", str(tmp_path)]) == USAGE
        assert words in said(capsys)[1]
    assert main([command, "empty", "--root", str(tmp_path)]) == USAGE
    assert "empty" in said(capsys)[1]
    assert main([command, "xyz", "--root", str(tmp_path / "nowhere")]) == USAGE
    assert "holds no runs" in said(capsys)[1]


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """A run of the toy, which can be built anew by its name; and the options it was built with."""
    built = []

    def rebuild(name, **options):
        built.append((name, options))
        return Toy(seed=options["seed"]).task()

    train(tmp_path, max_steps=30, seed=3)
    folder = tmp_path / "submissions" / "r"
    package = types.ModuleType("timebox.tasks.toy")
    package.task = lambda seed=0, size=16: None
    monkeypatch.setitem(sys.modules, "timebox.tasks.toy", package)
    monkeypatch.setattr("timebox.tasks.names", lambda: ["arc", "toy"])
    monkeypatch.setattr("timebox.tasks.load_task", rebuild)
    data = json.loads((folder / "run.json").read_text())
    data["parameters"] = {**data["parameters"], "size": 32}
    (folder / "run.json").write_text(json.dumps(data))
    return folder, built


def test_a_run_is_scored_again_beside_its_baselines_and_stays_as_it_is(judged, capsys):
    folder, built = judged
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    exact = record.read(folder)["scores"]["evaluation"]["exact"]
    assert main(["score", "r", "--root", str(folder.parent.parent)]) == OK
    out = said(capsys)[0]
    assert f"{exact:.4f}" in out and "always the first" in out and "50 of 50" in out
    assert main(["score", str(folder), "--json"]) == OK
    found = json.loads(said(capsys)[0])
    assert (found["run"], found["task"], found["evaluation"]["exact"]) == ("r", "toy", exact)
    assert found["baselines"]["evaluation"].keys() == {"always the first"}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert built[0] == ("toy", {"seed": 3, "size": 32}), "with its own seed and options"


def test_a_run_is_checked_by_its_task(judged, capsys):
    folder, _ = judged
    assert main(["check", "r", "--root", str(folder.parent.parent)]) == OK
    assert said(capsys)[0] == f"the submission in {folder} is valid\n"
    (folder / "submission.json").write_text("[1]")
    assert main(["check", str(folder)]) == FAILED
    assert "is not 50 numbers" in said(capsys)[0]
    assert main(["check", str(folder), "--json"]) == FAILED
    found = json.loads(said(capsys)[0])
    assert found["valid"] is False and "is not 50 numbers" in found["problems"][0]
    assert main(["score", str(folder)]) == FAILED, "no score of what is not valid"
    assert "is not 50 numbers" in said(capsys)[1]
    (folder / "submission.json").unlink()
    assert main(["check", str(folder)]) == FAILED
    assert "submission.json" in said(capsys)[0]


@pytest.mark.parametrize(("command", "option"), [("score", "solutions"), ("check", "challenges")])
def test_a_bare_file_needs_what_to_judge_it_by(judged, two, capsys, command, option):
    folder, _ = judged
    assert main([command, str(two / "sub.json")]) == USAGE
    assert f"a submission file needs --{option} FILE\n" in said(capsys)[1]
    assert main([command, "no-such-file.json"]) == USAGE
    assert f"--{option} FILE" in said(capsys)[1]
    file = str(folder / "submission.json")
    assert main([command, file]) == USAGE
    assert f"name the run alone, {folder}" in said(capsys)[1]
    for what in (file, str(folder), "r"):
        root = ["--root", str(folder.parent.parent)]
        assert main([command, what, f"--{option}", str(two / f"{option[0]}.json"), *root]) == USAGE
        err = said(capsys)[1]
        assert "the task 'toy'" in err and f"no --{option}" in err


def test_a_check_can_be_read_by_machines(two, capsys):
    arguments = ["check", str(two / "sub.json"), "--challenges", str(two / "c.json"), "--json"]
    assert main(arguments) == OK
    assert json.loads(said(capsys)[0]) == {"valid": True, "problems": []}
