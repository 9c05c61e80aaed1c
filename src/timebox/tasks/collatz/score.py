"""How answers are judged: exactly, by the loop lengths they imply, and by what went wrong.

Only the whole number counts: a result with one wrong digit is as wrong as any other. What a
wrong answer can tell is which loop lengths (k, k') the model took the number for: in the class of
(k, k') the long step is affine, result = (3^k n + 3^k - 2^k) / 2^(k + k'), so an answer can be
asked which k and k' would have made it. One that no k and k' explain may still be of the right
size.

Shapes: N numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from timebox.tasks.collatz.data import long_step, twos

RIGHT = "right"
# What an answer can be, in the order of their test; all but the first are errors.
KINDS = {
    RIGHT: "the long step",
    "power_of_two": "the truth times a power of two, exactly: too few halvings",
    "slip": "off by at most 16: the right loop lengths and a small slip",
    "near_power_of_two": "near the truth times a power of two: the wrong number of halvings",
    "power_of_three_halves": "near the truth times (3/2)^a 2^l: the wrong number of up-steps",
    "wrong_digits": "within 5% of the truth: the right size, wrong digits",
    "other_number": "another number, which no loop lengths explain",
    "not_a_number": "no end, or something other than digits before it",
}
LOOP_LENGTHS = ("power_of_two", "near_power_of_two", "power_of_three_halves")
# How far from what loop lengths give an answer may lie and still be taken for theirs. As many
# pairs are tried, the second bound keeps chance out: of answers drawn at random it explains 1 in
# 30 where numbers go to 10,000, and 1 in 600 where they go to 2^24.
NEAR, NEAR_SHARE = 16, 1024
SIZE_SHARE = 20  # an answer within the 20th part of the truth has the right size
NONE = -1  # a loop length where no pair explains the answer
TOP_LEVEL = 13  # k + k' from here on are counted together
LEARNED = 0.95  # a class counts as learned above this
MEMBERS = 10  # and as seen from so many numbers on
CHUNK = 16384  # numbers whose 40 hypotheses are looked at in one go


class Judged(NamedTuple):
    """The verdict on N answers, as arrays (N,); an answer of 0 is no number.

    `implied_k` and `implied_k_prime` are NONE where no loop lengths explain the answer; `kind`
    is the place in KINDS.
    """

    n: np.ndarray
    answer: np.ndarray
    truth: np.ndarray
    k: np.ndarray
    k_prime: np.ndarray
    implied_k: np.ndarray
    implied_k_prime: np.ndarray
    kind: np.ndarray

    @property
    def right(self) -> np.ndarray:
        return self.kind == 0

    @property
    def level(self) -> np.ndarray:
        return self.k + self.k_prime


def judge(n: np.ndarray, answers: np.ndarray) -> Judged:
    """What each of `answers` to odd numbers `n` is; both int64 (N,)."""
    n, answers = np.asarray(n, dtype=np.int64), np.asarray(answers, dtype=np.int64)
    truth, k, k_prime = long_step(n)
    names = list(KINDS)
    kind = np.full(len(n), names.index("other_number"))
    kind[np.abs(answers - truth) <= truth // SIZE_SHARE] = names.index("wrong_digits")
    kind[answers <= 0] = names.index("not_a_number")
    right = answers == truth
    kind[right] = 0
    # The truth is odd: where it divides the answer, a power of two is left or it is another number.
    ratio = np.where(answers > 0, answers // truth, 0)
    doubled = (ratio > 1) & (ratio & (ratio - 1) == 0) & (ratio * truth == answers)
    kind[doubled] = names.index("power_of_two")
    implied_k, implied_k_prime = np.full(len(n), NONE), np.full(len(n), NONE)
    implied_k[right], implied_k_prime[right] = k[right], k_prime[right]
    halvings = k_prime - twos(np.maximum(ratio, 1))
    known = doubled & (halvings >= 0)  # fewer than no halvings are no loop length
    implied_k[known], implied_k_prime[known] = k[known], halvings[known]

    rest = np.flatnonzero((answers > 0) & ~right & ~doubled)
    for begin in range(0, len(rest), CHUNK):
        part = rest[begin : begin + CHUNK]
        implied_k[part], implied_k_prime[part] = _implied(n[part], answers[part], k[part])
    found = np.zeros(len(n), dtype=bool)
    found[rest] = implied_k[rest] != NONE
    same_k, same = implied_k == k, implied_k_prime == k_prime
    kind[found & ~same_k] = names.index("power_of_three_halves")
    kind[found & same_k & ~same] = names.index("near_power_of_two")
    kind[found & same_k & same] = names.index("slip")
    return Judged(n, answers, truth, k, k_prime, implied_k, implied_k_prime, kind)


def _implied(n: np.ndarray, answers: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The loop lengths that explain each answer > 0, those nearest to the true k first."""
    lengths = np.arange(40)  # up-steps that are tried: 0 for a copy, never more than n has bits
    # What is left after K up-steps, and the number of halvings that comes nearest to the answer.
    apex = 1.5**lengths * (n[:, None] + 1.0) - 1
    exact = np.log2(apex / answers[:, None])
    halvings = np.maximum(np.rint(exact), 0)
    hopeful = np.abs(exact - halvings) < 2 / NEAR_SHARE
    hopeful &= 2.0**lengths <= n[:, None] + 1.0
    found = np.full(len(n), NONE), np.full(len(n), NONE)
    for row in np.flatnonzero(hopeful.any(1)):
        hypotheses = np.flatnonzero(hopeful[row])
        for up in hypotheses[np.argsort(np.abs(hypotheses - k[row]), kind="stable")]:
            down = int(halvings[row, up])
            if _explains(int(n[row]), int(answers[row]), int(up), down):
                found[0][row], found[1][row] = up, down
                break
    return found


