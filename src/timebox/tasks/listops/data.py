"""Operations on lists: every distinct input belongs to one part, and batches are drawn from it.

An input is an operation and a list of values. Inputs are made distinct and split first; only then
are those of the training part repeated, where the wanted size has more examples than there are
inputs. So nothing that is tested was ever trained on, whatever the size.

Shapes: N inputs or examples, B examples of a batch, M items of the longest list, L = M + 2 tokens.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from timebox.settings import SettingError

OPERATIONS = ("First", "Second", "Last", "Max", "Min")
SIZES = {"small": 1_000, "medium": 10_000, "large": 100_000}
PARTS = ("training", "validation", "test")
MOST_ITEMS, MOST_VALUE = 20, 99
NOTHING = -1  # in a list, behind its last item
PAD = 0
END = 1 + len(OPERATIONS)  # the closing bracket: it says where a list ends
FIRST_VALUE = END + 1
# Up to so many unseen inputs are all answered in the end, beside the test inputs.
UNSEEN_MOST = 20_000


class Inputs(NamedTuple):
    """N inputs: which of OPERATIONS each asks for, and its list with NOTHING behind the end."""

    operation_N: np.ndarray
    items_NM: np.ndarray

    def __getitem__(self, rows):  # rows of both, as if this were one array
        return Inputs(self.operation_N[rows], self.items_NM[rows])

    def __len__(self) -> int:
        return len(self.operation_N)

    @property
    def length_N(self) -> np.ndarray:
        """How many items each list has."""
        return (self.items_NM != NOTHING).sum(1)

    def texts(self) -> list[str]:
        """Each input as a reader would write it, such as "Max(3, 7, 1)"."""
        return [
            f"{OPERATIONS[operation]}({', '.join(map(str, items[items != NOTHING]))})"
            for operation, items in zip(self.operation_N, self.items_NM, strict=True)
        ]

    def keys(self) -> list[tuple[int, bytes]]:
        """Something hashable for each input: equal for equal inputs, and for those alone."""
        return [
            (int(operation), items[items != NOTHING].astype(np.uint8).tobytes())
            for operation, items in zip(self.operation_N, self.items_NM, strict=True)
        ]


def answers(inputs: Inputs) -> np.ndarray:
    """The right answer to each input, (N,)."""
    items_NM, every = inputs.items_NM, np.arange(len(inputs))
    if not len(inputs):
        return np.zeros(0, np.int64)
    by_operation = (
        items_NM[:, 0],
        items_NM[:, 1],
        items_NM[every, inputs.length_N - 1],
        items_NM.max(1),
        np.where(items_NM == NOTHING, MOST_VALUE + 1, items_NM).min(1),
    )
    return np.stack(by_operation)[inputs.operation_N, every].astype(np.int64)


def encode(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (N, L): the operation, the items, END, PAD; and the mask, False where PAD is."""
    rows, width = inputs.items_NM.shape
    tokens_NL = np.full((rows, width + 2), PAD, np.int64)
    tokens_NL[:, 0] = 1 + inputs.operation_N
    there = inputs.items_NM != NOTHING
    tokens_NL[:, 1:-1] = np.where(there, inputs.items_NM + FIRST_VALUE, PAD)
    tokens_NL[np.arange(rows), 1 + inputs.length_N] = END
    longest = int(inputs.length_N.max(initial=0)) + 2
    tokens_NL = torch.from_numpy(tokens_NL[:, :longest])
    return tokens_NL, tokens_NL != PAD


def question(text: str, max_value: int) -> Inputs:
    """What `Inputs.texts` made `text` of, such as "Max(3, 7, 1)"; ValueError if it is none."""
    found = re.fullmatch(r"\s*(\w+)\s*\(([\d\s,]+)\)\s*", text)
    values = found[2].split(",") if found else []
    if not found or not all(value.strip().isdigit() for value in values):
        raise ValueError(f"a question reads like Max(3, 7, 1), not {text!r}")
    if found[1] not in OPERATIONS:
        raise ValueError(f"the operation is one of {', '.join(OPERATIONS)}, not {found[1]!r}")
    items = [int(value) for value in values]
    if not 2 <= len(items) <= MOST_ITEMS or max(items) > max_value:
        raise ValueError(
            f"a list has 2 to {MOST_ITEMS} items from 0 to {max_value}, so {text!r} is none"
        )
    return Inputs(np.array([OPERATIONS.index(found[1])]), np.array([items], np.int16))


