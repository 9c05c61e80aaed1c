"""Verdicts: what an answer implies, and which kind of error it is, on answers made for it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from timebox.tasks.collatz import score
from timebox.tasks.collatz.data import long_step


def one(n: int, answer: int) -> tuple[str, int, int]:
    found = score.judge(np.array([n]), np.array([answer]))
    kind = list(score.KINDS)[found.kind[0]]
    return kind, int(found.implied_k[0]), int(found.implied_k_prime[0])


N = 1_234_567  # k = 3, k' = 1: 2,083,333
FAR = 6_115_775  # k = 6, k' = 1: 34,831,255


@pytest.fixture(scope="module")
def numbers():
    return 2 * np.random.default_rng(0).integers(0, 2**23, 4000) + 1


# ------------------------------------------------------------------------------------ verdicts


def test_the_numbers_of_these_tests_are_what_they_say():
    found = [tuple(int(v[0]) for v in long_step(np.array([n]))) for n in (N, FAR)]
    assert found == [(2_083_333, 3, 1), (34_831_255, 6, 1)]


@pytest.mark.parametrize(
    ("n", "answer", "expected"),
    [
        (27, 31, ("right", 2, 1)),
        (27, 62, ("power_of_two", 2, 0)),  # one halving too few
        (27, 124, ("power_of_two", score.NONE, score.NONE)),  # that many it does not have
        (FAR, 2 * 34_831_255, ("power_of_two", 6, 0)),
        (FAR, 34_831_255 + 2, ("slip", 6, 1)),
        (FAR, 34_831_255 - 16, ("slip", 6, 1)),
        (FAR, 34_831_255 + 17, ("wrong_digits", score.NONE, score.NONE)),
        (FAR, 34_831_255 - 1_741_562, ("wrong_digits", score.NONE, score.NONE)),  # just 5%
        (FAR, 34_831_255 + 1_741_562, ("wrong_digits", score.NONE, score.NONE)),
        (FAR, 34_831_255 + 1_741_563, ("other_number", score.NONE, score.NONE)),
        (27, 30, ("wrong_digits", score.NONE, score.NONE)),
        (27, 33, ("other_number", score.NONE, score.NONE)),
        (FAR, 2 * 34_831_255 + 3, ("near_power_of_two", 6, 0)),
        (FAR, 34_831_255 // 4, ("near_power_of_two", 6, 3)),
        (FAR, 34_831_255 * 2 // 3, ("power_of_three_halves", 5, 1)),  # one up-step too few
        (FAR, 34_831_255 * 4 // 9, ("power_of_three_halves", 4, 1)),
        (FAR, 34_831_255 * 3 // 2, ("power_of_three_halves", 7, 1)),
        (FAR, 34_831_255 * 4 // 3 + 1, ("power_of_three_halves", 5, 0)),
        (FAR, FAR, ("power_of_three_halves", 0, 0)),  # a copy: no step at all
        (FAR, 12_345, ("other_number", score.NONE, score.NONE)),
        (FAR, 0, ("not_a_number", score.NONE, score.NONE)),
        (1, 1, ("right", 1, 1)),
        (1, 3, ("other_number", score.NONE, score.NONE)),
    ],
)
def test_what_is_wrong_with_an_answer(n, answer, expected):
    assert one(n, answer) == expected


def test_the_formula_of_a_class_gives_every_long_step(numbers):
    """The identity that implied loop lengths rest on, in Python's integers."""
    result, k, k_prime = long_step(numbers)
    for n, r, a, b in zip(*(v.tolist() for v in (numbers, result, k, k_prime)), strict=True):
        assert r * 2 ** (a + b) == 3**a * n + 3**a - 2**a


def test_answers_for_other_loop_lengths_are_told_at_any_size():
    """Up to 10^12, where a float no longer holds an answer's last digits."""
    rng = np.random.default_rng(1)
    n = 2 * rng.integers(10**6, 5 * 10**11, 2000) + 1
    _, k, k_prime = long_step(n)
    up, down = np.maximum(k - 1, 1), k_prime + (k == 1)
    wrong = np.array(
        [
            (3**a * (i + 1) - 2**a) // 2 ** (a + b)
            for i, a, b in zip(n.tolist(), up.tolist(), down.tolist(), strict=True)
        ]
    )
    found = score.judge(n, wrong)
    assert (found.implied_k == up).mean() > 0.99
    assert (found.implied_k_prime == down).mean() > 0.99
    assert not found.right.any()


