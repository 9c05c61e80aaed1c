"""The long Collatz step, numbers as digits in a base, and batches of examples.

A number is never both trained on and asked for: in a large range a fixed hash of the number
says which part it belongs to (training, validation, test), in a small one the odd numbers are
listed and split. Neither depends on the seed, so runs of several seeds are judged by the same
numbers.

Shapes: N numbers, B examples of a batch, L tokens.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Literal

import numpy as np
import torch

from timebox.settings import SettingError, within

LARGEST = 10**12  # inputs; see long_step for what it guards
FINITE = 1_000_000  # a range with at most so many odd numbers is listed and split
LARGEST_BASE = 1000
HARD = 10  # k + k' from which on balance leaves no number out
# Of 64 hash classes one is validation, one is test.
PARTS = 64
VALIDATION, TEST, TRAINING = 0, 1, 2
SPLIT_SALT = 0x636F6C6C61747A  # of the split: the same for every seed and range
GAMMA = np.uint64(0x9E3779B97F4A7C15)
POWERS_OF_3 = 3 ** np.arange(40, dtype=np.int64)  # 3**39 is the last that fits in 63 bits


# --- the long step ----------------------------------------------------------------------------


def long_step(n: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(result, k, k') of the long Collatz step of odd numbers 1 <= n <= 10**12, int64, exact.

    While the number is odd it becomes (3n + 1) / 2, which takes k >= 1 steps up to an even
    number, the apex; then it is halved k' >= 1 times until it is odd (Charton and Narayanan,
    2025). In closed form: n = 2^k m - 1 with m odd, apex = 3^k m - 1, k' the number of times 2
    divides the apex, result = apex / 2^k'.
    """
    n = np.asarray(n, dtype=np.int64)
    if n.size and (n.min() < 1 or n.max() > LARGEST or not (n & 1).all()):
        wrong = n[(n < 1) | (n > LARGEST) | (n & 1 == 0)].ravel()[0]
        raise ValueError(f"a long step is taken from an odd number from 1 to 10**12, not {wrong}")
    # Nothing overflows: 2^k <= n + 1 <= 10^12 + 1 < 2^40, so k <= 39, and
    # apex < (3/2)^39 (10^12 + 1) < 7.4e18 < 2^63. (The largest that occurs is 3^39 - 1 = 4.1e18.)
    k = twos(n + 1)
    apex = POWERS_OF_3[k] * ((n + 1) >> k) - 1
    halvings = twos(apex)
    return apex >> halvings, k, halvings


def twos(n: np.ndarray) -> np.ndarray:
    """How many times 2 divides each n > 0, int64."""
    # The lowest bit is a power of two, which a float holds exactly.
    return np.frexp((n & -n).astype(np.float64))[1].astype(np.int64) - 1


def largest_result(least: int, most: int) -> int:
    """The largest result of a long step from the odd numbers `least` to `most`."""
    # For each k only the two largest m count: of neighbours one has k' = 1, and with k' = 1 a
    # smaller m gives a smaller result; with k' >= 2 a result is less than half of those.
    numbers = []
    for k in range(1, (most + 1).bit_length()):
        m = (most + 1) >> k
        m -= 1 - m % 2
        numbers += [n for n in ((m << k) - 1, ((m - 2) << k) - 1) if least <= n]
    return int(long_step(np.array(numbers))[0].max())


# --- digits -----------------------------------------------------------------------------------


def vocabulary(base: int) -> int:
    """How many tokens there are: the digits 0 to base - 1, PAD, BOS and EOS in this order."""
    return base + 3


def pad(base: int) -> int:
    """The token of a place that holds no digit; never a digit's own number."""
    return base


def bos(base: int) -> int:
    """The token that begins an answer."""
    return base + 1


def eos(base: int) -> int:
    """The token that ends an answer."""
    return base + 2


def width(n: int, base: int) -> int:
    """How many digits n >= 0 has in `base`."""
    count = 1
    while n >= base:
        n //= base
        count += 1
    return count


def digits(
    n: np.ndarray, base: int, length: int, order: Literal["least", "most"] = "most"
) -> np.ndarray:
    """The digits of each n >= 0 as tokens, (N, length) int64; PAD where a number has none.

    "most": most significant digit first, PADs before it, so the units digit always has the
    last place. "least": units digit first, PADs at the end.
    """
    n = np.asarray(n, dtype=np.int64)
    tokens = np.full((length, len(n)), pad(base), dtype=np.int64)
    rest = n
    for place in range(length):
        quotient = rest // base
        digit = rest - quotient * base
        # A number ends where nothing is left; 0 itself is written 0.
        tokens[place] = digit if place == 0 else np.where(rest > 0, digit, pad(base))
        rest = quotient
    if rest.any():
        raise ValueError(
            f"{n[rest > 0][0]} has more than {length} digits in base {base}: it cannot be written"
        )
    return np.ascontiguousarray((tokens[::-1] if order == "most" else tokens).T)


