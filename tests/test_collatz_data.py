"""Long steps, digits and batches: against definitions written down once more, plainly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from timebox.settings import SettingError
from timebox.tasks.collatz import data as collatz
from timebox.tasks.collatz.data import TRAINING, CollatzData, long_step, part_of


def made(**options) -> CollatzData:
    """The data of these options, and of small counts where none are given."""
    plain = {
        "range_min": 1, "range_max": 2**24, "base": 24, "order": "least",
        "distribution": "uniform", "batch_size": 256, "epoch_examples": 300_000,
        "validation_numbers": 2000, "test_numbers": 2000, "seed": 0,
    }  # fmt: skip
    return CollatzData(**{**plain, **options})


def plain_step(n: int) -> tuple[int, int, int]:
    """The definition, word for word, in Python's integers."""
    k = k_prime = 0
    while n % 2:
        n, k = (3 * n + 1) // 2, k + 1
    while n % 2 == 0:
        n, k_prime = n // 2, k_prime + 1
    return n, k, k_prime


def plain_digits(n: int, base: int) -> list[int]:
    """Most significant first."""
    found = []
    while n:
        n, digit = divmod(n, base)
        found.insert(0, digit)
    return found


def some_numbers() -> np.ndarray:
    """All small ones, random ones of every size, and those that climb highest."""
    rng = np.random.default_rng(0)
    drawn = [2 * rng.integers(0, 2**bits, 200) + 1 for bits in range(12, 39)]
    climbing = [2**k * m - 1 for k in range(1, 40) for m in (1, 3, 5) if 2**k * m <= 10**12]
    return np.concatenate([np.arange(1, 5000, 2), *drawn, climbing, [10**12 - 1]])


# ------------------------------------------------------------------------------- the long step


def test_the_long_step_is_the_definition_on_numbers_of_every_size():
    n = some_numbers()
    found = collatz.long_step(n)
    assert [tuple(map(int, row)) for row in zip(*found, strict=True)] == [
        plain_step(int(i)) for i in n
    ]
    assert all(part.dtype == np.int64 for part in found)


@pytest.mark.parametrize(
    ("n", "expected"), [(1, (1, 1, 1)), (27, (31, 2, 1)), (127, (1093, 7, 1)), (95, (91, 5, 3))]
)
def test_known_long_steps(n, expected):
    assert tuple(int(v[0]) for v in collatz.long_step(np.array([n]))) == expected


def test_no_long_step_of_the_range_overflows():
    """For each k the largest number with k ones at its end climbs highest."""
    assert max(3**k * ((10**12 + 1) >> k) for k in range(40)) < 2**63
    assert 2**40 > 10**12 + 1
    n = 3 * 2**38 - 1  # among the highest: its apex is 3^39 - 1
    assert int(collatz.long_step(np.array([n]))[0][0]) == (3**39 - 1) // 2


@pytest.mark.parametrize("n", [0, -1, 2, 10**12 + 1])
def test_a_number_that_has_no_long_step_here_is_refused(n):
    with pytest.raises(ValueError, match=f"not {n}$"):
        collatz.long_step(np.array([1, n]))


@pytest.mark.parametrize("range_", [(1, 1), (1, 3), (7, 7), (1, 99), (51, 77), (901, 1023)])
def test_the_largest_result_of_a_range_is_that_of_trying_all(range_):
    least, most = range_
    results = collatz.long_step(np.arange(least, most + 1, 2))[0]
    assert collatz.largest_result(least, most) == results.max()


