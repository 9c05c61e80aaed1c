"""The listops model: what it attends to is real, padding is not seen, and it learns in seconds."""

from __future__ import annotations

import pytest
import torch

from timebox import optim
from timebox.clock import Clock
from timebox.settings import Settings
from timebox.tasks import load_task
from timebox.tasks.listops.data import FIRST_VALUE, answers, encode, question
from timebox.tasks.listops.show import entropy, pattern

MIXED = {"items": "2-9", "max_value": 9, "batch_size": 32}


@pytest.fixture(scope="module")
def task():
    return load_task("listops", **MIXED)


@pytest.fixture(scope="module")
def model(task):
    """With weights that are not 0 anywhere, so that every part has an effect."""
    torch.manual_seed(1)
    model = task.model().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_it_has_a_tenth_of_a_million_parameters():
    count = sum(p.numel() for p in load_task("listops").model().parameters())
    assert 90_000 < count < 110_000


def test_what_stands_in_the_padding_changes_nothing(task, model):
    batch = task.data.batch(0)
    padding = ~batch["mask"]
    assert padding.any()
    other = batch["tokens"].clone()
    other[padding] = torch.randint(0, FIRST_VALUE + 10, (int(padding.sum()),))
    with torch.no_grad():
        one, two = (model(tokens, batch["mask"]) for tokens in (batch["tokens"], other))
        assert torch.equal(one, two)
        assert not torch.allclose(one, model(other, torch.ones_like(batch["mask"])))


def test_more_padding_changes_nothing(model):
    tokens_BL, mask_BL = encode(question("Last(3, 7, 1)", 9))
    more = torch.nn.functional.pad(tokens_BL, (0, 6))
    with torch.no_grad():
        plain = model(tokens_BL, mask_BL)
        padded = model(more, torch.nn.functional.pad(mask_BL, (0, 6)))
    assert torch.allclose(plain, padded, atol=1e-5)


def test_attention_adds_up_to_one_and_leaves_padding_out(task, model):
    batch = task.data.batch(0)
    with torch.no_grad():
        layers = model.attention(batch["tokens"], batch["mask"])
    rows, length = batch["tokens"].shape
    assert [weights.shape for weights in layers] == 2 * [(rows, 4, length, length)]
    for weights_BHLL in layers:
        assert torch.allclose(weights_BHLL.sum(-1), torch.ones(rows, 4, length), atol=1e-5)
        unseen = (~batch["mask"])[:, None, None, :].expand_as(weights_BHLL)
        assert (weights_BHLL[unseen] == 0).all()


def test_the_attention_shown_is_the_attention_paid(task, model):
    """A layer built again from these weights gives the output that forward gives."""
    batch = task.data.batch(0)
    tokens_BL, mask_BL = batch["tokens"], batch["mask"]
    with torch.no_grad():
        layers = model.attention(tokens_BL, mask_BL)
        x_BLD = model.embedding(tokens_BL)
        for block, weights_BHLL in zip(model.blocks, layers, strict=True):
            part = block.attention
            normed_BLD = block.attention_norm(x_BLD)
            v_BHLK = part.qkv(normed_BLD).chunk(3, -1)[2].unflatten(-1, (4, -1)).transpose(1, 2)
            mixed_BLD = (weights_BHLL @ v_BHLK).transpose(1, 2).flatten(2)
            x_BLD = x_BLD + part.out(mixed_BLD)
            x_BLD = x_BLD + block.mlp(block.mlp_norm(x_BLD))
        again = model.head(model.norm(x_BLD[:, 0]))
        assert torch.allclose(again, model(tokens_BL, mask_BL), atol=1e-4)
        uniform = [weights.mean(-1, keepdim=True).expand_as(weights) for weights in layers]
        assert not torch.allclose(uniform[0], layers[0], atol=0.05), "it is not all alike"


def test_the_order_of_the_items_matters(model):
    with torch.no_grad():
        one, two = (
            model(*encode(question(text, 9))) for text in ("First(3, 7, 1)", "First(7, 3, 1)")
        )
    assert not torch.allclose(one, two, atol=1e-3)


def test_entropy_is_in_bits_and_patterns_are_its_thirds():
    assert float(entropy(torch.tensor([1.0, 0, 0, 0]))) == 0
    assert float(entropy(torch.full((8,), 1 / 8))) == pytest.approx(3)
    shares = {0.0: "focused", 0.3: "focused", 0.4: "mixed", 0.6: "mixed", 0.7: "distributed"}
    for share, word in {**shares, 1.0: "distributed"}.items():
        assert pattern(share) == word


def test_a_few_seconds_of_training_answer_what_was_never_seen():
    """300 steps on 800 examples: at least 97% of the inputs that no part has."""
    task = load_task("listops")
    torch.manual_seed(0)
    model, settings = task.model(), Settings()
    optimizer = task.optimizer(model, settings)
    for step in range(300):
        rate = optim.rate((step + 1) / 300, settings.warmup, settings.cooldown)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * rate
        optimizer.zero_grad()
        model.loss(task.data.batch(step))[0].backward()
        optimizer.step()
    scores = task.score(model, Clock(100).share(50), None)
    assert scores["exact"] >= 0.97 and scores["loss"] < 0.15
    other = task.data.other_unseen()
    with torch.no_grad():
        given = model(*encode(other)).argmax(-1).numpy()
    assert (given == answers(other)).mean() >= 0.97