def number(tokens: np.ndarray, base: int, order: Literal["least", "most"] = "most") -> np.ndarray:
    """The inverse of `digits`: int64 (N,); 0 for a row that is not the writing of a number."""
    tokens = np.asarray(tokens, dtype=np.int64)
    is_pad = tokens == pad(base)
    first = is_pad if order == "least" else is_pad[:, ::-1]  # units digit at place 0
    length = np.where(first.any(1), first.argmax(1), tokens.shape[1])
    body = tokens if order == "least" else tokens[:, ::-1]
    clean = (np.arange(tokens.shape[1]) < length[:, None]) != first
    return np.where(clean.all(1), _value(body, length, base), 0)


def write_answers(
    n: np.ndarray, base: int, length: int, order: Literal["least", "most"] = "most"
) -> np.ndarray:
    """Each number's digits, then EOS, then PAD: (N, length) int64, left-aligned in either order."""
    n = np.asarray(n, dtype=np.int64)
    tokens = digits(n, base, length - 1, "least")
    count = (tokens != pad(base)).sum(1)
    if order == "most":
        place = count[:, None] - 1 - np.arange(length - 1)
        turned = np.take_along_axis(tokens, np.maximum(place, 0), 1)
        tokens = np.where(place >= 0, turned, pad(base))
    answers = np.full((len(n), length), pad(base), dtype=np.int64)
    answers[:, :-1] = tokens
    answers[np.arange(len(n)), count] = eos(base)
    return answers


def read_answers(
    tokens: np.ndarray, base: int, order: Literal["least", "most"] = "most"
) -> np.ndarray:
    """The numbers that answers (N, L) of digits and EOS write, int64 (N,); 0 where there is none.

    What follows the first EOS is not looked at. No number: no EOS, anything but digits before
    it, nothing before it, 0 as the most significant digit, or a value beyond int64.
    """
    tokens = np.asarray(tokens, dtype=np.int64)
    if not tokens.shape[1]:
        return np.zeros(len(tokens), dtype=np.int64)
    is_end = tokens == eos(base)
    length = np.where(is_end.any(1), is_end.argmax(1), 0)
    place = np.arange(tokens.shape[1])
    if order == "most":  # units digit to place 0
        back = np.maximum(length[:, None] - 1 - place, 0)
        tokens = np.take_along_axis(tokens, back, 1)
    return _value(tokens, length, base)


def _value(tokens: np.ndarray, length: np.ndarray, base: int) -> np.ndarray:
    """The value of the first `length` digits of each row, units digit first; 0 if it is none."""
    rows, most = np.arange(len(tokens)), np.iinfo(np.int64).max
    inside = np.arange(tokens.shape[1]) < length[:, None]
    valid = (length > 0) & (((tokens >= 0) & (tokens < base)) | ~inside).all(1)
    if tokens.shape[1]:
        valid &= tokens[rows, np.maximum(length - 1, 0)] != 0
    value = np.zeros(len(tokens), dtype=np.int64)
    for place in reversed(range(tokens.shape[1])):
        digit = np.where(inside[:, place] & valid, tokens[:, place], 0)
        valid &= value <= (most - digit) // base
        value = np.where(valid, value * base + digit, 0)
    return value


# --- the data of a run ------------------------------------------------------------------------