def test_chance_explains_hardly_any_number(numbers):
    rng = np.random.default_rng(2)
    answers = np.exp(rng.uniform(np.log(10**5), np.log(10**8), len(numbers))).astype(np.int64)
    found = score.judge(numbers, answers)
    assert np.mean(found.implied_k != score.NONE) < 0.01
    kinds = np.bincount(found.kind, minlength=len(score.KINDS)) / len(numbers)
    shares = dict(zip(score.KINDS, kinds, strict=True))
    assert shares["wrong_digits"] < 0.03, "a window of 10% in a range of three powers of ten"
    assert shares["wrong_digits"] + shares["other_number"] > 0.99


def test_an_answer_of_the_right_size_is_no_error_of_loop_lengths():
    n = np.array([26_845_927])  # k = 3, k' = 1
    truth = int(long_step(n)[0][0])
    answer = truth - truth // 180
    found = score.summary(score.judge(n, np.array([answer])))
    assert found["error_kinds"]["wrong_digits"] == 1 and found["wrong_loop_lengths"] == 0
    assert found["loop_lengths_told"] == 0
    assert score.explain(int(n[0]), answer).endswith(
        f"answer {answer} = 0.9944 x truth: the right size, wrong digits"
    )


def test_the_largest_answers_do_not_overflow():
    n = np.array([3 * 2**38 - 1, 10**12 - 1, 1])
    found = score.judge(n, np.full(3, 2**63 - 1))
    assert not found.right.any() and (found.kind > 0).all()
    truth = found.truth
    assert score.judge(n, truth).right.all()
    assert one(int(n[0]), 2 * int(truth[0]))[0] == "power_of_two"


# ----------------------------------------------------------------------------------- summaries


def test_a_perfect_run_and_an_empty_one(numbers):
    found = score.summary(score.judge(numbers, long_step(numbers)[0]))
    assert found["exact"] == found["k_exact"] == found["k_prime_exact"] == 1
    assert found["loop_length_errors"] == {"k": 0, "k_prime": 0}
    assert found["error_kinds"] == {} and "wrong_loop_lengths" not in found
    assert set(found["by_level"].values()) == {1.0}
    nothing = score.summary(score.judge(numbers, np.zeros_like(numbers)))
    assert nothing["exact"] == nothing["loop_lengths_told"] == nothing["rung"] == 0
    assert nothing["error_kinds"]["not_a_number"] == 1
    assert "k_exact" not in nothing, "what was not measured is not reported as 0"
    none = np.zeros(0, np.int64)
    for each in (found, nothing, score.summary(score.judge(none, none))):
        json.dumps(each, allow_nan=False)


def test_errors_of_k_are_those_made(numbers):
    result, k, k_prime = long_step(numbers)
    answers = np.where(k_prime == 2, 2 * result, result)
    found = score.summary(score.judge(numbers, answers))
    share = float(np.mean(k_prime == 2))
    assert found["k_exact"] == 1 and found["k_prime_exact"] == pytest.approx(1 - share)
    assert found["loop_length_errors"] == {"k": 0, "k_prime": pytest.approx(share)}
    assert found["wrong_loop_lengths"] == found["error_kinds"]["power_of_two"] == 1
    assert found["loop_lengths_told"] == 1
    right = {s: np.mean((answers == result)[k + k_prime == s]) for s in range(2, 10)}
    assert {s: found["by_level"][str(s)] for s in right} == right
    assert found["by_k"]["1"] == np.mean((answers == result)[k == 1])


def test_kinds_are_shares_of_the_wrong_answers(numbers):
    result = long_step(numbers)[0]
    answers = result.copy()
    answers[:100], answers[100:400] = 2 * result[:100], 0
    found = score.summary(score.judge(numbers, answers))["error_kinds"]
    assert found["power_of_two"] == 0.25 and found["not_a_number"] == 0.75
    assert sum(found.values()) == pytest.approx(1)