def test_the_largest_result_of_every_small_range():
    results = collatz.long_step(np.arange(1, 400, 2))[0]
    for least in range(1, 60, 2):
        for most in range(least, 400, 2):
            expected = results[least // 2 : most // 2 + 1].max()
            assert collatz.largest_result(least, most) == expected, (least, most)


# ------------------------------------------------------------------------------------- digits


@pytest.mark.parametrize("base", [2, 3, 10, 24, 1000])
@pytest.mark.parametrize("order", ["least", "most"])
def test_digits_are_those_of_the_base_and_read_back(base, order):
    n = collatz.long_step(some_numbers())[0]
    length = collatz.width(int(n.max()), base)
    tokens = collatz.digits(n, base, length, order)
    assert tokens.shape == (len(n), length) and tokens.dtype == np.int64
    assert np.array_equal(collatz.number(tokens, base, order), n)
    for row, i in zip(tokens[:300], n[:300], strict=True):
        expected = plain_digits(int(i), base)
        padding = [base] * (length - len(expected))
        assert list(row) == (padding + expected if order == "most" else expected[::-1] + padding)


@pytest.mark.parametrize("base", [2, 3, 24, 1000])
@pytest.mark.parametrize("order", ["least", "most"])
def test_answers_are_digits_then_end_then_padding_and_read_back(base, order):
    n = collatz.long_step(some_numbers())[0]
    length = collatz.width(int(n.max()), base) + 1
    tokens = collatz.write_answers(n, base, length, order)
    assert np.array_equal(collatz.read_answers(tokens, base, order), n)
    for row, i in zip(tokens[:300], n[:300], strict=True):
        expected = plain_digits(int(i), base)
        expected = expected if order == "most" else expected[::-1]
        assert list(row) == expected + [base + 2] + [base] * (length - 1 - len(expected))


def test_padding_is_never_a_digit_and_no_two_tokens_are_one():
    for base in (2, 24, 1000):
        tokens = {collatz.pad(base), collatz.bos(base), collatz.eos(base)}
        assert len(tokens) == 3 and min(tokens) == base
        assert max(tokens) + 1 == collatz.vocabulary(base)
    zero = collatz.digits(np.array([0, 24]), 24, 3, "most")
    assert zero.tolist() == [[24, 24, 0], [24, 1, 0]], "0 is a digit like any other"


def test_a_number_too_long_to_be_written_is_refused():
    with pytest.raises(ValueError, match="more than 2 digits"):
        collatz.digits(np.array([1, 24**2]), 24, 2)


PAD, BOS, EOS = 10, 11, 12  # base 10


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ([1, 2, EOS, PAD], 12),
        ([1, 2, EOS, 7], 12),  # what follows the end is not looked at
        ([1, 0, 5, EOS], 105),  # a zero within is a digit
        ([1, 2, 3, 4], 0),  # no end
        ([EOS, 1, 2, PAD], 0),  # nothing
        ([1, PAD, 2, EOS], 0),
        ([BOS, 1, EOS, PAD], 0),
        ([1, 2, PAD, EOS], 0),
        ([0, 1, EOS, PAD], 0),  # a leading zero
        ([0, EOS, PAD, PAD], 0),
        ([1, 0, EOS, PAD], 10),
        ([-1, 1, EOS, PAD], 0),
    ],
)
def test_only_a_proper_writing_is_a_number(written, expected):
    tokens = np.array([written, [7, EOS, PAD, PAD]])
    assert collatz.read_answers(tokens, 10, "most").tolist() == [expected, 7]
    if EOS in written:  # the same, units digit first
        end = written.index(EOS)
        turned = np.array([written[:end][::-1] + written[end:]])
        assert collatz.read_answers(turned, 10, "least").tolist() == [expected]


def test_a_value_beyond_int64_is_no_number():
    def read(n: int) -> int:
        return int(collatz.read_answers(np.array([plain_digits(n, 10) + [EOS]]), 10, "most")[0])

    assert read(2**63 - 1) == 2**63 - 1
    assert read(2**63) == read(2**64 + 5) == read(10**30) == 0


def test_nothing_written_is_no_number():
    assert collatz.read_answers(np.zeros((2, 0), np.int64), 10).tolist() == [0, 0]


# --------------------------------------------------------------------------------- the batches


@pytest.fixture(scope="module")
def large():
    return made(batch_size=64, epoch_examples=1000)


@pytest.fixture(scope="module")
def small():
    return made(range_max=10_000, batch_size=64)


def numbers_of(data: CollatzData, batch: dict) -> np.ndarray:
    return collatz.number(batch["input"].numpy(), data.base, data.order)


@pytest.mark.parametrize("order", ["least", "most"])
@pytest.mark.parametrize("range_max", [10_000, 2**24, 10**12])
def test_a_batch_has_numbers_and_their_long_steps(order, range_max):
    data = made(range_max=range_max, order=order, batch_size=100)
    batch = data.batch(3)
    n = numbers_of(data, batch)
    assert len(n) == 100 and (n % 2 == 1).all() and n.max() <= range_max
    assert data.read(batch["answer"].numpy()).tolist() == [plain_step(int(i))[0] for i in n]
    assert batch["input"].shape == (100, data.input_length)
    assert batch["answer"].shape[1] <= data.answer_length
    assert (batch["answer"] != data.base).any(0).all(), "no column of nothing but padding"
    assert batch["input"].dtype == batch["answer"].dtype == torch.int64


