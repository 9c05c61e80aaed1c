"""The inputs of the listops task: right answers, parts that share nothing, and pure batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from timebox.settings import SettingError
from timebox.tasks import load_task
from timebox.tasks.listops import data
from timebox.tasks.listops.data import (
    NOTHING,
    OPERATIONS,
    PAD,
    PARTS,
    Inputs,
    ListData,
    answers,
    distinct_lists,
    encode,
    lengths,
    question,
    word,
)

RULES = {
    "First": lambda items: items[0],
    "Second": lambda items: items[1],
    "Last": lambda items: items[-1],
    "Max": max,
    "Min": min,
}


def made(seed=0, size="small", items="3", max_value=9, batch_size=64, test_items=""):
    tested = lengths("test_items", test_items) if test_items else None
    return ListData(seed, size, lengths("items", items), max_value, batch_size, tested)


def read(text: str) -> tuple[str, list[int]]:
    name, _, rest = text.rstrip(")").partition("(")
    return name, [int(value) for value in rest.split(", ")]


def test_the_answers_are_those_of_the_written_question():
    known = {
        "First(3, 7, 1)": 3, "Second(3, 7, 1)": 7, "Last(3, 7, 1)": 1, "Max(3, 7, 1)": 7,
        "Min(3, 7, 1)": 1, "Last(4, 0)": 0, "Min(99, 98, 99, 99)": 98, "Max(0, 0)": 0,
    }  # fmt: skip
    for text, answer in known.items():
        inputs = question(text, 99)
        assert answers(inputs).tolist() == [answer]
        assert inputs.texts() == [text]
    everything = made(items="2-20", max_value=99).parts["training"]
    for text, answer in zip(everything.texts(), answers(everything), strict=True):
        name, items = read(text)
        assert RULES[name](items) == answer, text


@pytest.mark.parametrize(
    "text", ["", "Max", "Max()", "Max(3)", "Max(3,)", "Mean(3, 4)", "Max(3 4)"]
)
def test_what_is_no_question_is_refused(text):
    with pytest.raises(ValueError, match="reads like|one of First|2 to 20"):
        question(text, 9)


def test_tokens_spell_the_operation_the_items_the_end_and_padding():
    joined = Inputs(np.array([3, 2]), np.array([[3, 7, 1, NOTHING], [4, 0, 0, 9]], np.int16))
    tokens_NL, mask_NL = encode(joined)
    assert [" ".join(map(word, row)) for row in tokens_NL.tolist()] == [
        "Max 3 7 1 END PAD",
        "Last 4 0 0 9 END",
    ]
    assert mask_NL.tolist() == [[True] * 5 + [False], [True] * 6]


SHAPES = [
    {}, {"size": "medium"}, {"size": "large"}, {"items": "2-20", "max_value": 99, "size": "medium"},
    {"items": "2-4", "max_value": 3}, {"items": "2-5", "test_items": "6-9", "size": "medium"},
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: " ".join(map(str, shape.values())))
def test_no_input_is_in_two_parts_and_none_is_there_twice(shape):
    found = made(**shape)
    texts = {name: found.parts[name].texts() for name in PARTS}
    for name in PARTS:
        assert len(set(texts[name])) == len(texts[name]), name
    assert len(set().union(*texts.values())) == sum(map(len, texts.values()))
    assert found.overlap() == 0


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: " ".join(map(str, shape.values())))
def test_operations_are_equally_many_in_each_part_and_among_the_examples(shape):
    found = made(**shape)
    for part in found.parts.values():
        assert len(set(np.bincount(part.operation_N, minlength=5).tolist())) == 1
    rows = np.concatenate([found.batch(step)["tokens"][:, 0] for step in range(found.steps)])
    assert len(set(np.bincount(rows)[1 : 1 + len(OPERATIONS)].tolist())) == 1
    assert len(rows) == found.examples


def test_an_overlap_would_be_counted():
    found = made()
    training, test = found.parts["training"], found.parts["test"]
    found.parts["test"] = Inputs(
        np.concatenate((test.operation_N, training.operation_N[:3])),
        np.concatenate((test.items_NM, training.items_NM[:3])),
    )
    assert found.overlap() == 3


def test_sizes_are_80_10_10_and_a_small_space_repeats_its_training_inputs_alone():
    small, medium, large = made(), made(size="medium"), made(size="large")
    assert [len(small.parts[name]) for name in PARTS] == [800, 100, 100]
    for found, examples in ((medium, 8_000), (large, 80_000)):
        assert [len(found.parts[name]) for name in PARTS] == [4_000, 500, 500]
        counts = np.bincount(found.row_N, minlength=4_000)
        assert found.examples == examples
        assert set(counts.tolist()) == {examples // 4_000}
    wide = made(size="medium", max_value=99)
    assert [len(wide.parts[name]) for name in PARTS] == [8_000, 1_000, 1_000]


def test_an_uneven_repetition_differs_by_one_at_most():
    counts = np.bincount(made(size="medium", max_value=10).row_N)  # 1,331 lists an operation
    assert counts.min() == 1 and counts.max() == 2 and counts.sum() == 8_000


def test_the_unseen_inputs_are_all_that_no_part_has():
    small = made()
    other = small.other_unseen()
    assert len(other) == 4_000
    seen = set().union(*(part.texts() for part in small.parts.values()))
    assert len(seen | set(other.texts())) == 5_000
    assert len(made(size="medium").other_unseen()) == 0
    assert len(made(max_value=99).other_unseen()) == 0, "too many to be asked"


def test_lists_are_distinct_whether_counted_or_drawn():
    rng = np.random.default_rng(0)
    for items, value, wanted in (("2-4", 3, 400), ("20", 99, 500), ("2-20", 9, 3_000)):
        found = distinct_lists(lengths("items", items), value, wanted, 20, rng)
        assert len({row.tobytes() for row in found}) == len(found)
        assert found.max() <= value
    assert len(distinct_lists(lengths("items", "2-4"), 3, 400, 20, rng)) == 16 + 64 + 256


def test_lengths_are_equally_many_where_there_are_enough_lists():
    part = made(items="2-20", max_value=99, size="medium")
    chosen = np.concatenate([p.length_N for p in part.parts.values()])
    counts = np.bincount(chosen)[2:]
    assert counts.max() - counts.min() <= len(OPERATIONS)


def test_a_batch_pads_to_its_longest_list_and_masks_the_padding():
    found = made(items="2-6", batch_size=32)
    batch = found.batch(3)
    assert batch["mask"].sum(1).max() == batch["tokens"].shape[1]
    assert torch.equal(batch["mask"], batch["tokens"] != PAD)
    assert not batch["mask"].all()


def test_another_seed_makes_another_split():
    tests = [set(made(seed=seed).parts["test"].texts()) for seed in range(3)]
    assert len(tests[0] & tests[1]) < 20 and tests[1] != tests[2]
    assert set(made(seed=0).parts["test"].texts()) == tests[0]


def test_every_process_gets_a_part_even_of_a_batch_with_fewer_examples():
    found = made(batch_size=3)
    parts = [found.batch(0, rank, 5) for rank in range(5)]
    assert sum(float(part["weight"].sum()) for part in parts) == pytest.approx(1)
    assert [int((part["weight"] > 0).sum()) for part in parts] == [1, 1, 1, 0, 0]


def test_test_items_are_lengths_that_training_never_shows():
    found = made(items="2-5", test_items="6-9", size="medium")
    assert set(found.parts["test"].length_N) == {6, 7, 8, 9}
    for name in ("training", "validation"):
        assert set(found.parts[name].length_N) == {2, 3, 4, 5}
    assert len(found.parts["test"]) == 1_000


BAD = {
    "items 0": ({"items": "0"}, "no Second item"),
    "items 1": ({"items": "1"}, "no Second item"),
    "items from 1": ({"items": "1-5"}, "no Second item"),
    "too many items": ({"items": "21"}, "at most 20, not 21"),
    "no number": ({"items": "three"}, "a number of items such as 3"),
    "backwards": ({"items": "9-3"}, "from a smaller to a larger"),
    "negative": ({"items": "-3"}, "items must be"),
    "max_value 0": ({"max_value": 0}, "single value is always the answer"),
    "max_value 100": ({"max_value": 100}, "to 99, not 100"),
    "few lists": ({"items": "2", "max_value": 1}, "make only 4 distinct lists, and 10"),
    "shared lengths": ({"items": "2-5", "test_items": "5-8"}, "both have 5"),
    "test_items": ({"test_items": "1"}, "test_items must be at least 2"),
    "heads": ({"d_model": 64, "nhead": 5}, "d_model 64 must be a multiple of 4 times nhead 5"),
    "no head": ({"nhead": 0}, "nhead must be from 1"),
    "no layer": ({"num_layers": 0}, "num_layers must be from 1"),
    "batch_size": ({"batch_size": 0}, "batch_size must be from 1"),
    "adam_lr": ({"adam_lr": 0.0}, "adam_lr must be from 1e-08 to 1, not 0"),
    "size": ({"size": "huge"}, "small, medium, large"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_bad_parameter_is_refused_with_the_reason(what):
    given, reason = BAD[what]
    with pytest.raises(SettingError, match=reason):
        load_task("listops", **given)


def test_a_width_that_heads_cannot_share_is_refused_before_anything_is_built(monkeypatch):
    monkeypatch.setattr(data, "distinct_lists", None)
    with pytest.raises(SettingError, match="nhead"):
        load_task("listops", nhead=3)