def _explains(n: int, answer: int, k: int, k_prime: int) -> bool:
    """Whether k up-steps and k' halvings of n come near enough to `answer`; in exact integers."""
    value, scale = 3**k * (n + 1) - 2**k, 2 ** (k + k_prime)
    off = abs(answer * scale - value)
    return off <= NEAR * scale and NEAR_SHARE * off <= value


# --- what many verdicts say -------------------------------------------------------------------


def summary(judged: Judged, class_bits: int = 5) -> dict:
    """Shares of 1 over all numbers, and in dicts by k, by level k + k', by class and by error.

    "loop_lengths_told": answers that imply loop lengths; of these, "k_exact" and "k_prime_exact"
    are the shares in which they are the input's own and "loop_length_errors" the mean absolute
    differences; absent where no answer implies any. "error_kinds" and "wrong_loop_lengths" are
    shares of the wrong answers.
    "rung": see `rung`. A class, a level or a k without a number has no entry.
    """
    right, count = judged.right, len(judged.n)
    told = judged.implied_k != NONE
    result: dict = {"exact": _mean(right), "loop_lengths_told": _mean(told)}
    errors = {}
    if told.any():
        for name, true, implied in (
            ("k", judged.k, judged.implied_k),
            ("k_prime", judged.k_prime, judged.implied_k_prime),
        ):
            off = np.abs(true - implied)[told]
            result[f"{name}_exact"], errors[name] = _mean(off == 0), _mean(off)
    kinds = {name: int((judged.kind == i).sum()) for i, name in enumerate(KINDS)}
    wrong = count - kinds.pop(RIGHT)
    if wrong:
        result["wrong_loop_lengths"] = sum(kinds[name] for name in LOOP_LENGTHS) / wrong
    return {
        **result,
        "rung": rung(judged),
        "items": count,
        "loop_length_errors": errors,
        "error_kinds": {name: kinds[name] / wrong for name in kinds} if wrong else {},
        "by_k": {str(k): _mean(right[judged.k == k]) for k in np.unique(judged.k)},
        "by_level": by_level(judged),
        "by_class": by_class(judged, class_bits),
    }


def by_level(judged: Judged) -> dict[str, float]:
    """Accuracy by k + k', from "2" to "12" and "13+"."""
    level = np.minimum(judged.level, TOP_LEVEL)
    return {level_name(s): _mean(judged.right[level == s]) for s in np.unique(level)}


def level_name(level: int) -> str:
    """The name of a level in `by_level`."""
    return f"{TOP_LEVEL}+" if level >= TOP_LEVEL else str(level)


def by_class(judged: Judged, bits: int) -> dict[str, float]:
    """Accuracy by the last `bits` binary digits of n, in the order of `classes`."""
    residue = judged.n % 2**bits
    found = {}
    for each in classes(bits):
        inside = judged.right[residue == each]
        if len(inside):
            found[f"{each:0{bits}b}"] = _mean(inside)
    return found