def test_lengths_are_exact_for_the_range():
    data = made(range_min=1, range_max=99, base=10)
    assert data.input_length == 2
    assert data.answer_length == len(str(collatz.largest_result(1, 99))) + 1


def test_examples_are_a_function_of_seed_and_place_whatever_the_batch_size():
    one, other = made(batch_size=50), made(batch_size=25)
    assert np.array_equal(one.numbers(0), np.concatenate([other.numbers(0), other.numbers(1)]))
    assert not np.array_equal(one.numbers(0), one.numbers(1))
    assert not np.array_equal(one.numbers(0), made(batch_size=50, seed=1).numbers(0))


def test_an_epoch_of_a_large_range_never_repeats_the_one_before(large):
    first = np.concatenate([large.numbers(step) for step in range(large.steps)])
    second = np.concatenate([large.numbers(large.steps + step) for step in range(large.steps)])
    assert len(first) == len(second) == large.examples == 1000
    assert len(np.intersect1d(first, second)) < 5  # of 8 million: by chance alone


def test_an_epoch_of_a_small_range_has_every_training_number_once(small):
    epochs = [
        np.concatenate([small.numbers(e * small.steps + s) for s in range(small.steps)])
        for e in range(2)
    ]
    assert small.examples == 4000
    assert np.array_equal(np.sort(epochs[0]), np.sort(epochs[1]))
    assert len(np.unique(epochs[0])) == 4000 and not np.array_equal(*epochs)


def test_a_small_range_is_split_completely(small):
    parts = [small.training, small.validation, small.test]
    assert [len(part) for part in parts] == [4000, 500, 500]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(1, 10_001, 2))


def test_the_split_does_not_depend_on_the_seed():
    for range_max in (10_000, 2**24):
        a, b = (made(range_max=range_max, seed=seed) for seed in (0, 1))
        assert np.array_equal(a.validation, b.validation) and np.array_equal(a.test, b.test)
        assert a.digest != b.digest


@pytest.mark.parametrize(
    "options",
    [
        {"range_max": 10_000},
        {"range_max": 2**22, "epoch_examples": 300_000},
        {"range_max": 2**22, "distribution": "log"},
    ],
)
def test_no_judged_number_is_trained_on(options):
    data = made(**options)
    assert data.overlap() == {"validation": 0, "test": 0, "both": 0}
    judged = np.concatenate([data.validation, data.test])
    assert len(np.unique(judged)) == len(judged)
    for step in (0, 1, data.steps, 5 * data.steps + 2):  # in any epoch
        assert not np.isin(data.numbers(step), judged).any()


def test_the_overlap_is_counted_not_claimed():
    for range_max in (10_000, 2**24):
        data = made(range_max=range_max)
        data.test = np.append(data.test, [data.numbers(0)[0], data.validation[0]])
        assert data.overlap() == {"validation": 0, "test": 1, "both": 1}


def test_every_held_out_number_of_a_large_range_stays_out_of_all_training():
    """Whole classes are held out, so numbers that were not picked are not trained on either."""
    data = made(range_max=2**22)
    drawn = data._drawn(np.arange(200_000, dtype=np.uint64))
    assert (collatz.part_of(drawn) == collatz.TRAINING).all()
    assert (collatz.part_of(data.validation) == collatz.VALIDATION).all()
    assert (collatz.part_of(data.test) == collatz.TEST).all()


def test_uniform_numbers_are_uniform_and_their_classes_geometric():
    data = made(range_max=10**12)
    n = data._drawn(np.arange(200_000, dtype=np.uint64))
    counts = np.histogram(n, 20, (0, 10**12))[0]
    assert np.abs(counts / 10_000 - 1).max() < 0.05  # five standard deviations
    _, k, k_prime = collatz.long_step(n)
    for a in (1, 2, 3):
        assert np.mean(k == a) == pytest.approx(2.0**-a, rel=0.03)
        assert np.mean(k_prime == a) == pytest.approx(2.0**-a, rel=0.03)
    assert np.mean(k + k_prime == 2) == pytest.approx(0.25, rel=0.03)


def test_log_numbers_have_every_length_alike():
    data = made(range_max=10**12, distribution="log", base=10)
    n = data._drawn(np.arange(120_000, dtype=np.uint64))
    lengths = np.bincount([len(str(i)) for i in n], minlength=13)[1:13]
    # In one digit there are only five numbers, and of those some are held out.
    assert np.abs(lengths[1:] / 10_000 - 1).max() < 0.06
    assert n.min() == 1 and n.max() > 9 * 10**11