class CollatzData:
    """Odd numbers of a range and their long steps, in batches that are a pure function of the step.

    A range of more than FINITE odd numbers is never listed: example i of the run is drawn from
    (seed, i), "uniform" over the odd numbers or "log"-uniform (as many numbers of each length),
    and drawn again while the hash of the number says that it is held out. An epoch is
    `epoch_examples` examples. A smaller range is listed and split 80/10/10 by a fixed hash, and an
    epoch is every training number once, in an order of (seed, epoch).

    Half of all numbers have k + k' <= 3. With `balance` b > 0 training gets a number of k + k' < 10
    only with the probability 2^(-b (10 - k - k')): those of the harder classes come more often.

    `validation` and `test`: distinct numbers, int64, in a fixed random order, the same for every
    seed; at most `validation_numbers` and `test_numbers`, and at most a tenth of a listed range
    (half of 1/64 of another one) each. "log" draws the few small numbers for training again and
    again, but judges by each at most once: small numbers are much rarer there than in training,
    and so losses and scores of the two are not those of the same mixture. `input_length` and
    `answer_length` (with EOS) are exact for the range.
    """

    def __init__(
        self,
        *,
        range_min: int,
        range_max: int,
        base: int,
        order: Literal["least", "most"],
        distribution: Literal["uniform", "log"],
        batch_size: int,
        epoch_examples: int,
        validation_numbers: int,
        test_numbers: int,
        seed: int,
        balance: float = 0.0,
    ):
        within("base", base, 2, LARGEST_BASE)
        within("range_min", range_min, 1, LARGEST)
        within("range_max", range_max, 1, LARGEST)
        self.least, self.most = range_min | 1, range_max - 1 + range_max % 2
        if self.least > self.most:
            raise SettingError(
                f"the range is empty: there is no odd number from range_min {range_min} to "
                f"range_max {range_max}"
            )
        within("batch_size", batch_size, 1, 10**9)
        within("epoch_examples", epoch_examples, 1, 10**9)
        within("validation_numbers", validation_numbers, 1, 10**6)
        within("test_numbers", test_numbers, 1, 10**6)
        within("balance", balance, 0, 1)
        if order not in ("least", "most"):
            raise SettingError(f"order must be 'least' or 'most', not {order!r}")
        if distribution not in ("uniform", "log"):
            raise SettingError(f"distribution must be 'uniform' or 'log', not {distribution!r}")
        self.base, self.order, self.distribution = base, order, distribution
        self.batch_size, self.seed, self.balance = batch_size, seed, balance
        self.count = (self.most - self.least) // 2 + 1  # odd numbers in the range
        self.input_length = width(self.most, base)
        self.answer_length = width(largest_result(self.least, self.most), base) + 1
        self.finite = self.count <= FINITE
        if self.finite:
            self._split(validation_numbers, test_numbers)
            self.examples = len(self.training)
        else:
            self.training = None
            self.validation = self._held_out(VALIDATION, validation_numbers)
            self.test = self._held_out(TEST, test_numbers)
            self.examples = epoch_examples
        self.steps = -(-self.examples // batch_size)
        self._order = lru_cache(2)(self._shuffle)
        plan = (self.least, self.most, base, order, distribution, batch_size, self.examples, seed)
        plan += (balance,) if balance else ()
        sha = hashlib.sha256(repr(("collatz", SPLIT_SALT, PARTS, plan)).encode())
        sha.update(self.validation.tobytes() + self.test.tobytes())
        self.digest = sha.hexdigest()[:16]

    def batch(self, step: int, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
        """This rank's part of the batch of `step`.

        "input" (B, input_length): see `digits`; "answer" (B, longest of the batch): see
        `write_answers`; "weight" (B,), which adds up to 1 over all ranks.
        """
        numbers = self.numbers(step)
        mine = numbers[rank::world]
        weight = np.full(len(mine), 1 / len(numbers), dtype=np.float32)
        if not len(mine):  # fewer examples than ranks: take part, count nothing
            mine, weight = numbers[:1], np.zeros(1, dtype=np.float32)
        return {**self.encode(mine), "weight": torch.from_numpy(weight)}

    def encode(self, numbers: np.ndarray) -> dict[str, torch.Tensor]:
        """ "input" (B, input_length) and "answer" (B, length of the longest) for odd numbers."""
        answers = self.answers(long_step(numbers)[0])
        longest = int((answers == eos(self.base)).argmax(1).max()) + 1
        return {
            "input": torch.from_numpy(self.inputs(numbers)),
            "answer": torch.from_numpy(np.ascontiguousarray(answers[:, :longest])),
        }

    def inputs(self, numbers: np.ndarray) -> np.ndarray:
        """What a model is given, (N, input_length) int64."""
        return digits(numbers, self.base, self.input_length, self.order)

    def answers(self, results: np.ndarray) -> np.ndarray:
        """What it shall write, (N, answer_length) int64."""
        return write_answers(results, self.base, self.answer_length, self.order)

    def read(self, tokens: np.ndarray) -> np.ndarray:
        """The numbers it wrote, int64 (N,), 0 where it wrote none."""
        return read_answers(tokens, self.base, self.order)

    def numbers(self, step: int) -> np.ndarray:
        """The training numbers of `step`, int64 (at most batch_size,)."""
        epoch, place = divmod(step, self.steps)
        start = place * self.batch_size
        end = min(start + self.batch_size, self.examples)
        if self.finite:
            return self.training[self._order(epoch)[start:end]]
        return self._drawn(
            np.arange(start, end, dtype=np.uint64) + np.uint64(epoch * self.examples)
        )

    def overlap(self) -> dict[str, int]:
        """How many numbers that judge a model are trained on, and how many are in both parts.

        In a listed range every training number is looked at. In a large one it is counted which
        validation and test numbers training could ever draw, by their hash, and besides which
        of them are among the first 300,000 numbers really drawn.
        """
        parts = {"validation": self.validation, "test": self.test}
        if self.finite:
            found = {name: np.isin(part, self.training) for name, part in parts.items()}
        else:
            drawn = self._drawn(np.arange(300_000, dtype=np.uint64))
            found = {
                name: np.isin(part, drawn) | (part_of(part) == TRAINING)
                for name, part in parts.items()
            }
        both = int(np.isin(self.validation, self.test).sum())
        return {**{name: int(hit.sum()) for name, hit in found.items()}, "both": both}

    def _split(self, validation_numbers: int, test_numbers: int) -> None:
        held = self.count // 10
        if not held:
            raise SettingError(
                f"the range from {self.least} to {self.most} has {self.count} odd numbers; to be "
                "split 80/10/10 into training, validation and test it needs at least 10"
            )
        if self.balance:
            raise SettingError(
                f"balance {self.balance:g} is for a range of more than {FINITE:,} odd numbers; "
                f"this one has {self.count:,}, and an epoch has each of them once"
            )
        if self.distribution != "uniform":
            raise SettingError(
                f"distribution {self.distribution!r} is for a range of more than {FINITE:,} odd "
                f"numbers; this one has {self.count:,}, and an epoch has each of them once"
            )
        odd = np.arange(self.least, self.most + 1, 2, dtype=np.int64)
        odd = odd[np.argsort(_mix(odd.astype(np.uint64) ^ np.uint64(SPLIT_SALT)), kind="stable")]
        self.validation = odd[:held][:validation_numbers]
        self.test = odd[held : 2 * held][:test_numbers]
        self.training = np.sort(odd[2 * held :])

    def _shuffle(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.examples)

    def _drawn(self, index: np.ndarray) -> np.ndarray:
        """The training numbers of examples `index`, uint64, of this run."""
        key = _mix(np.array([self.seed], dtype=np.uint64))
        bits = _mix(_mix(index + key))
        numbers = self._from_bits(bits)
        again = np.flatnonzero(self._refused(numbers, bits))
        while len(again):  # one in 32, more with balance: draw again, from the last draw's bits
            bits[again] = _mix(bits[again])
            numbers[again] = self._from_bits(bits[again])
            again = again[self._refused(numbers[again], bits[again])]
        return numbers

    def _refused(self, numbers: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Which of the numbers drawn training does not get: held out, or too easy this time."""
        held = part_of(numbers) != TRAINING
        if not self.balance:
            return held
        _, k, k_prime = long_step(numbers)
        share = 2.0 ** (self.balance * np.minimum(k + k_prime - HARD, 0))
        lot = (_mix(~bits) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return held | (lot >= share)

    def _held_out(self, part: int, wanted: int) -> np.ndarray:
        """`wanted` distinct numbers of a held-out part: the first that this distribution draws."""
        # Of a range barely too large to be listed at most half of the part is taken: the last
        # ones would take long to be drawn.
        wanted = min(wanted, self.count // PARTS // 2)
        key = _mix(np.array([SPLIT_SALT + part], dtype=np.uint64))
        found, chunks = np.zeros(0, dtype=np.int64), []
        start, many = 0, PARTS * min(wanted, 8192)
        while len(found) < wanted:
            index = np.arange(start, start + many, dtype=np.uint64)
            drawn = self._from_bits(_mix(_mix(index + key)))
            chunks.append(drawn[part_of(drawn) == part])
            start += many
            if sum(map(len, chunks)) >= wanted:
                everything = np.concatenate(chunks)
                # Each number once, in the order of the draws.
                found = everything[np.sort(np.unique(everything, return_index=True)[1])]
                chunks = [found]
        return found[:wanted].copy()

    def _from_bits(self, bits: np.ndarray) -> np.ndarray:
        """A number of the range for each 64 random bits."""
        if self.distribution == "uniform":
            # The remainder's bias is at most count / 2^64 < 3e-8 of any number's share.
            place = (bits % np.uint64(self.count)).astype(np.int64)
        else:
            # Number n stands for the reals from n to n + 2.
            share = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
            real = self.least * np.exp(share * np.log((self.most + 2) / self.least))
            place = np.clip((real - self.least) // 2, 0, self.count - 1).astype(np.int64)
        return self.least + 2 * place


def part_of(n: np.ndarray) -> np.ndarray:
    """Which part of a large range each number belongs to: VALIDATION, TEST or TRAINING."""
    kind = _mix(np.asarray(n).astype(np.uint64) ^ np.uint64(SPLIT_SALT)) >> np.uint64(58)
    return np.minimum(kind, np.uint64(TRAINING)).astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """64 well mixed bits of each uint64: the step of SplitMix64 (Steele, Lea and Flood, 2014)."""
    x = x + GAMMA
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
