"""What still fits: the schedule to the end, evaluations, saves, and what is kept back."""

from __future__ import annotations

import math

import pytest
from toy import FakeTime

from timebox.clock import Clock, Costs
from timebox.plan import Plan, Position
from timebox.settings import Settings


def plan(seconds=300.0, epoch_steps=10, tail=0.5, **given):
    now = FakeTime()
    stop = {"why": None}
    clock = Clock(seconds, now=now, stop=lambda: stop["why"])
    made = Plan(Settings(hours=seconds / 3600, **given), clock, Costs(), epoch_steps, tail)
    return made, Position(), now, stop


def measured(made, kind, seconds, times=64, items=1):
    for _ in range(times):
        made.costs.add(kind, seconds, items)


def run(made, position, now, cost):
    """Take steps until the plan says end; the progress after each, and why it ended."""
    seen = []
    while (why := made.ended(position)) is None:
        position.progress = made.progress_after(position)
        seconds = cost(position.step)
        now.pass_by(seconds)
        made.stepped(seconds)
        position.step += 1
        seen.append(position.progress)
    return seen, why


COSTS = {
    "even": lambda n: 0.5,
    "long steps": lambda n: 13.0,
    "uneven": lambda n: 0.2 + 0.9 * (n % 5),
    "rare slow ones": lambda n: 0.2 if n % 20 else 3.0,
    "slower later": lambda n: 0.2 if n < 400 else 1.5,
    "faster later": lambda n: 2.0 if n < 70 else 0.3,
    "slow first": lambda n: 20.0 if n == 0 else 0.5,
    "very slow first": lambda n: 60.0 if n == 0 else 0.5,
    "slow first two": lambda n: (60.0, 30.0)[n] if n < 2 else 0.5,
    "one very slow": lambda n: 40.0 if n == 50 else 0.5,
}


@pytest.mark.parametrize("kind", COSTS)
def test_progress_rises_to_exactly_one_at_the_last_step(kind):
    made, position, now, _ = plan()
    seen, why = run(made, position, now, COSTS[kind])
    assert why == "deadline"
    assert seen[-1] == 1.0
    assert all(a < b for a, b in zip(seen, seen[1:], strict=False))
    assert 0 <= made.clock.left() - made.reserve(position)
    assert max(b - a for a, b in zip(seen, seen[1:], strict=False)) <= max(0.1, 40 / len(seen) / 10)


@pytest.mark.parametrize("kind", COSTS)
def test_the_schedule_uses_the_time_it_has(kind):
    made, position, now, _ = plan()
    run(made, position, now, COSTS[kind])
    slowest = sorted(COSTS[kind](n) for n in range(2000))[-3]  # single ones are no guide
    assert made.clock.left() <= made.reserve(position) + 4 * slowest


@pytest.mark.parametrize("first", [0.5, 3.0, 60.0, 200.0])
def test_a_slow_first_step_bends_neither_the_warm_up_nor_the_end(first):
    """It loads and compiles; the steps after it share what is left as if it had been quick."""
    made, position, now, _ = plan(seconds=1200.0)
    seen, why = run(made, position, now, lambda n: first if n == 0 else 0.5)
    assert why == "deadline" and seen[-1] == 1.0
    steps = (1200 - first) / 0.5
    assert len(seen) == pytest.approx(steps, rel=0.05)
    for share in (0.02, 0.1, 0.5, 0.9):
        reached = next(n for n, progress in enumerate(seen) if progress >= share)
        assert reached == pytest.approx(share * steps, rel=0.1, abs=5)


def test_steps_or_epochs_make_a_straight_line_whatever_the_speed():
    for given in ({"max_steps": 40}, {"epochs": 4}):
        made, position, now, _ = plan(**given)
        seen, why = run(made, position, now, COSTS["uneven"])
        assert why == ("steps" if "max_steps" in given else "epochs")
        assert seen == pytest.approx([(n + 1) / 40 for n in range(40)])


def test_the_earlier_of_two_limits_counts():
    made, position, now, _ = plan(max_steps=25, epochs=2)
    assert run(made, position, now, lambda n: 0.1)[1] == "epochs"
    assert position.step == 20
    made, position, now, _ = plan(max_steps=15, epochs=2)
    assert run(made, position, now, lambda n: 0.1)[1] == "steps"


def test_a_limit_that_time_does_not_reach_ends_annealed_too():
    made, position, now, _ = plan(max_steps=10_000)
    seen, why = run(made, position, now, lambda n: 1.0)
    assert why == "deadline" and seen[-1] == 1.0
    assert all(a < b for a, b in zip(seen, seen[1:], strict=False))


def test_a_total_budget_is_spread_over_its_sessions():
    total = {"total_hours": 900 / 3600}
    made, position, now, _ = plan(**total)
    ends = []
    for session in range(3):
        if session:
            spent = position.seconds.get("total", 0.0) + made.clock.elapsed()
            position.seconds = {"total": spent}
            made, _, now, _ = plan(**total)
        seen, why = run(made, position, now, lambda n: 0.5)
        assert why == "deadline"
        ends.append((seen[-1], made.complete(position, why)))
    assert [complete for _, complete in ends] == [False, False, True]
    assert ends[0][0] == pytest.approx(1 / 3, abs=0.03)
    assert ends[1][0] == pytest.approx(2 / 3, abs=0.03)
    assert ends[2][0] == 1.0