def word(token: int) -> str:
    """What `token` stands for."""
    if token < FIRST_VALUE:
        return ("PAD", *OPERATIONS, "END")[token]
    return str(token - FIRST_VALUE)


def lengths(name: str, text: str) -> range:
    """The list lengths that "3" or "2-20" stands for; a SettingError says what is wrong with it."""
    first, dash, last = text.strip().partition("-")
    try:
        least, most = int(first), int(last if dash else first)
    except ValueError:
        raise SettingError(
            f"{name} must be a number of items such as 3, or a range such as 2-20, not {text!r}"
        ) from None
    if least > most:
        raise SettingError(f"{name} must be a range from a smaller to a larger number, not {text}")
    if least < 2:
        raise SettingError(
            f"{name} must be at least 2, not {least}: with fewer there is no Second item to ask for"
        )
    if most > MOST_ITEMS:
        raise SettingError(f"{name} must be at most {MOST_ITEMS}, not {most}")
    return range(least, most + 1)


class ListData:
    """The inputs of every part, and the training part as batches; see `timebox.task.Data`.

    `size` asks for so many examples, 8 in 10 of them for training, 1 for validation, 1 for test;
    each operation has the same number in each part. Lists have each of the lengths `items`
    equally often, as far as there are so many distinct ones; those of the test part have the
    lengths `test_items` where these are given. `seed` decides which input is in which part.
    """

    def __init__(
        self,
        seed: int,
        size: str,
        items: range,
        max_value: int,
        batch_size: int,
        test_items: range | None = None,
    ):
        self.seed, self.max_value, self.batch_size = seed, max_value, batch_size
        self.items, self.test_items = items, test_items
        self.width = max(items[-1], test_items[-1] if test_items else 0)
        wanted = SIZES[size] // len(OPERATIONS)
        tenth = wanted // 10
        parts: dict[str, list[tuple[int, np.ndarray]]] = {name: [] for name in PARTS}
        for k in range(len(OPERATIONS)):
            rng = np.random.default_rng([seed, k])
            lists = distinct_lists(items, max_value, wanted, self.width, rng)
            if len(lists) < 10:
                raise SettingError(
                    f"items {_range(items)} and max_value {max_value} make only {len(lists)} "
                    "distinct lists, and 10 are needed to split them 80/10/10: raise either"
                )
            held = len(lists) // 10
            parts["validation"].append((k, lists[:held]))
            if test_items is None:
                parts["test"].append((k, lists[held : 2 * held]))
                lists = lists[2 * held :]
            else:
                other = distinct_lists(test_items, max_value, tenth, self.width, rng)
                parts["test"].append((k, other))
                lists = lists[held:]
            parts["training"].append((k, lists[: wanted - 2 * tenth]))
        self.parts = {
            name: _shuffled(_joined(by_operation), np.random.default_rng([seed, 99, which]))
            for which, (name, by_operation) in enumerate(parts.items())
        }
        self.row_N = self._repeated(wanted - 2 * tenth)
        training = self.parts["training"]
        self.tokens_NL, self.mask_NL = encode(training)
        self.answer_N = torch.from_numpy(answers(training))
        self.examples = len(self.row_N)
        self.steps = -(-self.examples // batch_size)
        sha = hashlib.sha256(repr((seed, batch_size, max_value, self.examples)).encode())
        for part in self.parts.values():
            sha.update(part.operation_N.tobytes() + part.items_NM.tobytes())
        self.digest = sha.hexdigest()[:16]
        self._order = lru_cache(2)(self._shuffle)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
        """This rank's part of the batch of `step`: a function of the seed and the step alone.

        "tokens" (B, L), "mask" (B, L, False where PAD is), "answer" (B,), "weight" (B,).
        """
        epoch, index = divmod(step, self.steps)
        whole = self._order(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        rows, weight = whole[rank::world], 1 / len(whole)
        if not len(rows):
            rows, weight = whole[:1], 0.0
        mask_BL = self.mask_NL[rows]
        longest = int(mask_BL.sum(1).max())
        return {
            "tokens": self.tokens_NL[rows, :longest],
            "mask": mask_BL[:, :longest],
            "answer": self.answer_N[rows],
            "weight": torch.full((len(rows),), weight),
        }

    def overlap(self) -> int:
        """How many distinct inputs are in more than one part, counted from the parts themselves."""
        keys = [set(part.keys()) for part in self.parts.values()]
        return sum(map(len, keys)) - len(set.union(*keys))

    def other_unseen(self) -> Inputs:
        """All inputs of the training lengths that are in no part; none where they are too many.

        In a small space they resolve what the few test inputs cannot.
        """
        base = self.max_value + 1
        if self.test_items or len(OPERATIONS) * sum(base**n for n in self.items) > UNSEEN_MOST:
            return self.parts["test"][:0]
        rng = np.random.default_rng(0)
        lists = distinct_lists(self.items, self.max_value, UNSEEN_MOST, self.width, rng)
        everything = _joined([(k, lists) for k in range(len(OPERATIONS))])
        taken = {key for part in self.parts.values() for key in part.keys()}
        return everything[np.array([key not in taken for key in everything.keys()], dtype=bool)]

    def _repeated(self, wanted: int) -> torch.Tensor:
        """Rows of the training part, `wanted` for each operation, all about equally often."""
        operation_N = self.parts["training"].operation_N
        rows = [np.resize(np.flatnonzero(operation_N == k), wanted) for k in range(len(OPERATIONS))]
        return torch.from_numpy(np.concatenate(rows))

    def _shuffle(self, epoch: int) -> torch.Tensor:
        order = np.random.default_rng([self.seed, 7, epoch]).permutation(self.examples)
        return self.row_N[torch.from_numpy(order)]


def distinct_lists(
    items: range, max_value: int, wanted: int, width: int, rng: np.random.Generator
) -> np.ndarray:
    """Up to `wanted` distinct lists in random order, (N, `width`), NOTHING behind each end.

    All lengths equally often; where a length has fewer distinct lists the others have more.
    """
    base = max_value + 1
    left, found = wanted, []
    for done, length in enumerate(items):  # the shortest, of which there are fewest, first
        share = -(-left // (len(items) - done))
        count = min(share, base**length)
        left -= count
        if base**length <= 4 * count:
            number = rng.permutation(base**length)[:count]
            lists = number[:, None] // base ** np.arange(length) % base
        else:
            lists = np.zeros((0, length), np.int64)
            while len(lists) < count:  # a quarter of the space at most, so this soon ends
                more = rng.integers(0, base, (count, length))
                lists = np.unique(np.concatenate((lists, more)), axis=0)
            lists = lists[rng.permutation(len(lists))[:count]]
        padded = np.full((count, width), NOTHING, np.int16)
        padded[:, :length] = lists
        found.append(padded)
    lists = np.concatenate(found)
    return lists[rng.permutation(len(lists))]


def _joined(by_operation: list[tuple[int, np.ndarray]]) -> Inputs:
    operation_N = [np.full(len(lists), k, np.int64) for k, lists in by_operation]
    return Inputs(np.concatenate(operation_N), np.concatenate([lists for _, lists in by_operation]))


def _shuffled(inputs: Inputs, rng: np.random.Generator) -> Inputs:
    return inputs[rng.permutation(len(inputs))]


def _range(items: range) -> str:
    return f"{items[0]}" if len(items) == 1 else f"{items[0]}-{items[-1]}"
