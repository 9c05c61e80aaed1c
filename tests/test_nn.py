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