def test_the_ladder_is_the_accuracy_of_its_rungs():
    numbers = np.arange(1, 2**17, 2)
    _, k, k_prime = long_step(numbers)
    for s in range(1, 13):
        assert score.ladder(s) == pytest.approx(np.mean(k + k_prime <= s), abs=2e-4)
    assert [score.ladder(s) for s in (2, 3, 4)] == [0.25, 0.5, 0.6875]


def test_the_rung_is_the_last_level_that_is_learned_with_all_below(numbers):
    result, k, k_prime = long_step(numbers)
    level = k + k_prime

    def rung(right) -> int:
        return score.rung(score.judge(numbers, np.where(right, result, 2 * result)))

    assert rung(level > 99) == 0
    assert [rung(level <= s) for s in (2, 3, 5, 7)] == [2, 3, 5, 7]
    assert rung((level <= 6) & (level != 4)) == 3
    assert rung((level <= 5) & ~((k == 1) & (k_prime == 4))) == 4, "one class of a level is missing"
    # Nine of ten of one class: 95% of the level it shares with another, and yet not learned.
    missed = (k == 1) & (k_prime == 2) & (np.cumsum((k == 1) & (k_prime == 2)) % 13 == 0)
    assert np.mean(~missed[level == 3]) > score.LEARNED and rung(~missed) == 2
    last = rung(level > 0)
    assert (level == last).sum() >= score.MEMBERS > (level == last + 1).sum()


def test_classes_are_ordered_by_what_they_fix():
    assert [f"{r:03b}" for r in score.classes(3)] == ["001", "101", "011", "111"]
    bits = 6
    residues = np.array(score.classes(bits))
    assert sorted(residues) == list(range(1, 2**bits, 2))
    level = score.class_level(residues, bits)
    assert (np.diff(level) >= 0).all()
    for r, s in zip(residues.tolist(), level.tolist(), strict=True):
        _, k, k_prime = long_step(r + 2**bits * np.arange(200))
        if s < bits:
            assert set((k + k_prime).tolist()) == {s}, "the residue fixes the level"
        else:
            assert (k + k_prime).min() >= bits


def test_by_class_is_by_the_last_binary_digits(numbers):
    result = long_step(numbers)[0]
    found = score.by_class(score.judge(numbers, np.where(numbers % 8 == 1, result, 0)), 3)
    assert found == {"001": 1.0, "101": 0.0, "011": 0.0, "111": 0.0}
    assert list(found) == ["001", "101", "011", "111"]
    some = numbers[numbers % 8 == 5]
    assert score.by_class(score.judge(some, some), 3) == {"101": 0.0}, "no number, no entry"


def test_the_table_by_k_counts_everything(numbers):
    judged = score.judge(numbers, long_step(numbers)[0])
    counts, right = score.table_by_k(judged, 4)
    assert counts.sum() == right.sum() == len(numbers)
    assert counts[0, 0] == np.sum((judged.k == 1) & (judged.k_prime == 1))
    assert counts[3, 3] == np.sum((judged.k >= 4) & (judged.k_prime >= 4))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (31, "27 -> 31 right (k=2, k'=1)"),
        (62, "27 -> 31 (k=2, k'=1): answer 62 = 2 x truth (taken for k=2, k'=0)"),
        (0, "27 -> 31 (k=2, k'=1): answer is not a number"),
        (65, "27 -> 31 (k=2, k'=1): answer 65 = 2.097 x truth"),
    ],
)
def test_an_answer_in_words(answer, expected):
    assert score.explain(27, answer) == expected


# ----------------------------------------------------------------------------------- baselines


def test_the_floor_is_right_for_a_quarter_and_no_constant_is_better(numbers):
    truth = long_step(numbers)[0]
    right = score.floor(numbers) == truth
    assert np.array_equal(right, numbers % 8 == 1)
    assert score.best_constant(numbers) == (1, 1)
    fives = numbers[numbers % 16 == 3]  # all of k = 2, k' = 2 or more
    assert score.best_constant(fives) == (2, 2)


def test_constants_do_not_overflow():
    n = np.array([10**12 - 1])
    for k in range(1, 13):
        assert int(score.constant(n, k, 1)[0]) == (3**k * 10**12 - 2**k) // 2 ** (k + 1)