def test_why_it_ends():
    made, position, now, stop = plan(patience=2)
    assert made.ended(position) is None
    stop["why"] = "signal"
    assert made.ended(position) == "signal"
    stop["why"] = None
    position.stale = 2
    assert made.ended(position) == "early_stopping"
    position.stale, position.progress = 0, 1.0
    assert made.ended(position) == "deadline"
    position.ended = "steps"
    assert made.ended(position) == "steps", "a schedule that has ended ends as it did before"
    assert not made.complete(position, "signal")
    assert not made.complete(position, "stop_file")
    assert made.complete(position, "early_stopping")


def test_a_step_that_does_not_fit_is_not_begun():
    made, position, now, _ = plan()
    measured(made, "step", 10.0)
    now.pass_by(300 - made.reserve(position) - 9.0)
    assert made.ended(position) == "deadline"


def test_the_reserve_covers_what_the_end_costs():
    made, position, now, _ = plan()
    small = made.reserve(position)
    measured(made, "save", 2.0)
    measured(made, "export", 12.0)
    measured(made, "score", 8.0, items=40)
    position.items = 40
    # The last save, and then an evaluation with a save of its own and an export.
    assert made.reserve(position) >= 2 + (8 + 12 + 2) + 0.5
    assert made.reserve(position) > small
    measured(made, "export", 10_000.0)
    assert made.reserve(position) < 0.5 * 300, "training is not given up for it"


def test_the_first_evaluation_comes_soon_and_the_next_when_it_pays():
    made, position, now, _ = plan()
    position.step = 5
    assert 0 < made.evaluation_in(position) <= 15
    now.pass_by(15)
    assert made.evaluation_due(position)
    made.evaluated()
    position.evaluated = 5
    measured(made, "score", 2.0)
    position.items = 1
    position.step = 6
    assert made.evaluation_in(position) >= 2 / 0.05, "at most one part in twenty"
    assert not made.evaluation_due(position)


def test_an_evaluation_that_does_not_fit_any_more_never_comes():
    made, position, now, _ = plan(eval_every_minutes=1.0)
    position.step = 5
    measured(made, "score", 20.0)
    now.pass_by(265)
    assert made.evaluation_in(position) == math.inf
    assert not made.evaluation_due(position)


def test_evaluations_are_no_more_frequent_than_the_lines_about_them():
    """However cheap one is: each costs a line, a write of run.json and maybe a checkpoint."""
    made, position, now, _ = plan(log_every_seconds=20.0)
    measured(made, "score", 1e-6)
    now.pass_by(20)
    made.evaluated()
    position.step = 5
    now.pass_by(19.9)
    assert not made.evaluation_due(position)
    now.pass_by(0.2)
    assert made.evaluation_due(position)


def test_one_evaluation_per_step_is_enough():
    made, position, now, _ = plan(eval_every_epochs=1)
    position.step = 10
    assert made.evaluation_due(position)
    position.evaluated = 10
    assert not made.evaluation_due(position)
    position.step = 11
    assert not made.evaluation_due(position)


def test_untrained_weights_are_not_evaluated():
    made, position, now, _ = plan(eval_every_minutes=0.001)
    now.pass_by(100)
    assert not made.evaluation_due(position)


def test_how_many_items_an_evaluation_scores_follows_from_what_one_costs():
    made, position, now, _ = plan()
    share = made.evaluation_share(position)
    assert share.left() == pytest.approx(15), "a twentieth of the session"
    measured(made, "score", 0.001)
    assert made.validation_items(400, share) == 400
    made.costs = Costs()
    measured(made, "score", 0.03)
    assert 32 <= made.validation_items(400, share) < 100
    assert made.validation_items(20, share) == 20
    made.costs = Costs()
    measured(made, "score", 0.59)
    assert made.validation_items(400, share) == 25, "what does not fit into the share is left out"
    now.pass_by(6)
    assert made.validation_items(400, share) == 15
    assert plan(eval_items=7)[0].validation_items(400, share) == 7
    assert plan(eval_items=700)[0].validation_items(400, share) == 400


def test_saves_are_spaced_by_minutes_by_quarters_and_by_cost():
    made, position, now, _ = plan(seconds=7200.0, save_every_minutes=10.0)
    now.pass_by(599)
    assert not made.save_due(position)
    now.pass_by(2)
    assert made.save_due(position)
    made.saved(True)
    assert not made.save_due(position)
    made, position, now, _ = plan(seconds=400.0)  # the default of half an hour is too seldom
    now.pass_by(101)
    assert made.save_due(position)
    measured(made, "save", 20.0)
    assert not made.save_due(position), "20 s of 400 would be more than its share"


def test_a_save_that_does_not_fit_in_front_of_the_reserve_is_not_begun():
    made, position, now, _ = plan(seconds=4000.0)
    measured(made, "save", 30.0)
    now.pass_by(4000 - made.reserve(position) - 31)
    assert made.save_due(position)
    now.pass_by(2)
    assert not made.save_due(position)


def test_a_save_that_failed_is_tried_again_after_a_minute():
    made, position, now, _ = plan(seconds=7200.0)
    now.pass_by(1801)
    assert made.save_due(position)
    made.saved(False)
    now.pass_by(59)
    assert not made.save_due(position)
    now.pass_by(2)
    assert made.save_due(position)
    made.saved(True)
    now.pass_by(61)
    assert not made.save_due(position)


def test_the_time_for_an_export_on_the_way_ends_before_the_reserve():
    made, position, now, _ = plan()
    assert made.short_share(position).left() <= 30
    assert not made.short_share(position).improving()
    now.pass_by(300 - made.reserve(position) - 5)
    assert made.short_share(position).left() == pytest.approx(5)
    now.pass_by(50)
    assert made.short_share(position).left() <= 0
