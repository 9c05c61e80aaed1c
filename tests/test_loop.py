"""The promises of the loop: the deadline, full data, the annealed end, and stopping well."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import threading
import time

import pytest
import torch
from toy import (
    FakeTime,
    Toy,
    checkpoint,
    child,
    metrics,
    nothing,
    open_session,
    process,
    run_json,
    same,
    submission,
    train,
    wait_for,
)

from timebox.checkpoint import Store
from timebox.clock import Clock
from timebox.loop import fit

KEYS = (
    "task run status reason error metric better scores baselines budget_seconds seconds epochs "
    "steps examples_seen examples_total resumed_from settings parameters versions code_sha256 "
    "device files history"
).split()


class SlowStore(Store):
    """Saving takes `seconds` on the fake clock."""

    now: FakeTime
    seconds = 0.0

    def save(self, state):
        self.now.pass_by(self.seconds)
        super().save(state)


def timed(
    root, minutes, *, step=0.1, item=0.01, export=3.0, save=0.2, setup=8.0, toy=None, **given
):
    """A run on a fake clock in which everything costs what the arguments say, in seconds.

    `step` may be a function of the step. Returns run.json, the toy, and the clock.
    """
    now = FakeTime()
    toy = toy or Toy(examples=3200, items=40)
    cost = step if callable(step) else lambda n: step
    toy.on_model = lambda: now.pass_by(setup)
    toy.on_batch = lambda n: now.pass_by(cost(n))
    toy.on_score = lambda i: now.pass_by(item)
    toy.on_export = lambda i: now.pass_by(export / toy.items)
    given = {"optimizer": "adamw", **given}
    session = open_session(root, toy, now=now, hours=minutes / 60, **given)
    session.store.__class__ = SlowStore
    session.store.now, session.store.seconds = now, save
    return fit(session), toy, session.clock


# --- the deadline


def test_a_run_of_five_minutes_spends_nine_tenths_in_steps_and_ends_in_time(tmp_path):
    data, toy, clock = timed(tmp_path, 5)
    assert (data["status"], data["reason"]) == ("finished", "deadline")
    assert clock.left() >= 0
    assert data["seconds"]["train"] >= 0.90 * 300
    assert data["seconds"]["total"] <= 300
    parts = sum(v for k, v in data["seconds"].items() if k != "total")
    assert parts == pytest.approx(data["seconds"]["total"], abs=0.01)


def test_a_run_of_an_hour_spends_97_percent_in_steps(tmp_path):
    data, toy, clock = timed(tmp_path, 60, step=2.0)
    assert (data["status"], data["reason"]) == ("finished", "deadline")
    assert clock.left() >= 0
    assert data["seconds"]["train"] >= 0.97 * 3600
    assert sum(e["kind"] == "evaluation" for e in data["history"]) >= 4


@pytest.mark.parametrize(
    "slow",
    [
        {"item": 2.0},
        {"item": 10.0},
        {"export": 20.0},
        {"export": 80.0},
        {"save": 6.0},
        {"setup": 100.0},
        {"step": 11.0},
        {"step": lambda n: 0.2 if n % 10 else 4.0},
        {"step": lambda n: 0.2 if n < 300 else 2.0},
        {"step": lambda n: 2.0 if n < 60 else 0.2},
        {"step": lambda n: 0.3 + 0.3 * math.sin(n)},
        {"item": 1.0, "export": 30.0, "save": 4.0, "step": 3.0},
        {"step": lambda n: 60.0 if n == 0 else 0.5},
    ],
    ids=str,
)
def test_no_cost_is_so_slow_that_the_deadline_is_missed(tmp_path, slow):
    """What does not fit is shrunk or skipped; a valid submission stands all the same."""
    data, toy, clock = timed(tmp_path, 5, **slow)
    assert (data["status"], data["reason"]) == ("finished", "deadline"), data["error"]
    assert clock.left() >= 0, f"{-clock.left():.1f} s late"
    assert toy.task().check(tmp_path / "submissions" / "r") is None
    # Slow as it is, most of the time goes into steps; and a submission early on is worth the half
    # minute that it takes here beside the one at the end.
    free = 300 - slow.get("setup", 8.0) - (30 if slow.get("export") == 30 else 0)
    assert data["seconds"]["train"] >= 0.55 * free, data["seconds"]
    assert toy.rates[-1] == 0, "the last step is at the end of the schedule"


@pytest.mark.parametrize("first", [3.0, 60.0])
def test_a_slow_first_step_leaves_the_warm_up_as_it_is(tmp_path, first):
    """The first step of a session loads and compiles: what it took says nothing about the next."""
    cost = lambda n: first if n == 0 else 0.5  # noqa: E731
    data, toy, clock = timed(tmp_path, 20, step=cost, warmup=0.1)
    assert data["seconds"]["total"] >= 0.95 * 1200
    assert data["steps"] == pytest.approx((1200 - first) / 0.5, rel=0.05)
    peak = toy.rates.index(max(toy.rates))
    assert peak == pytest.approx(0.1 * len(toy.rates), rel=0.1)
    assert max(b - a for a, b in zip(toy.rates, toy.rates[1:], strict=False)) < 0.05


@pytest.mark.parametrize("item", [0.5, 1.0, 2.0])
def test_a_slow_first_evaluation_counts_and_the_floor_is_scored_on_the_same_items(tmp_path, item):
    """What the time allowed is a result: it is written down, submitted, and compared fairly."""
    data, toy, clock = timed(tmp_path, 5, item=item, toy=Toy(examples=3200, items=50))
    first = next(e for e in data["history"] if e["kind"] == "evaluation")
    assert first["step"] < 0.3 * data["steps"], "long before the end"
    assert 0 < first["items"] < 50
    assert first["step"] in [e["step"] for e in metrics(tmp_path) if e["kind"] == "export"]
    position = checkpoint(tmp_path)["position"]
    assert position["items"] == position["best"][0] == first["items"]
    floor = toy.task().score(None, Clock(60.0).share(60.0), first["items"])
    assert position["floor"] == [first["items"], floor["exact"], 0]


def test_a_score_of_few_lucky_items_gives_way_to_one_of_many(tmp_path):
    """In either order: one item right is no bar for half of fifty, and does not beat it either."""

    def session(items, step):
        at = lambda s: s == step and (tmp_path / "submissions/r/stop").touch()  # noqa: E731
        opened = open_session(
            tmp_path, Toy(scores=lambda measured: 0.5, on_batch=at), max_steps=40, eval_items=items
        )
        score = opened.task.score

        def lucky(model, share, limit=None):
            return {**score(model, share, limit), **({"exact": 1.0} if limit == 1 else {})}

        opened.task = dataclasses.replace(opened.task, score=lucky)
        return fit(opened)

    few = session(1, 7)
    assert (few["scores"]["validation"]["items"], few["scores"]["validation"]["exact"]) == (1, 1.0)
    many = session(50, 15)
    assert many["steps"] == 16
    assert (many["scores"]["validation"]["items"], many["scores"]["validation"]["exact"]) == (
        50,
        0.5,
    )
    assert list(many["submission"]["keys"].values()) == [[50, 0.5, 0, 1, 1]]
    again = session(1, 23)
    assert again["scores"]["validation"] == many["scores"]["validation"]
    assert again["submission"] == many["submission"]
    found = [e["items"] for e in again["history"] if e["kind"] == "evaluation"]
    assert found == [1, 50], "the last one could not be compared"


def test_a_floor_that_took_too_long_to_score_is_no_bar(tmp_path):
    now = FakeTime()
    toy = Toy(on_floor=lambda item: now.pass_by(3.0), scores=lambda measured: -0.5)
    toy.on_batch = lambda step: now.pass_by(0.1)
    data = fit(open_session(tmp_path, toy, now=now, max_steps=40, eval_every_epochs=2))
    assert checkpoint(tmp_path)["position"]["floor"] == [50, -math.inf, -math.inf]
    assert list(data["submission"]["keys"].values()) == [[50, -0.5, 0, 1, 1]]


@pytest.mark.parametrize("failures", [1, 99])
def test_what_is_too_slow_for_one_item_is_not_tried_again_and_again(tmp_path, failures):
    """A score of no items is no score, and costs at least what was spent on it."""
    now, toy = FakeTime(), Toy(items=40)
    session = open_session(tmp_path, toy, now=now)
    score, tries = session.task.score, []

    def nothing_done(model, share, limit=None):
        if model is not None:
            tries.append(limit)
            if len(tries) <= failures:
                now.pass_by(max(0.0, share.left()))
        return score(model, share, limit)

    toy.on_batch = toy.data.on_batch = lambda step: now.pass_by(0.1)
    session.task = dataclasses.replace(session.task, score=nothing_done)
    data = fit(session)
    assert (data["status"], data["reason"]) == ("finished", "deadline"), data["error"]
    assert tries == [32, 32], "only the last one, which looks again at what an item costs"
    if failures == 1:
        assert data["scores"]["validation"]["items"] == 32
    else:
        assert data["scores"]["validation"] == {}
        assert submission(tmp_path) == [0] * 40, "the floor stands"
    assert data["seconds"]["total"] <= 300


def test_cheap_evaluations_are_no_more_frequent_than_progress_lines(tmp_path):
    data, toy, clock = timed(tmp_path, 5, item=0.0, export=0.0, save=0.0)
    found = sum(e["kind"] == "evaluation" for e in data["history"])
    assert 10 <= found <= 300 / 15 + 1


def test_what_evaluation_costs_is_bounded_by_a_share_of_the_time(tmp_path):
    data, toy, clock = timed(tmp_path, 30, step=1.5, item=0.5, export=10.0)
    spent = data["seconds"]
    assert spent["score"] + spent["export"] <= 0.08 * 1800
    assert spent["save"] <= 0.05 * 1800


@pytest.mark.parametrize(
    "given", [{}, {"eval_every_minutes": 1.0}, {"save_every_minutes": 0.1}], ids=str
)
def test_saving_takes_less_than_five_percent_however_slow_it_is(tmp_path, given):
    levels = iter(range(10**9))  # each evaluation is the best
    toy = Toy(examples=3200, items=40, scores=lambda measured: next(levels) / 1e6)
    data, toy, clock = timed(tmp_path, 30, step=1.5, save=5.0, toy=toy, **given)
    assert clock.left() >= 0
    assert data["seconds"]["save"] <= 0.05 * 1800


def test_an_item_that_costs_more_than_there_is_left_is_not_begun_at_the_end(tmp_path):
    """The last evaluation scores a subset, and the submission of the best weights stays."""
    data, toy, clock = timed(tmp_path, 5, item=4.0, eval_items=40)
    assert clock.left() >= 0
    assert data["status"] == "finished"


def test_the_deadline_holds_on_the_real_clock(tmp_path):
    began = time.monotonic()
    data = train(tmp_path, hours=3 / 3600, save_every_minutes=0.005)
    assert time.monotonic() - began < 3.1
    assert (data["status"], data["reason"]) == ("finished", "deadline")
    assert data["seconds"]["total"] <= 3.0
    assert data["steps"] > 100


# --- full data


def test_every_epoch_visits_every_example_exactly_once(tmp_path):
    toy = Toy(examples=50, size=16)
    data = train(tmp_path, toy, epochs=7)
    assert (data["status"], data["reason"]) == ("finished", "epochs")
    steps = toy.data.steps
    assert len(toy.data.drawn) == 7 * steps
    orders = []
    for epoch in range(7):
        drawn = [e for batch in toy.data.drawn[epoch * steps : (epoch + 1) * steps] for e in batch]
        assert sorted(drawn) == list(range(50))
        orders.append(drawn)
    assert len({tuple(o) for o in orders}) == 7, "each epoch has an order of its own"
    entries = [e for e in data["history"] if e["kind"] == "epoch"]
    assert [e["epoch"] for e in entries] == list(range(1, 8))
    assert all(e["examples_seen"] == e["examples_total"] == 50 for e in entries)
    assert data["epochs"] == 7
    assert data["steps"] == 7 * steps
    assert data["examples_seen"] == 350
    assert data["examples_total"] == 50


# --- annealed to the end


def annealed(rates):
    """With warmup 0 and cooldown 1 the rate is 1 - progress: it must fall, evenly, to 0."""
    assert rates[-1] == 0
    assert all(0 < late <= early + 1e-12 for early, late in zip(rates, rates[1:-1], strict=False))


STRAIGHT = {"warmup": 0.0, "cooldown": 1.0, "log_every_seconds": 60.0}


def test_a_run_limited_by_time_ends_annealed(tmp_path):
    data, toy, clock = timed(tmp_path, 5, **STRAIGHT)
    annealed(toy.rates)
    middle = toy.rates[len(toy.rates) // 2]
    assert middle == pytest.approx(0.5, abs=0.05)
    assert max(a - b for a, b in zip(toy.rates, toy.rates[1:], strict=False)) < 0.02


@pytest.mark.parametrize(
    "cost",
    [
        lambda n: 0.2 if n < 500 else 1.0,
        lambda n: 1.0 if n < 100 else 0.1,
        lambda n: 0.1 + (n % 7) / 10,
    ],
    ids=["slower", "faster", "uneven"],
)
def test_a_jump_in_speed_changes_neither_the_end_nor_the_direction(tmp_path, cost):
    data, toy, clock = timed(tmp_path, 5, step=cost, **STRAIGHT)
    annealed(toy.rates)
    assert toy.rates[-2] < 0.05


def test_a_run_limited_by_steps_falls_linearly_to_zero(tmp_path):
    toy = Toy()
    data = train(tmp_path, toy, max_steps=50, warmup=0.0, cooldown=1.0)
    assert (data["status"], data["reason"]) == ("finished", "steps")
    assert toy.rates == pytest.approx([1 - (n + 1) / 50 for n in range(50)], abs=1e-9)


def test_a_run_limited_by_epochs_falls_linearly_to_zero(tmp_path):
    toy = Toy()
    data = train(tmp_path, toy, epochs=5, warmup=0.0, cooldown=1.0)
    assert (data["status"], data["reason"]) == ("finished", "epochs")
    assert toy.rates == pytest.approx([1 - (n + 1) / 20 for n in range(20)], abs=1e-9)


def test_warmup_and_cooldown_shape_the_rate(tmp_path):
    toy = Toy()
    train(tmp_path, toy, max_steps=100, warmup=0.1, cooldown=0.2)
    assert toy.rates[4] == pytest.approx(0.5)  # after the step progress is 0.05 of 0.1
    assert toy.rates[9:80] == pytest.approx([1.0] * 71)
    assert toy.rates[89] == pytest.approx(0.5)
    assert toy.rates[99] == 0


def test_a_total_budget_spans_sessions(tmp_path):
    """The schedule goes on in the second session, and reaches its end there and not before."""
    total = {"total_hours": 10 / 60, **STRAIGHT}
    first, one, clock = timed(tmp_path, 5, **total)
    assert clock.left() >= 0
    assert (first["status"], first["reason"]) == ("stopped", "deadline")
    assert one.rates[-1] == pytest.approx(0.5, abs=0.05)
    second, two, clock = timed(tmp_path, 5, **total)
    assert clock.left() >= 0
    assert (second["status"], second["reason"]) == ("finished", "deadline")
    assert two.rates[0] == pytest.approx(one.rates[-1], abs=0.01)
    annealed(one.rates + two.rates)
    assert second["resumed_from"]["step"] == first["steps"]
    assert len(second["sessions"]) == 2
    assert second["seconds_before"]["train"] == pytest.approx(first["seconds"]["train"], abs=1)


def test_early_stopping_ends_a_run_that_does_not_improve(tmp_path):
    toy = Toy(scores=lambda measured: 0.25)
    data = train(tmp_path, toy, max_steps=1000, eval_every_epochs=1, patience=3)
    assert (data["status"], data["reason"]) == ("finished", "early_stopping")
    assert sum(e["kind"] == "evaluation" for e in data["history"]) == 4  # the first, and three more


# --- asked to stop


def valid(root):
    Toy().task().check(root / "submissions" / "r")
    return True


@pytest.mark.parametrize(("where", "how"), [
    ("batch", signal.SIGTERM), ("batch", signal.SIGINT), ("batch", "file"),
    ("score", signal.SIGTERM), ("score", "file"),
    ("export", signal.SIGINT), ("export", "file"),
])  # fmt: skip
def test_a_request_to_stop_is_followed_wherever_the_run_is(tmp_path, where, how):
    """Train, evaluate, export: all poll; each leaves a checkpoint, a status and a submission."""
    sleep = {"batch": 0.002, "score": 0.05 if where == "score" else 0.0}
    sleep["export"] = 0.05 if where == "export" else 0.0
    settings = {"hours": 60 / 3600, "eval_every_epochs": 10, "grace_seconds": 1.5}
    run = process(child, tmp_path, {}, settings, sleep)
    wait_for(tmp_path / f"at-{where}", run)
    time.sleep(0.15)
    asked = time.monotonic()
    if how == "file":
        (tmp_path / "submissions" / "r" / "stop").touch()
    else:
        os.kill(run.pid, how)
    run.join(20)
    assert run.exitcode == 0
    assert time.monotonic() - asked < 1.5 + 2
    data = run_json(tmp_path)
    assert (data["status"], data["reason"]) == (
        "stopped",
        "stop_file" if how == "file" else "signal",
    )
    assert data["error"] is None
    assert valid(tmp_path)
    assert checkpoint(tmp_path)["position"]["step"] == data["steps"] > 0
    assert not (tmp_path / "submissions" / "r" / "stop").exists(), (
        "the next session must not stop too"
    )
    again = train(tmp_path, max_steps=data["steps"] + 5)
    assert (again["status"], again["reason"]) == ("finished", "steps")
    assert again["resumed_from"]["step"] == data["steps"]


def told_to_end_while_starting(root):
    """As by a machine that is taken away: SIGTERM comes while the session is being prepared."""

    def say(text):
        if text.startswith("Device:"):
            os.kill(os.getpid(), signal.SIGTERM)

    data = fit(open_session(root, say=say, grace_seconds=1.0))
    raise SystemExit(0 if data["status"] == "stopped" else 1)


def test_a_signal_during_the_start_stops_the_run_right_away(tmp_path):
    run = process(told_to_end_while_starting, tmp_path)
    run.join(30)
    assert run.exitcode == 0
    data = run_json(tmp_path)
    assert (data["status"], data["reason"], data["steps"]) == ("stopped", "signal", 0)
    assert valid(tmp_path)


def test_a_second_interrupt_stops_at_once_and_leaves_the_submission(tmp_path):
    sleep = {"batch": 0.002, "export": 0.5}
    settings = {"hours": 60 / 3600, "eval_every_epochs": 5, "grace_seconds": 30.0}
    run = process(child, tmp_path, {}, settings, sleep)
    wait_for(tmp_path / "at-export", run)
    os.kill(run.pid, signal.SIGINT)
    time.sleep(1.2)  # it is busy with its last export, item by item
    before = submission(tmp_path)
    os.kill(run.pid, signal.SIGINT)
    asked = time.monotonic()
    run.join(10)
    assert time.monotonic() - asked < 2
    data = run_json(tmp_path)
    assert (data["status"], data["reason"]) == ("stopped", "signal")
    assert "second" in data["error"]
    assert valid(tmp_path)
    assert submission(tmp_path) == before
    assert all(key in data for key in KEYS)


def test_a_stop_request_in_the_last_minutes_ends_the_last_work_too(tmp_path):
    """The run is at its end anyway; a request during its final export cuts that short."""
    toy = Toy()

    def ask(item):
        if item == 3:
            (tmp_path / "submissions" / "r" / "stop").touch()

    toy.on_export = ask
    data = train(tmp_path, toy, max_steps=8, eval_every_epochs=100)
    assert data["reason"] == "steps"
    assert submission(tmp_path)[10:] == [0] * 40  # what was ready when it was asked to end


def test_training_outside_the_main_thread_still_follows_the_stop_file(tmp_path):
    toy, found = Toy(), []

    def stop_at_ten(step):
        if step == 10:
            (tmp_path / "submissions" / "r" / "stop").touch()

    toy.on_batch = stop_at_ten
    thread = threading.Thread(target=lambda: found.append(train(tmp_path, toy)))
    thread.start()
    thread.join(30)
    assert (found[0]["status"], found[0]["reason"], found[0]["steps"]) == (
        "stopped",
        "stop_file",
        11,
    )


# --- numbers that are not finite


def test_one_step_that_is_not_finite_is_skipped(tmp_path):
    toy = Toy()
    calls = iter(range(10**6))
    toy.on_loss = lambda batch: math.nan if next(calls) == 5 else None
    data = train(tmp_path, toy, max_steps=20)
    assert (data["status"], data["reason"], data["steps"]) == ("finished", "steps", 20)
    assert len(toy.rates) == 19, "the optimizer never saw it"
    events = [line for line in metrics(tmp_path) if line["kind"] == "event"]
    assert any("skipped" in event["text"] and event["step"] == 6 for event in events)
    assert torch.isfinite(
        torch.cat([p.flatten() for p in checkpoint(tmp_path)["model"].values()])
    ).all()


def test_a_gradient_that_is_infinite_is_skipped_too(tmp_path):
    toy = Toy()
    calls = iter(range(10**6))
    toy.on_loss = lambda batch: 1e38 if next(calls) == 5 else None
    data = train(tmp_path, toy, max_steps=20)
    assert data["status"] == "finished"
    assert torch.isfinite(
        torch.cat([p.flatten() for p in checkpoint(tmp_path)["model"].values()])
    ).all()


def test_repeated_failure_rolls_back_and_lowers_the_rate(tmp_path):
    toy = Toy()
    calls = iter(range(10**6))
    toy.on_loss = lambda batch: math.nan if 10 <= next(calls) < 13 else None
    data = train(tmp_path, toy, max_steps=40, warmup=0.0, cooldown=0.0)
    assert (data["status"], data["reason"], data["steps"]) == ("finished", "steps", 40)
    state = checkpoint(tmp_path)
    assert state["position"]["rollbacks"] == 0, "an epoch later it is forgotten"
    assert state["position"]["rate_scale"] == 0.5
    assert toy.rates == pytest.approx([1.0] * 10 + [0.5] * 40)
    assert any("rolled back to step 0" in e.get("text", "") for e in metrics(tmp_path))
    steps = [e["step"] for e in data["history"] if e["kind"] == "epoch"]
    assert steps == sorted(set(steps)), "the history tells the steps that count, once"


def test_bad_moments_far_apart_do_not_add_up(tmp_path):
    """Each of five costs a roll-back; more than three in a row would end the run."""
    bad = {step + more for step in (20, 60, 100, 140, 180) for more in range(3)}
    toy, step = Toy(), []

    def broken(batch):
        if step[-1] in bad:
            bad.discard(step[-1])  # it does not come back at the same step
            return math.nan

    toy.on_batch, toy.on_loss = step.append, broken
    data = train(tmp_path, toy, max_steps=220, save_every_minutes=1e-6)
    assert (data["status"], data["reason"], data["steps"]) == ("finished", "steps", 220)
    assert checkpoint(tmp_path)["position"]["rate_scale"] == 0.5**5
    assert not bad


@pytest.mark.parametrize("size", [16, 64], ids=["four steps an epoch", "one step an epoch"])
def test_failure_for_ever_ends_the_run_with_a_valid_submission(tmp_path, size):
    toy = Toy(size=size)
    calls = iter(range(10**6))
    toy.on_loss = lambda batch: math.nan if next(calls) >= 10 else None
    data = train(tmp_path, toy, max_steps=400, eval_every_epochs=1)
    assert (data["status"], data["reason"]) == ("failed", "nan")
    assert "roll-back" in data["error"]
    assert valid(tmp_path)
    assert all(key in data for key in KEYS)
    assert run_json(tmp_path)["status"] == "failed"


# --- memory


def starved(most):
    """Memory for at most `most` examples at once."""

    def on_loss(batch):
        if len(batch["weight"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    return on_loss


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_result(tmp_path):
    whole = train(tmp_path / "a", Toy(dropout=0.0), max_steps=12)
    parts = train(tmp_path / "b", Toy(dropout=0.0, on_loss=starved(5)), max_steps=12)
    assert (parts["status"], parts["steps"]) == ("finished", 12)
    a, b = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b")
    assert b["position"]["pieces"] == 4
    for name in a["model"]:
        torch.testing.assert_close(a["model"][name], b["model"][name], rtol=1e-4, atol=1e-5)
    losses = [[e["loss"] for e in d["history"] if e["kind"] == "epoch"] for d in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    said = [
        e["text"] for e in metrics(tmp_path / "b") if e["kind"] == "event" and "memory" in e["text"]
    ]
    assert len(said) == 1, "it is found out once"


def test_the_number_of_micro_batches_survives_a_resume(tmp_path):
    train(tmp_path, Toy(on_loss=starved(5)), max_steps=4)
    toy = Toy(on_loss=starved(5))
    tries = []
    toy.on_loss = lambda batch: tries.append(len(batch["weight"]))
    train(tmp_path, toy, max_steps=8, hours=0.05)
    assert set(tries) == {4} or not tries


def test_memory_for_not_even_one_example_is_a_failure_with_a_valid_submission(tmp_path):
    data = train(tmp_path, Toy(on_loss=starved(0)), max_steps=4)
    assert (data["status"], data["reason"]) == ("failed", "oom")
    assert valid(tmp_path)
    assert all(key in data for key in KEYS)


@pytest.mark.parametrize("where", ["optimizer", "score", "export"])
def test_out_of_memory_anywhere_is_called_so(tmp_path, where):
    """As where the optimizer makes its state, at its first step."""

    def full(*ignored, **also):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    toy = Toy(**({f"on_{where}": full} if where != "optimizer" else {}))
    session = open_session(tmp_path, toy, max_steps=8, eval_every_epochs=1)
    if where == "optimizer":

        def build(model, settings):
            optimizer = Toy().task().optimizer(model, settings)
            optimizer.register_step_pre_hook(full)
            return optimizer

        session.task = dataclasses.replace(session.task, optimizer=build)
    data = fit(session)
    assert (data["status"], data["reason"]) == ("failed", "oom")
    assert valid(tmp_path)


# --- errors


def test_an_error_in_a_step_is_written_down_and_returns(tmp_path):
    toy = Toy()

    def broken(step):
        if step == 3:
            raise RuntimeError("the data ran away")

    toy.on_batch = broken
    data = train(tmp_path, toy, max_steps=10)
    assert (data["status"], data["reason"]) == ("failed", "error")
    assert "the data ran away" in data["error"]
    assert "broken" in data["traceback"]
    assert valid(tmp_path)
    assert all(key in run_json(tmp_path) for key in KEYS)
    toy.on_batch = lambda step: None
    assert train(tmp_path, Toy(), max_steps=10)["status"] == "finished", "and it can go on"


def test_strict_raises_the_error_after_writing_it_down(tmp_path):
    toy = Toy()

    def broken(batch):
        raise KeyError("weight")

    toy.on_loss = broken
    with pytest.raises(KeyError):
        fit(open_session(tmp_path, toy), strict=True)
    assert run_json(tmp_path)["status"] == "failed"


def test_evaluation_leaves_the_training_as_it_would_be_without(tmp_path):
    """Evaluation happens when the clock says so, so it must not move the random numbers."""
    train(
        tmp_path / "a", Toy(on_score=lambda item: torch.rand(3)), max_steps=24, eval_every_epochs=1
    )
    train(tmp_path / "b", Toy(), max_steps=24, eval_every_epochs=1000)
    assert same(checkpoint(tmp_path / "a")["model"], checkpoint(tmp_path / "b")["model"])
    assert same(checkpoint(tmp_path / "a")["random"], checkpoint(tmp_path / "b")["random"])


def test_dropout_is_off_when_weights_are_judged(tmp_path):
    """The score in the record is the one that the kept weights have, every time they are asked."""
    toy = Toy(dropout=0.9)
    data = train(tmp_path, toy, max_steps=24, eval_every_epochs=2)
    model = toy.task().model().eval()
    model.load_state_dict(checkpoint(tmp_path, "best.pt")["model"])
    found = toy.task().score(model, Clock(60.0).share(60.0), None)
    assert found["exact"] == data["scores"]["validation"]["exact"]
    assert data["scores"]["evaluation"]["exact"] == pytest.approx(found["exact"])


def test_a_score_on_few_items_does_not_pass_for_the_best(tmp_path):
    """Two right of two is not better than a hundred of two hundred: a hurried evaluation."""
    now = FakeTime()
    toy = Toy(scores=lambda measured: 0.2)  # of a whole evaluation

    def ask(step):
        now.pass_by(0.1)
        if step == 60:
            (tmp_path / "submissions" / "r" / "stop").touch()
            toy.data.on_batch, slow[0] = nothing, 1.0

    slow = [0.0]
    toy.on_batch, toy.on_score = ask, lambda item: now.pass_by(slow[0])
    data = fit(open_session(tmp_path, toy, now=now, eval_every_epochs=5, grace_seconds=10.0))
    assert (data["status"], data["reason"]) == ("stopped", "stop_file")
    assert now.seconds - 5000 > 10, "the last evaluation was cut short"
    assert data["scores"]["validation"]["exact"] == 0.2
    assert list(data["submission"]["keys"].values()) == [[50, 0.2, 0, 1, 1]]