def classes(bits: int) -> list[int]:
    """The odd residues modulo 2^bits by increasing k + k', where they fix it, then the others.

    The numbers of one (k, k') are exactly one residue modulo 2^(k + k' + 1); of a residue that
    fixes nothing more is known than k + k' >= bits.
    """
    residues = np.arange(1, 2**bits, 2)
    level = class_level(residues, bits)
    return [int(r) for r in residues[np.lexsort((residues, long_step(residues)[1], level))]]


def class_level(residues: np.ndarray, bits: int) -> np.ndarray:
    """k + k' of the numbers with these last bits; `bits` where it is at least that."""
    _, k, k_prime = long_step(residues)
    return np.minimum(k + k_prime, bits)


def rung(judged: Judged) -> int:
    """The highest s such that the classes (k, k') with k + k' <= s are learned; 0 if not even 2.

    Learned is more than 95% right: each class with 10 numbers or more by itself, and the level
    as a whole. The first level with fewer than 10 numbers ends it, for lack of evidence.
    """
    level = 2
    while True:
        here = judged.level == level
        judging = [here] + [here & (judged.k == k) for k in range(1, level)]
        counts = [int(each.sum()) for each in judging]
        shares = [
            _mean(judged.right[e]) for e, c in zip(judging, counts, strict=True) if c >= MEMBERS
        ]
        if counts[0] < MEMBERS or min(shares) <= LEARNED:
            return level - 1 if level > 2 else 0
        level += 1


def ladder(level: int) -> float:
    """The accuracy of whoever is right exactly where k + k' <= level, on uniform odd numbers.

    k and k' are independent and geometric, so level s has the share (s - 1) / 2^s.
    """
    return 1 - (level + 1) / 2**level if level >= 2 else 0.0


def table_by_k(judged: Judged, most: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and right answers by (k, k'), (most, most); the last row and column are "or more"."""
    place = np.minimum(judged.k, most) - 1, np.minimum(judged.k_prime, most) - 1
    counts, right = np.zeros((2, most, most), dtype=np.int64)
    np.add.at(counts, place, 1)
    np.add.at(right, place, judged.right)
    return counts, right


def explain(n: int, answer: int) -> str:
    """One answer in a line: `27 -> 31 right`, or what is wrong with it."""
    found = judge(np.array([n]), np.array([answer]))
    truth, k, k_prime = int(found.truth[0]), int(found.k[0]), int(found.k_prime[0])
    kind = list(KINDS)[found.kind[0]]
    if kind == RIGHT:
        return f"{n} -> {truth} right (k={k}, k'={k_prime})"
    start = f"{n} -> {truth} (k={k}, k'={k_prime}): answer "
    if kind == "not_a_number":
        return start + "is not a number"
    start += str(answer)
    up, down = int(found.implied_k[0]), int(found.implied_k_prime[0])
    taken = f" (taken for k={up}, k'={down})" if up != NONE else ""
    if kind == "power_of_two":
        return f"{start} = {answer // truth} x truth{taken}"
    if kind == "slip":
        return f"{start} = truth {answer - truth:+d}"
    digits = ": the right size, wrong digits" if kind == "wrong_digits" else ""
    return f"{start} = {answer / truth:.4g} x truth{taken}{digits}"


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else 0.0


# --- answers that cost nothing ----------------------------------------------------------------


def constant(n: np.ndarray, k: int = 1, k_prime: int = 1) -> np.ndarray:
    """The result if every number had these loop lengths, rounded down; at most k = 12."""
    return np.asarray(n, dtype=np.int64) * 3**k + (3**k - 2**k) >> k + k_prime


def floor(n: np.ndarray) -> np.ndarray:
    """The floor submission: k = k' = 1, that is (3n + 1) / 4, right for n = 1 modulo 8."""
    return constant(n)


def best_constant(n: np.ndarray, most: int = 6) -> tuple[int, int]:
    """The loop lengths which, taken for all numbers `n`, are right most often."""
    truth = long_step(n)[0]
    pairs = [(k, kk) for k in range(1, most + 1) for kk in range(1, most + 1)]
    return max(pairs, key=lambda pair: _mean(constant(n, *pair) == truth))
