"""One step: the gradient is that of the whole batch, and what is not finite is not applied."""

from __future__ import annotations

import math

import pytest
import torch
from toy import ToyData, ToyModel, nothing

from timebox import optim
from timebox.device import Device
from timebox.settings import Settings
from timebox.step import OutOfMemory, take
from timebox.world import World


def parts(dtype="fp32", on_loss=nothing):
    torch.manual_seed(0)
    model = ToyModel(0.0, on_loss)
    optimizer = optim.build(model, Settings(), lr=0.02, adam_lr=0.003)
    device = Device("cpu", "CPU", dtype, False, "")
    return model, optimizer, device.scaler(), device, World()


def batch(size=16):
    return ToyData(64, size, 0, nothing).batch(0)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("pieces", [2, 3, 5, 16, 99])
def test_micro_batches_add_up_to_the_batch(pieces):
    whole, split = parts(), parts()
    a = take(*whole, batch(), 1.0, 1)
    b = take(*split, batch(), 1.0, pieces)
    assert b.loss == pytest.approx(a.loss, rel=1e-5)
    assert b.logs["acc"] == pytest.approx(a.logs["acc"])
    assert b.norm == pytest.approx(a.norm, rel=1e-4)
    assert (a.examples, b.examples) == (16, 16)
    torch.testing.assert_close(weights(whole[0]), weights(split[0]), rtol=1e-4, atol=1e-5)


def test_an_example_of_weight_zero_counts_for_nothing():
    one, two = parts(), parts()
    a = take(*one, batch(), 1.0, 1)
    more = batch()
    more["x"] = torch.cat([more["x"], 9 * torch.ones(1, 8)])
    more["y"] = torch.cat([more["y"], torch.zeros(1, dtype=torch.long)])
    more["weight"] = torch.cat([more["weight"], torch.zeros(1)])
    b = take(*two, more, 1.0, 1)
    assert b.examples == a.examples == 16
    torch.testing.assert_close(weights(one[0]), weights(two[0]), rtol=1e-4, atol=1e-6)


def test_memory_is_tried_again_with_smaller_pieces():
    tried = []

    def most_three(piece):
        tried.append(len(piece["weight"]))
        if tried[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    short, whole = parts(on_loss=most_three), parts()
    step = take(*short, batch(), 1.0, 1)
    assert tried == [16, 8, 4] + [2] * 8
    assert step.pieces == 8
    take(*whole, batch(), 1.0, 1)
    torch.testing.assert_close(weights(whole[0]), weights(short[0]), rtol=1e-4, atol=1e-5)


def test_half_a_gradient_of_a_failed_try_is_not_left_behind():
    calls = iter(range(100))

    def late(piece):
        if next(calls) == 1:  # the second piece of the first try
            raise torch.OutOfMemoryError("CUDA out of memory")

    short, whole = parts(on_loss=late), parts()
    assert take(*short, batch(), 1.0, 2).pieces == 4
    take(*whole, batch(), 1.0, 1)
    torch.testing.assert_close(weights(whole[0]), weights(short[0]), rtol=1e-4, atol=1e-5)


def test_no_memory_for_one_example_is_said():
    def never(piece):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\nmore")

    with pytest.raises(OutOfMemory, match="Tried to allocate 20 GiB"):
        take(*parts(on_loss=never), batch(), 1.0, 1)


def test_another_error_is_not_taken_for_a_lack_of_memory():
    def broken(piece):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        take(*parts(on_loss=broken), batch(), 1.0, 1)


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1e38])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_what_is_not_finite_is_not_applied(dtype, factor):
    made = parts(dtype, on_loss=lambda piece: factor)
    before = weights(made[0])
    step = take(*made, batch(), 1.0, 1)
    assert step.taken is False
    assert torch.equal(weights(made[0]), before)
    assert not made[1].state, "the optimizer saw nothing"


def test_fp16_finds_its_scale_by_itself():
    """An overflow at too high a scale is no failure: the weights stay, the scale falls."""
    made = parts("fp16")
    model, optimizer, scaler, *_ = made
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**40})
    taken, before = [], weights(model)
    for _ in range(40):
        taken.append(take(*made, batch(), 1.0, 1).taken)
    assert all(taken)
    assert scaler.get_scale() < 2.0**40
    assert torch.isfinite(weights(model)).all() and not torch.equal(weights(model), before)


def test_a_gradient_is_clipped_to_its_norm():
    seen = []
    made = parts(on_loss=lambda piece: 50.0)
    made[1].register_step_pre_hook(
        lambda o, a, k: seen.append(sum(p.grad.square().sum() for p in made[0].parameters()).sqrt())
    )
    step = take(*made, batch(), 0.25, 1)
    assert step.norm > 1
    assert float(seen[0]) == pytest.approx(0.25, rel=1e-3)


def test_a_cpu_that_runs_out_of_memory_is_treated_alike():
    """Its allocator raises a plain RuntimeError."""
    full = "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"

    def small(batch):
        if len(batch["weight"]) > 4:
            raise RuntimeError(full)

    assert take(*parts(on_loss=small), batch(), 1.0, 1).pieces == 4
