"""The shared blocks: positions, masks, and the two ways to compute the same attention."""

import pytest
import torch

from timebox import nn as blocks


def heads(seed=0, batch=2, length=9, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, 2, length, 8, generator=generator).to(dtype).requires_grad_()
        for _ in range(3)
    ]


def test_rotated_products_depend_on_the_distance_alone():
    q, k, _ = heads(length=1)

    def product(at_q, at_k):
        turned = [
            blocks.rotate(x, blocks.rotary(torch.full((2, 1), place), 8))
            for x, place in ((q, at_q), (k, at_k))
        ]
        return (turned[0] * turned[1]).sum(-1)

    torch.testing.assert_close(product(3, 1), product(12, 10))
    assert not torch.allclose(product(3, 1), product(1, 3))


def test_rotated_products_on_a_grid_depend_on_both_distances():
    q, k, _ = heads(length=1)

    def product(at_q, at_k):
        turned = [
            blocks.rotate(
                x, blocks.rotary_2d(torch.full((2, 1), place[0]), torch.full((2, 1), place[1]), 8)
            )
            for x, place in ((q, at_q), (k, at_k))
        ]
        return (turned[0] * turned[1]).sum(-1)

    torch.testing.assert_close(product((3, 4), (1, 1)), product((7, 9), (5, 6)))
    assert not torch.allclose(product((3, 4), (1, 1)), product((4, 3), (1, 1)))


def test_rotation_keeps_lengths():
    q, _, _ = heads()
    turned = blocks.rotate(q, blocks.rotary(torch.arange(9).expand(2, 9), 8))
    torch.testing.assert_close(turned.norm(dim=-1), q.norm(dim=-1))


@pytest.mark.parametrize("causal", [False, True])
def test_half_precision_attention_on_a_cpu_equals_the_reference(causal):
    real = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    real[1, ..., 6:] = False
    mask = None if causal else real
    exact, half = heads(), heads(dtype=torch.bfloat16)
    want = torch.nn.functional.scaled_dot_product_attention(
        *exact, attn_mask=mask, is_causal=causal
    )
    got = blocks.attend(*half, mask, causal)
    torch.testing.assert_close(got.float(), want, atol=0.03, rtol=0.03)
    want.square().sum().backward()
    got.float().square().sum().backward()
    for one, other in zip(half, exact, strict=True):
        torch.testing.assert_close(one.grad.float(), other.grad, atol=0.15, rtol=0.1)


def block(causal=False):
    torch.manual_seed(0)
    layer = blocks.Block(16, 2, 32)
    for parameter in layer.parameters():  # the zeros at the start would hide everything
        torch.nn.init.normal_(parameter, std=0.3)
    return layer


def test_a_causal_layer_has_no_gradient_from_the_future():
    layer, x = block(), torch.randn(1, 9, 16, requires_grad=True)
    turn = blocks.rotary(torch.arange(9)[None], 8)
    layer(x, turn, causal=True)[0, 4].sum().backward()
    assert (x.grad[0, 5:] == 0).all() and (x.grad[0, :5] != 0).any()


def test_masked_places_change_nothing():
    layer, x = block(), torch.randn(2, 9, 16)
    mask = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    mask[..., 6:] = False
    turn = blocks.rotary(torch.arange(9).expand(2, 9), 8)
    before = layer(x, turn, mask)[:, :6]
    x[:, 6:] = 1000.0
    torch.testing.assert_close(layer(x, turn, mask)[:, :6], before)


def test_a_fresh_layer_passes_its_input_through():
    x = torch.randn(2, 9, 16)
    assert torch.equal(blocks.Block(16, 2, 32)(x), x)


def test_a_width_that_the_heads_cannot_share_is_refused():
    with pytest.raises(ValueError, match="width 18"):
        blocks.SelfAttention(18, 4)


def test_parameter_counts_add_up():
    layer = block()
    counts = blocks.parameter_counts(layer)
    assert counts["total"] == sum(p.numel() for p in layer.parameters())
    assert counts["attention"] == 4 * 16 * 16 + 2 * 8 and counts["mlp"] == 2 * 16 * 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_attention_weights_are_those_that_are_paid(dtype):
    """The values' mean under them is what attention gives, masked or causal, turned or not."""
    torch.manual_seed(0)
    layer = blocks.SelfAttention(32, 2)
    torch.nn.init.normal_(layer.out.weight, std=0.2)
    x_BLD = torch.randn(3, 7, 32)
    turn = blocks.rotary(torch.arange(7.0)[None], 16)
    mask = (torch.rand(3, 1, 7, 7) > 0.4) | torch.eye(7, dtype=torch.bool)
    for given in ({}, {"mask": mask}, {"causal": True}, {"turn": turn, "mask": mask}):
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            weights_BHLL = layer.weights(x_BLD, **given).float()
            v_BHLK = layer.qkv(x_BLD).view(3, 7, 3, 2, 16).permute(2, 0, 3, 1, 4)[2].float()
            mean = layer.out((weights_BHLL @ v_BHLK).transpose(1, 2).reshape(3, 7, 32))
            assert torch.allclose(mean.float(), layer(x_BLD, **given).float(), atol=5e-2)
        assert torch.allclose(weights_BHLL.sum(-1), torch.ones(3, 2, 7), atol=2e-2)
        if "mask" in given:
            assert (weights_BHLL[~mask.expand_as(weights_BHLL)] == 0).all()
        if given.get("causal"):
            assert (weights_BHLL.triu(1) == 0).all()


def test_a_cache_gives_what_the_whole_sequence_gives():
    torch.manual_seed(0)
    block = blocks.Block(32, 2, 64)
    for parameter in (block.attention.out.weight, block.mlp.down.weight):
        torch.nn.init.normal_(parameter, std=0.2)
    x_BLD = torch.randn(2, 6, 32)
    turn = blocks.rotary(torch.arange(6.0)[None], 16)
    with torch.no_grad():
        whole = block(x_BLD, turn, causal=True)
        cache = blocks.Cache()
        parts = [block(x_BLD[:, :3], tuple(t[:, :, :3] for t in turn), causal=True, cache=cache)]
        for i in range(3, 6):
            here = tuple(t[:, :, i : i + 1] for t in turn)
            parts.append(block(x_BLD[:, i : i + 1], here, cache=cache))
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)


def test_cross_attention_looks_at_the_memory_alone_and_only_where_it_may():
    torch.manual_seed(0)
    layer = blocks.CrossAttention(32, 2)
    torch.nn.init.normal_(layer.out.weight)
    x_BLD, memory_BMD = torch.randn(2, 3, 32), torch.randn(2, 5, 32)
    seen = torch.tensor([True, True, True, False, False])[None, None, None]
    with torch.no_grad():
        before = layer(x_BLD, layer.keys_values(memory_BMD), mask=seen)
        memory_BMD[:, 3:] += 10
        assert torch.equal(layer(x_BLD, layer.keys_values(memory_BMD), mask=seen), before)
        memory_BMD[:, :3] += 10
        assert not torch.allclose(layer(x_BLD, layer.keys_values(memory_BMD), mask=seen), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_and_causality_hold_together(dtype):
    q, k, v = (x.detach() for x in heads(dtype=dtype))
    mask = torch.rand(9, 9, generator=torch.Generator().manual_seed(3)) > 0.5
    mask |= torch.eye(9, dtype=torch.bool)
    both = blocks.attend(q, k, v, mask & torch.ones(9, 9, dtype=torch.bool).tril())
    torch.testing.assert_close(blocks.attend(q, k, v, mask, causal=True), both)
