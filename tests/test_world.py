"""Several processes give what one gives, and stop, save and write as one."""

from __future__ import annotations

import json
import os
import signal
import socket
import time

import pytest
import torch
from toy import Toy, checkpoint, child, metrics, process, run_json, train, wait_for

from timebox.world import World

DRY = {"dropout": 0.0}  # each process draws its own dropout


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(root, settings, size=2, toy=DRY, sleep=None):
    """`size` processes with the environment that torchrun gives them."""
    root.mkdir(parents=True, exist_ok=True)
    common = {
        "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        "LOCAL_WORLD_SIZE": str(size),
    }  # fmt: skip
    return [
        process(child, root, toy, settings, sleep, {**common, "RANK": str(r), "LOCAL_RANK": str(r)})
        for r in range(size)
    ]


def join(runs, seconds=60):
    for run in runs:
        run.join(seconds)
    assert [run.exitcode for run in runs] == [0] * len(runs)


def drawn(root, rank):
    return json.loads((root / f"drawn.{rank}").read_text())


def test_two_processes_learn_what_one_learns(tmp_path):
    settings = {"epochs": 5, "eval_every_epochs": 2}
    toy = {**DRY, "examples": 49, "size": 16}  # the last batch has one example for two processes
    one = train(tmp_path / "one", Toy(**toy), **settings)
    join(start(tmp_path / "two", settings, toy=toy))
    two = run_json(tmp_path / "two")
    assert (two["status"], two["reason"], two["steps"]) == ("finished", "epochs", 20)
    a, b = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two")
    for name in a["model"]:
        torch.testing.assert_close(a["model"][name], b["model"][name], rtol=1e-4, atol=1e-5)
    for entry, other in zip(one["history"], two["history"], strict=True):
        assert entry["kind"] == other["kind"]
        if entry["kind"] == "epoch":
            assert other["loss"] == pytest.approx(entry["loss"], rel=1e-4)
            assert other["examples_seen"] == other["examples_total"] == 49
    # Each example once an epoch over both, but for the stand-in that weighs nothing.
    left, right = drawn(tmp_path / "two", 0), drawn(tmp_path / "two", 1)
    assert len(left) == len(right) == 20
    for epoch in range(5):
        seen = sum(left[4 * epoch : 4 * epoch + 4] + right[4 * epoch : 4 * epoch + 3], [])
        assert sorted(seen) == list(range(49))


def test_one_process_writes_and_speaks(tmp_path):
    join(start(tmp_path, {"epochs": 6, "eval_every_epochs": 2, "log_every_seconds": 0.001}))
    lines = metrics(tmp_path)
    for kind in ("train", "epoch", "evaluation", "save"):
        steps = [line["step"] for line in lines if line["kind"] == kind]
        assert steps, kind
        if kind != "save":
            assert len(steps) == len(set(steps)), f"{kind} was written twice"
    said = [path.read_text() for path in tmp_path.glob("said.*")]
    assert len(said) == 2
    assert sum("Validation at step" in text for text in said) == 1
    assert run_json(tmp_path)["status"] == "finished"


def test_a_request_to_one_process_stops_all_at_the_same_step(tmp_path):
    runs = start(tmp_path, {"hours": 0.02}, sleep={"batch": 0.003})
    wait_for(tmp_path / "at-batch", runs[0])
    time.sleep(0.3)
    (tmp_path / "submissions" / "r" / "stop").touch()
    join(runs, 20)
    data = run_json(tmp_path)
    assert (data["status"], data["reason"]) == ("stopped", "stop_file")
    assert len(drawn(tmp_path, 0)) == len(drawn(tmp_path, 1)) == data["steps"]
    Toy().task().check(tmp_path / "submissions" / "r")


def test_a_signal_to_all_stops_all_at_the_same_step(tmp_path):
    runs = start(tmp_path, {"hours": 0.02}, sleep={"batch": 0.003})
    wait_for(tmp_path / "at-batch", runs[0])
    time.sleep(0.3)
    for run in reversed(runs):
        os.kill(run.pid, signal.SIGTERM)
    join(runs, 20)
    data = run_json(tmp_path)
    assert (data["status"], data["reason"]) == ("stopped", "signal")
    assert len(drawn(tmp_path, 0)) == len(drawn(tmp_path, 1)) == data["steps"]


def test_the_deadline_ends_all_at_the_same_step_and_in_time(tmp_path):
    began = time.monotonic()
    runs = start(tmp_path, {"hours": 4 / 3600})
    join(runs, 20)
    assert time.monotonic() - began < 8
    data = run_json(tmp_path)
    assert (data["status"], data["reason"]) == ("finished", "deadline")
    assert data["seconds"]["total"] <= 4
    assert len(drawn(tmp_path, 0)) == len(drawn(tmp_path, 1)) == data["steps"] > 10


def test_a_run_of_two_goes_on_after_a_kill_as_if_nothing_had_been(tmp_path):
    settings = {"epochs": 30, "save_every_minutes": 0.001, "eval_every_epochs": 10}
    join(start(tmp_path / "straight", settings))
    runs = start(tmp_path / "killed", settings, sleep={"batch": 0.005})
    wait_for(tmp_path / "killed" / "checkpoints" / "r" / "previous.pt", runs[0])  # the second save
    for run in runs:
        os.kill(run.pid, signal.SIGKILL)
        run.join()
    join(start(tmp_path / "killed", settings))
    data = run_json(tmp_path / "killed")
    assert data["status"] == "finished" and data["resumed_from"]["step"] > 0
    a, b = checkpoint(tmp_path / "straight"), checkpoint(tmp_path / "killed")
    for name in a["model"]:
        assert torch.equal(a["model"][name], b["model"][name])


def test_alone_everything_is_free():
    world, layer = World(), torch.nn.Linear(2, 2)
    assert (world.rank, world.size, world.chief) == (0, 1, True)
    assert world.told("x") == "x"
    assert world.total(3.5) == 3.5
    layer(torch.ones(1, 2)).sum().backward()
    before = layer.weight.grad.clone()
    world.sum_gradients(layer)
    assert torch.equal(layer.weight.grad, before)


def test_without_an_environment_of_several_we_are_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert World.join().size == 1
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert World.join().size == 1
