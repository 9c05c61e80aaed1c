"""The clock counts everything, and a forecast is an upper quantile."""

from __future__ import annotations

import time

import pytest
from toy import FakeTime

from timebox.clock import Clock, Costs, session_start


def clock(seconds=100.0, stop=None):
    now = FakeTime()
    return Clock(seconds, now=now, stop=stop), now


def test_left_counts_down_and_goes_on_behind_the_deadline():
    it, now = clock(100)
    now.pass_by(30)
    assert (it.elapsed(), it.left()) == (30, 70)
    now.pass_by(80)
    assert it.left() == -10


def test_what_was_before_the_clock_counts_too():
    now = FakeTime()
    it = Clock(100, start=time.time() - 40, now=now)
    assert it.left() == pytest.approx(60, abs=1)
    assert it.spent()["setup"] == pytest.approx(40, abs=1)


def test_a_start_in_the_future_gives_no_time_away():
    assert Clock(100, start=time.time() + 50, now=FakeTime()).left() == 100


def test_a_wall_clock_that_is_set_back_changes_nothing(monkeypatch):
    now = FakeTime()
    it = Clock(100, start=time.time(), now=now)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    now.pass_by(10)
    assert it.left() == pytest.approx(90, abs=1)


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_budget_is_positive(seconds):
    with pytest.raises(ValueError, match="positive number of seconds"):
        Clock(seconds)


def test_every_second_belongs_to_one_phase():
    it, now = clock()
    now.pass_by(1)
    with it.phase("train"):
        now.pass_by(10)
        with it.phase("save"):
            now.pass_by(3)
        now.pass_by(5)
    now.pass_by(2)
    assert it.spent() == {"total": 21, "setup": 3, "train": 15, "save": 3}


def test_a_phase_is_charged_when_it_ends_in_an_error():
    it, now = clock()
    with pytest.raises(ZeroDivisionError), it.phase("train"):
        now.pass_by(4)
        raise ZeroDivisionError
    now.pass_by(1)
    assert it.spent() == {"total": 5, "setup": 1, "train": 4}


def test_a_share_ends_by_its_seconds_or_with_the_clock():
    it, now = clock(100)
    assert it.share(10).left() == 10
    now.pass_by(95)
    share = it.share(10)
    assert share.left() == 5
    assert not share.over()
    now.pass_by(5)
    assert share.over()


def test_a_share_is_over_when_somebody_asks_to_stop():
    asked = []
    it, now = clock(100, stop=lambda: asked[0] if asked else None)
    share = it.share(50)
    assert not share.over() and share.improving()
    asked.append("signal")
    assert share.over() and not share.improving()


def test_a_share_without_improvement_wants_a_complete_answer_only():
    it, now = clock(100)
    share = it.share(50, improve=False)
    assert not share.over()
    assert not share.improving()
    assert not share.part(0.5).improving()


def test_a_part_of_a_share_is_its_beginning():
    it, now = clock(100)
    share = it.share(50)
    now.pass_by(10)
    assert share.part(0.25).left() == 10
    now.pass_by(100)
    assert share.part(0.5).left() <= 0


def test_a_forecast_is_hardly_exceeded():
    costs = Costs()
    assert costs.forecast("step") is None and costs.mean("step") is None
    costs.add("step", 2.0)
    assert costs.forecast("step") == 3.0, "one measurement deserves little trust"
    for _ in range(63):
        costs.add("step", 2.0)
    assert costs.forecast("step") == pytest.approx(2.0, rel=0.01)
    for seconds in (7, 8, 9, 10):
        costs.add("step", float(seconds))
    assert costs.mean("step") == pytest.approx(2.4, abs=0.1)
    assert costs.forecast("step") >= 7, "the upper end counts, not the mean"
    assert costs.count("step") == 64


def test_costs_are_per_item_and_forecasts_for_many():
    costs = Costs()
    for _ in range(100):
        costs.add("score", 6.0, items=3)
    assert costs.mean("score") == 2.0
    assert costs.forecast("score", 10) == pytest.approx(20, rel=0.01)
    costs.add("score", 5.0, items=0)
    assert costs.mean("score") == 2.0


def test_old_measurements_are_forgotten():
    costs = Costs(keep=10)
    for seconds in [9.0] * 10 + [1.0] * 10:
        costs.add("step", seconds)
    assert costs.forecast("step") < 1.1


def test_the_session_starts_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("TIMEBOX_START", str(time.time() - 60))
    assert session_start() == pytest.approx(time.time() - 60, abs=1)
    monkeypatch.delenv("TIMEBOX_START")
    assert session_start() == pytest.approx(time.time(), abs=1)


@pytest.mark.parametrize("text", ["soon", "nan", "inf", "12", str(time.time() + 3600)])
def test_a_start_that_cannot_be_is_refused(monkeypatch, text):
    monkeypatch.setenv("TIMEBOX_START", text)
    with pytest.raises(ValueError, match="TIMEBOX_START"):
        session_start()