def test_small_log_numbers_are_drawn_again_and_again_but_judged_once():
    data = made(range_max=10**12, distribution="log")
    drawn = data._drawn(np.arange(20_000, dtype=np.uint64))
    assert (drawn < 1000).mean() > 0.2
    for judged in (data.validation, data.test):
        assert len(np.unique(judged)) == len(judged)
        assert 0 < (judged < 1000).sum() <= 500 / collatz.PARTS * 3


def test_batches_of_a_large_range_keep_nothing(large):
    assert large.training is None
    assert not any(
        isinstance(v, np.ndarray) and v.size > 20_000 for v in vars(made(range_max=10**12)).values()
    )


@pytest.mark.parametrize("world", [1, 3, 100])
def test_ranks_share_a_batch(large, world):
    for step in (0, large.steps - 1):
        parts = [large.batch(step, rank, world) for rank in range(world)]
        assert sum(float(part["weight"].sum()) for part in parts) == pytest.approx(1, abs=1e-5)
        assert all(len(part["weight"]) for part in parts)
        counted = [numbers_of(large, p)[p["weight"].numpy() > 0] for p in parts]
        assert sorted(np.concatenate(counted)) == sorted(large.numbers(step))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": 1}, "base must be from 2 to 1,000, not 1$"),
        ({"base": 1001}, "base"),
        ({"range_max": 0}, "range_max must be from 1 to 1,000,000,000,000, not 0"),
        ({"range_max": 10**12 + 1}, "range_max"),
        ({"range_min": 0}, "range_min"),
        ({"range_min": 200, "range_max": 100}, "empty"),
        ({"range_min": 100, "range_max": 100}, "empty"),
        ({"range_max": 18}, "9 odd numbers.*at least 10"),
        ({"range_max": 10_000, "distribution": "log"}, "distribution 'log' is for"),
        ({"batch_size": 0}, "batch_size"),
        ({"test_numbers": 0}, "test_numbers"),
        ({"order": "middle"}, "order"),
        ({"distribution": "normal"}, "distribution"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(options, message):
    with pytest.raises(SettingError, match=message):
        made(**options)


def test_the_smallest_ranges_that_can_be():
    data = made(range_max=20)
    assert [len(p) for p in (data.training, data.validation, data.test)] == [8, 1, 1]
    # Barely too large to be listed: as many held-out numbers as there are with ease.
    data = made(range_max=2 * collatz.FINITE + 2, test_numbers=10**6)
    assert not data.finite and 7000 < len(data.test) < 8000


def test_what_the_digest_names():
    options = {"range_max": 2**22, "epoch_examples": 1000}
    digests = {
        made(**{**options, **other}).digest
        for other in (
            {}, {"base": 10}, {"order": "most"}, {"range_min": 3}, {"range_max": 2**23},
            {"distribution": "log"}, {"batch_size": 9}, {"epoch_examples": 9}, {"seed": 9},
            {"test_numbers": 9},
        )
    }  # fmt: skip
    assert len(digests) == 10
    assert made(**options).digest == made(**options).digest


def test_balance_draws_the_rare_classes_more_often_by_the_factor_it_says():
    """The share of level s becomes proportional to (s - 1) 2^-s 2^(-b (10 - s)) below level 10."""
    data = made(balance=0.5, batch_size=20_000)
    numbers = np.concatenate([data.numbers(step) for step in range(3)])
    _, k, k_prime = long_step(numbers)
    levels = np.arange(2, 30)
    wanted = (levels - 1) * 2.0**-levels * 2.0 ** (0.5 * np.minimum(levels - 10, 0))
    wanted /= wanted.sum()
    for level, share in zip(levels[:9], wanted, strict=False):
        assert (k + k_prime == level).mean() == pytest.approx(share, rel=0.1), level
    assert (part_of(numbers) == TRAINING).all()
    assert np.array_equal(made(balance=0.5, batch_size=20_000).numbers(1), data.numbers(1))
    assert data.digest != made(batch_size=20_000).digest
    assert np.array_equal(data.test, made().test), "what judges is as it was"


def test_balance_is_refused_where_it_cannot_be():
    with pytest.raises(SettingError, match="balance must be from 0 to 1, not 2"):
        made(balance=2)
    with pytest.raises(SettingError, match="balance 0.5 is for a range of more than"):
        made(balance=0.5, range_max=10_000)
