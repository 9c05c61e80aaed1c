"""A run that is killed and goes on equals one that never stopped."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time

import pytest
import torch
from toy import (
    PLAIN,
    Toy,
    ToyData,
    checkpoint,
    child,
    metrics,
    open_session,
    process,
    run_json,
    same,
    submission,
    train,
    wait_for,
)

from timebox import device
from timebox.loop import fit
from timebox.session import prepare
from timebox.settings import SettingError, Settings

SETTINGS = {"hours": 0.05, "epochs": 60, "eval_every_epochs": 12, "save_every_minutes": 0.0005}


def comparable(state):
    """All of a checkpoint but what was measured in seconds, which is never the same twice."""
    position = {k: v for k, v in state["position"].items() if k not in ("seconds", "costs")}
    return {**state, "position": position}


def test_twenty_kills_at_random_moments_change_nothing(tmp_path):
    """Weights, optimizer, random state, history and best score, bit for bit; each batch once."""
    straight = train(tmp_path / "straight", **SETTINGS)
    moments = random.Random(7)
    for _ in range(20):
        run = process(child, tmp_path, {}, SETTINGS, {"batch": 0.02})
        wait_for(tmp_path / "at-batch", run)
        time.sleep(moments.uniform(0.0, 0.25))
        os.kill(run.pid, signal.SIGKILL)
        run.join()
        (tmp_path / "at-batch").unlink()
        Toy().task().check(tmp_path / "submissions" / "r")
    killed = train(tmp_path, **SETTINGS)
    assert (killed["status"], killed["reason"]) == ("finished", "epochs")
    assert killed["resumed_from"]["step"] > 0, "the kills came too early to show anything"
    a, b = comparable(checkpoint(tmp_path / "straight")), comparable(checkpoint(tmp_path))
    assert a.keys() == b.keys()
    for part in a:
        equal = same(a[part], b[part])  # apart from the assertion, which would print it all
        assert equal, part
    assert killed["history"] == straight["history"]
    assert killed["scores"] == straight["scores"]
    assert killed["examples_seen"] == straight["examples_seen"] == 60 * 64
    assert submission(tmp_path) == submission(tmp_path / "straight")
    assert len(killed["sessions"]) == 21
    assert {s["status"] for s in killed["sessions"][:-1]} == {"killed"}


def test_the_same_steps_are_drawn_again_after_a_resume_and_no_others(tmp_path):
    one, two, whole = Toy(), Toy(), Toy()
    train(tmp_path / "a", whole, max_steps=30)
    one.on_batch = lambda step: 1 / 0 if step == 17 else None
    assert train(tmp_path / "b", one, max_steps=30, save_every_minutes=1e-6)["status"] == "failed"
    data = train(tmp_path / "b", two, max_steps=30)
    begun = data["resumed_from"]["step"]
    assert one.data.drawn[:begun] + two.data.drawn == whole.data.drawn


def test_an_interrupted_run_equals_a_straight_one_with_either_optimizer(tmp_path):
    for optimizer in ("muon", "adamw"):
        root = tmp_path / optimizer
        train(root / "straight", max_steps=40, optimizer=optimizer)
        toy = Toy(on_batch=lambda s, root=root: s == 19 and (root / "submissions/r/stop").touch())
        first = train(root, toy, max_steps=40, optimizer=optimizer)
        assert (first["status"], first["steps"]) == ("stopped", 20)
        train(root, max_steps=40, optimizer=optimizer)
        a, b = checkpoint(root / "straight"), checkpoint(root)
        for part in ("model", "optimizer", "random", "scaler"):
            assert same(a[part], b[part]), (optimizer, part)


def test_a_run_can_be_given_more_steps_and_the_rate_does_not_jump_back(tmp_path):
    toy = Toy()
    train(
        tmp_path,
        Toy(on_batch=lambda s: s == 9 and (tmp_path / "submissions/r/stop").touch()),
        max_steps=20,
    )
    data = train(tmp_path, toy, max_steps=40, warmup=0.02)
    assert (data["status"], data["steps"]) == ("finished", 40)
    assert all(b <= a for a, b in zip(toy.rates, toy.rates[1:], strict=False))


def test_seconds_are_counted_by_session_and_in_total(tmp_path):
    stop = lambda s: s == 9 and (tmp_path / "submissions/r/stop").touch()  # noqa: E731
    first = train(tmp_path, Toy(on_batch=stop), max_steps=20)
    second = train(tmp_path, max_steps=20)
    assert second["seconds_before"]["total"] == pytest.approx(first["seconds"]["total"], abs=1.0)
    assert second["seconds_before"]["train"] == pytest.approx(first["seconds"]["train"], abs=0.01)
    assert second["resumed_from"]["seconds"] == second["seconds_before"]
    assert len(second["sessions"]) == 2
    assert second["sessions"][0]["reason"] == "stop_file"
    assert second["sessions"][1]["seconds"] == pytest.approx(second["seconds"]["total"], abs=0.1)


def test_a_finished_run_is_told_so_and_stays_as_good(tmp_path):
    first, said = train(tmp_path, max_steps=12), []
    again = train(tmp_path, max_steps=12, say=said.append)
    assert again["steps"] == first["steps"] == 12
    assert again["status"] == "finished"
    assert again["scores"] == first["scores"]
    assert "weights_from" in "\n".join(said)


def test_more_steps_after_the_end_are_not_taken_and_the_reason_stays(tmp_path):
    """The rate has reached zero; what a session may still do is evaluate and export."""
    train(tmp_path, max_steps=12)
    again = train(tmp_path, max_steps=24)
    assert (again["status"], again["reason"], again["steps"]) == ("finished", "steps", 12)
    train(tmp_path, name="e", epochs=2)
    again = train(tmp_path, name="e", epochs=4)
    assert (again["status"], again["reason"], again["epochs"]) == ("finished", "epochs", 2)


def test_a_stopped_run_names_the_command_that_goes_on_a_finished_one_that_trains_further(tmp_path):
    stop = Toy(on_batch=lambda s: s == 5 and (tmp_path / "submissions/r/stop").touch())
    commands = ("go on", "train further")
    assert train(tmp_path, stop, max_steps=12, commands=commands)["command"] == "go on"
    train(tmp_path, max_steps=12, commands=commands)
    assert run_json(tmp_path)["command"] == "train further"


def test_a_checkpoint_without_a_loss_scale_goes_on_in_fp16_and_back(tmp_path):
    """As from a machine with bf16 to one without."""
    steps, before = {"fp32": 7, "fp16": 15}, 0
    for dtype, last in steps.items():
        at = lambda s, last=last: s == last and (tmp_path / "submissions/r/stop").touch()  # noqa: E731
        data = train(tmp_path, Toy(on_batch=at), max_steps=24, dtype=dtype)
        assert (data["status"], data["reason"], data["error"]) == ("stopped", "stop_file", None)
        assert data["steps"] > before
        before = data["steps"]
    assert checkpoint(tmp_path)["scaler"] != {}
    assert train(tmp_path, max_steps=24)["status"] == "finished"


def test_the_number_format_of_the_session_before_is_kept_on_the_same_device_only(
    tmp_path, monkeypatch
):
    """What a measurement chose must not waver; another card makes a choice of its own."""
    seconds, name = {"fp32": 1.0, "bf16": 0.2}, ["card A"]
    monkeypatch.setattr(device, "_matmul_seconds", lambda dtype: seconds[dtype])
    monkeypatch.setattr(device, "_name", lambda kind, rank: name[0])
    stop = Toy(on_batch=lambda s: s == 5 and (tmp_path / "submissions/r/stop").touch())
    assert train(tmp_path, stop, max_steps=12, dtype="auto")["device"]["dtype"] == "bf16"
    assert checkpoint(tmp_path)["device"] == {"name": "card A", "dtype": "bf16"}
    seconds["bf16"] = 0.9
    for name[0], dtype in (("card B", "fp32"), ("card A", "bf16")):
        session = open_session(tmp_path, dtype="auto")
        session.close()
        assert session.device.dtype == dtype
        assert "not compiled" in session.device.reason
        assert ("as in the session before" in session.device.reason) is (dtype == "bf16")
    session = open_session(tmp_path, dtype="fp32")
    session.close()
    assert session.device.dtype == "fp32", "what is asked for is taken"


def test_the_seconds_of_a_killed_session_count_to_its_end(tmp_path):
    """Also those after its last checkpoint, which run.json knows of."""
    stop = Toy(on_batch=lambda s: s == 5 and (tmp_path / "submissions/r/stop").touch())
    train(tmp_path, stop, max_steps=12)
    path = tmp_path / "submissions" / "r" / "run.json"
    # As a session of an hour leaves it that was killed before its first checkpoint.
    phases = {"total": 3600.0, "train": 3400.0, "setup": 200.0}
    path.write_text(json.dumps({**run_json(tmp_path), "status": "running", "seconds": phases}))
    data = train(tmp_path, max_steps=12)
    assert data["seconds_before"]["total"] == pytest.approx(3600, abs=5)
    assert data["seconds_before"]["train"] == pytest.approx(3400, abs=5)
    assert data["resumed_from"]["seconds"] == data["seconds_before"]
    assert data["sessions"][-2]["seconds"] == 3600


def test_the_history_of_many_short_epochs_stays_short_and_metrics_have_all(tmp_path, monkeypatch):
    """run.json and the checkpoint are written whole, again and again."""
    monkeypatch.setattr("timebox.run.EPOCHS_KEPT", 20)
    data = train(tmp_path, Toy(size=64), max_steps=70, eval_every_epochs=10)
    kept = [e["epoch"] for e in data["history"] if e["kind"] == "epoch"]
    assert kept == list(range(51, 71))
    assert [e["epoch"] for e in metrics(tmp_path) if e["kind"] == "epoch"] == list(range(1, 71))
    assert sum(e["kind"] == "evaluation" for e in data["history"]) == 7, "these are all kept"
    history = checkpoint(tmp_path)["position"]["history"]
    assert sum(e["kind"] == "epoch" for e in history) == 20


@pytest.mark.parametrize(
    ("given", "toy", "named"),
    [
        ({"lr": 0.5}, {}, ["lr", "0.0", "0.5"]),
        ({"seed": 3}, {"seed": 3}, ["seed", "data", "toy-64-16-0", "toy-64-16-3"]),
        ({"optimizer": "adamw", "clip": 2.0}, {}, ["optimizer", "muon", "adamw", "clip"]),
        ({"warmup": 0.1}, {}, ["warmup"]),
        ({"cooldown": 0.1}, {}, ["cooldown"]),
        ({"weight_decay": 0.3}, {}, ["weight_decay"]),
        ({}, {"examples": 65}, ["data", "toy-65-16-0"]),
        ({"identity": {"preset": "large"}}, {}, ["preset", "None", "large"]),
    ],
    ids=str,
)
def test_a_checkpoint_of_other_settings_or_data_is_refused_by_name(tmp_path, given, toy, named):
    train(tmp_path, max_steps=4)
    before = run_json(tmp_path)
    with pytest.raises(SettingError) as caught:
        train(tmp_path, Toy(**toy), max_steps=4, **given)
    for word in [*named, "--fresh", "weights_from", "'r'"]:
        assert word in str(caught.value)
    assert run_json(tmp_path) == before, "a refused session leaves no trace"


def test_a_run_of_another_task_is_refused(tmp_path):
    train(tmp_path, max_steps=4)
    before = run_json(tmp_path)
    import dataclasses

    other = dataclasses.replace(Toy().task(), name="puzzle")
    with pytest.raises(SettingError, match=r"toy.*puzzle"):
        prepare(other, Settings(**PLAIN), "r", tmp_path, say=lambda text: None)
    assert run_json(tmp_path) == before


def test_budget_and_cadence_may_change_between_sessions(tmp_path):
    train(tmp_path, max_steps=4)
    data = train(
        tmp_path, max_steps=8, hours=0.2, total_hours=0.4, patience=9, save_every_minutes=1.0,
        eval_every_minutes=1.0, eval_items=7, grace_seconds=1.0, log_every_seconds=1.0, keep_top=1,
    )  # fmt: skip
    assert data["status"] == "finished"


def test_weights_alone_can_be_taken_from_another_run(tmp_path):
    train(tmp_path, name="a", max_steps=20)
    source = tmp_path / "checkpoints" / "a" / "best.pt"
    session = open_session(
        tmp_path, Toy(seed=5), name="b", seed=5, weights_from=str(source), max_steps=1, lr=0.01
    )
    data = fit(session)
    assert (data["status"], data["steps"], data["resumed_from"]) == ("finished", 1, None)
    # One step at the end of a schedule is taken at rate 0, so the weights are the source's.
    assert same(
        checkpoint(tmp_path, name="b")["model"], checkpoint(tmp_path, "best.pt", "a")["model"]
    )
    assert data["settings"]["weights_from"] == str(source)


def test_weights_of_another_model_are_refused_and_so_is_no_checkpoint(tmp_path):
    train(tmp_path, Toy(hidden=16), name="a", max_steps=2)
    source = tmp_path / "checkpoints" / "a" / "last.pt"
    with pytest.raises(SettingError, match=r"weights_from.*another model"):
        train(tmp_path, name="b", weights_from=str(source))
    with pytest.raises(ValueError, match="there is no checkpoint"):
        train(tmp_path, name="b", weights_from=str(tmp_path / "nowhere.pt"))
    (tmp_path / "text.pt").write_text("these are no weights")
    with pytest.raises(ValueError, match=r"text\.pt"):
        train(tmp_path, name="b", weights_from=str(tmp_path / "text.pt"))
    assert not (tmp_path / "submissions" / "b").exists()


def test_metrics_have_no_step_twice_after_a_kill(tmp_path):
    """What was written behind the checkpoint is dropped, for those steps are taken again."""
    settings = {**SETTINGS, "log_every_seconds": 0.01, "save_every_minutes": 0.005}
    run = process(child, tmp_path, {}, settings, {"batch": 0.008})
    wait_for(tmp_path / "at-batch", run)
    time.sleep(0.6)
    os.kill(run.pid, signal.SIGKILL)
    run.join()
    with open(tmp_path / "submissions" / "r" / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 99999, "loss": 1.0}\n{"kind": "tra')
    data = train(tmp_path, **settings)
    lines = metrics(tmp_path)
    for kind in ("train", "evaluation", "epoch"):
        steps = [line["step"] for line in lines if line["kind"] == kind]
        assert steps == sorted(set(steps)), kind
        assert steps and steps[-1] <= data["steps"]
    for line in (line for line in lines if line["kind"] == "train"):
        for name in ("step", "epoch", "minutes", "progress", "loss", "rate", "examples_per_second"):
            assert isinstance(line[name], (int, float)), name
        assert 0 < line["progress"] <= 1


def test_a_killed_run_is_called_killed_by_the_next_session(tmp_path):
    run = process(child, tmp_path, {}, {"hours": 0.05}, {"batch": 0.002})
    wait_for(tmp_path / "at-batch", run)
    os.kill(run.pid, signal.SIGKILL)
    run.join()
    assert run_json(tmp_path)["status"] == "running"
    said = []
    data = train(tmp_path, max_steps=3, say=said.append)
    assert any("force" in text for text in said)
    assert data["sessions"][0]["status"] == "killed"
    assert data["sessions"][0]["seconds"] > 0


def test_the_position_in_the_data_is_the_steps_alone():
    """Batch i is a pure function of (seed, i), so nothing of a loader has to be saved."""
    a, b = ToyData(64, 16, 0, lambda s: None), ToyData(64, 16, 0, lambda s: None)
    for step in (9, 2, 5):
        b.batch(step)
    assert torch.equal(a.batch(5)["x"], b.batch(5)["x"])
    assert json.dumps(a.drawn[0]) == json.dumps(b.drawn[-1])


def test_a_run_without_its_checkpoints_starts_over_and_so_do_its_metrics(tmp_path):
    """As after a move to another machine with the results folder alone."""
    train(tmp_path, max_steps=30, log_every_seconds=1e-6)
    shutil.rmtree(tmp_path / "checkpoints")
    data = train(tmp_path, max_steps=12, log_every_seconds=1e-6)
    assert (data["resumed_from"], data["steps"]) == (None, 12)
    steps = [line["step"] for line in metrics(tmp_path) if line["kind"] == "train"]
    assert steps == list(range(1, 13))
