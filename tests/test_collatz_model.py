"""The two architectures that write the answer: what they see, what they are trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from timebox import tasks
from timebox.nn import SelfAttention
from timebox.settings import SettingError, Settings
from timebox.tasks.collatz.data import long_step

ARCHITECTURES = ("decoder", "encoder-decoder")
SIZE = {"d_model": 32, "nhead": 2, "num_layers": 2, "decoder_layers": 2}


def built(architecture, **options):
    """A task and its model, every matrix of which does something."""
    task = tasks.load_task(
        "collatz", architecture=architecture, **{"batch_size": 64, **SIZE, **options}
    )
    torch.manual_seed(1)
    model = task.model().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return task, model


def given(model, answer_BA):
    """What the model is told of an answer while it is trained: each token's predecessors."""
    return F.pad(answer_BA[:, :-1], (1, 0), value=model.bos)


@pytest.mark.parametrize("order", ["least", "most"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_writing_with_a_cache_is_the_same_as_without(architecture, order):
    """Each token written is the most probable one after those before it, seen all at once."""
    task, model = built(architecture, order=order, range_max=10**6)
    numbers = np.concatenate([task.data.validation[:40], [1, 3, 27]])
    input_BN = task.data.encode(numbers)["input"]
    written_BA = model.predict(input_BN)
    with torch.no_grad():
        again_BA = model.logits(input_BN, given(model, written_BA)).argmax(-1)
    ended_BA = (written_BA == model.eos).cumsum(1) - (written_BA == model.eos).long() > 0
    assert torch.equal(again_BA[~ended_BA], written_BA[~ended_BA])
    assert (written_BA[ended_BA] == model.pad).all()
    assert len(written_BA.unique()) > 5, "a model that always writes the same proves nothing"
    alone = [model.predict(input_BN[i : i + 1])[0] for i in range(3)]
    for one_A, together_A in zip(alone, written_BA, strict=False):
        assert torch.equal(one_A, together_A[: len(one_A)])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_answer_token_changes_nothing_before_it(architecture):
    task, model = built(architecture)
    batch = task.data.batch(0)
    given_BA = given(model, batch["answer"])
    with torch.no_grad():
        before = model.logits(batch["input"], given_BA)
        changed_BA = given_BA.clone()
        changed_BA[:, 3] = (changed_BA[:, 3] + 1) % task.data.base
        after = model.logits(batch["input"], changed_BA)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3:], after[:, 3:])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_digit_of_the_input_is_seen_from_the_first_answer_token_on(architecture):
    task, model = built(architecture)
    batch = task.data.batch(0)
    given_BA = given(model, batch["answer"])
    for place in range(task.data.input_length):
        changed = batch["input"].clone()
        changed[:, place] = (changed[:, place] + 1) % task.data.base
        with torch.no_grad():
            a, b = (model.logits(x, given_BA)[:, 0] for x in (batch["input"], changed))
        assert not torch.allclose(a, b), place


@pytest.mark.parametrize("order", ["least", "most"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_of_the_input_is_never_looked_at(architecture, order):
    task, model = built(architecture, order=order, range_max=10**6)
    encoded = task.data.encode(np.array([1, 27, 601, 14_001]))
    assert (encoded["input"] == model.pad).any(1).all()
    given_BA = given(model, encoded["answer"])
    with torch.no_grad():
        before = model.logits(encoded["input"], given_BA)
        before_written = model.predict(encoded["input"])
        real = given_BA != model.pad  # behind an answer's end there is padding too
        model.embedding.weight[model.pad] += 100.0
        after = model.logits(encoded["input"], given_BA)
        after_written = model.predict(encoded["input"])
    assert torch.allclose(before[real], after[real], atol=1e-5)
    assert torch.equal(before_written, after_written)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_of_an_example_does_not_depend_on_its_company(architecture):
    """Nothing behind EOS counts, however long the longest answer of the batch is."""
    task, model = built(architecture)
    numbers = np.array([1, 27, 2**23 - 1, 16_000_001])
    together = {**task.data.encode(numbers), "weight": torch.tensor([0.0, 1.0, 0.0, 0.0])}
    alone = {**task.data.encode(numbers[1:2]), "weight": torch.ones(1)}
    assert together["answer"].shape[1] > alone["answer"].shape[1]
    with torch.no_grad():
        a, b = model.loss(together), model.loss(alone)
    assert float(a[0]) == pytest.approx(float(b[0]), rel=1e-4)
    assert float(a[1]["token_accuracy"]) == pytest.approx(float(b[1]["token_accuracy"]))


def test_the_loss_is_that_of_the_digits_and_the_end_each_once():
    """A model that knows nothing is wrong by log V for every token, the digit 0 among them."""
    task = tasks.load_task("collatz", **SIZE)
    numbers = np.arange(1, 4001, 2)
    zero = np.flatnonzero((task.data.answers(long_step(numbers)[0]) == 0).any(1))
    batch = {**task.data.encode(numbers[zero[:5]]), "weight": torch.full((5,), 0.2)}
    model = task.model()
    loss, _ = model.loss(batch)
    assert float(loss.detach()) == pytest.approx(np.log(task.data.base + 3), rel=1e-4)
    loss.backward()
    assert model.head.weight.grad[0].abs().sum() > 0, "the digit 0 is a target like any other"


def test_impossible_sizes_are_refused_with_the_reason():
    for options, reason in (
        ({"d_model": 100, "nhead": 8}, "d_model 100 must be a multiple of 4 times nhead 8"),
        ({"num_layers": 0}, "num_layers must be from 1"),
        ({"nhead": 0}, "nhead must be from 1"),
        ({"base": 1}, "base must be from 2"),
        ({"range_max": 0}, "range_max must be from 1"),
        ({"adam_lr": 0.0}, "adam_lr must be from 1e-08 to 1, not 0"),
        ({"class_bits": 9}, "class_bits must be from 1 to 8, not 9"),
    ):
        with pytest.raises(SettingError, match=reason):
            tasks.load_task("collatz", **options)


def test_with_adamw_a_given_rate_is_that_of_everything():
    task = tasks.load_task("collatz", **SIZE)
    for settings, expected in (
        (Settings(optimizer="adamw", lr=1e-4), {1e-4}),
        (Settings(optimizer="adamw"), {3e-3, 3e-2}),
        (Settings(lr=0.02), {0.02, 3e-3, 3e-2}),
    ):
        groups = task.optimizer(task.model(), settings).param_groups
        assert {group["peak_lr"] for group in groups} == expected


def test_the_guides_and_the_papers_sizes_are_what_they_say():
    guide = tasks.load_task("collatz", architecture="encoder-decoder", d_model=512, nhead=8,
                            num_layers=6, range_max=10_000).model()  # fmt: skip
    assert len(guide.encoder) == 6 and len(guide.decoder) == 1
    assert all(isinstance(block.attention, SelfAttention) for block in guide.encoder)
    assert 20e6 < sum(p.numel() for p in guide.parameters()) < 26e6
    ours = tasks.load_task("collatz").model()
    assert 0.5e6 < sum(p.numel() for p in ours.parameters()) < 0.7e6
