"""The choice of a device rests on a real operation, and says why."""

from __future__ import annotations

import pytest
import torch

from timebox import device as module
from timebox.device import Device, pick
from timebox.settings import SettingError


def test_the_cpu_is_always_there_and_the_reason_is_given():
    found = pick("cpu", "fp32", "auto", 300)
    assert (found.type, found.dtype, found.compile) == ("cpu", "fp32", False)
    assert "fp32 as set" in found.reason and "not compiled" in found.reason
    assert found.name.startswith("CPU")
    assert found.record()["reason"] == found.reason


def test_auto_measures_whether_bf16_pays(monkeypatch):
    seconds = {"fp32": 1.0, "bf16": 0.9}
    monkeypatch.setattr(module, "_matmul_seconds", lambda dtype: seconds[dtype])
    assert pick("cpu", "auto", "off", 300).dtype == "fp32"
    seconds["bf16"] = 0.2
    found = pick("cpu", "auto", "off", 300)
    assert found.dtype == "bf16" and "5.0 times" in found.reason


def test_a_device_that_is_reported_but_does_not_compute_is_not_taken(monkeypatch):
    """As with an image of CUDA that has no kernels for the card."""

    def broken(*shape, device=None, **other):
        if device == "cuda":
            raise RuntimeError("CUDA error: no kernel image is available for execution")
        return ones(*shape, device=device, **other)

    ones = torch.ones
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda rank: None)
    monkeypatch.setattr(torch, "ones", broken)
    found = pick("auto", "fp32", "off", 300)
    assert found.type in ("cpu", "mps")
    assert "no kernel image" in found.reason
    with pytest.raises(SettingError, match=r"'cuda' as set does not compute.*no kernel image"):
        pick("cuda", "fp32", "off", 300)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_absent_is_an_error_only_if_asked_for():
    with pytest.raises(SettingError, match="'cuda' as set does not compute: absent"):
        pick("cuda", "auto", "auto", 300)
    assert pick("auto", "fp32", "auto", 300).type in ("cpu", "mps")


@pytest.mark.parametrize(("capability", "dtype"), [
    ((8, 0), "bf16"), ((9, 0), "bf16"), ((7, 5), "fp16"), ((7, 0), "fp16"), ((6, 0), "fp32"),
])  # fmt: skip
def test_the_number_format_follows_the_card(monkeypatch, capability, dtype):
    """A T4 (7.5) says that it supports bf16, and means that it emulates it, slowly."""
    monkeypatch.setattr(module, "_fails", lambda kind, rank: None)
    monkeypatch.setattr(module, "_name", lambda kind, rank: "card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda rank: capability)
    assert pick("cuda", "auto", "off", 300).dtype == dtype


@pytest.mark.parametrize(("minutes", "compiled"), [(5, False), (60, True)])
def test_compilation_is_for_budgets_that_it_pays_in(monkeypatch, minutes, compiled):
    monkeypatch.setattr(module, "_fails", lambda kind, rank: None)
    monkeypatch.setattr(module, "_name", lambda kind, rank: "card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda rank=0: (7, 5))
    assert pick("cuda", "fp32", "auto", 60 * minutes).compile is compiled
    assert pick("cuda", "fp32", "on", 60 * minutes).compile is True
    assert pick("cuda", "fp32", "off", 60 * minutes).compile is False


def test_a_card_that_the_compiler_does_not_know_is_not_compiled_for(monkeypatch):
    monkeypatch.setattr(module, "_fails", lambda kind, rank: None)
    monkeypatch.setattr(module, "_name", lambda kind, rank: "card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda rank=0: (6, 0))
    found = pick("cuda", "auto", "auto", 8 * 3600)
    assert (found.dtype, found.compile) == ("fp32", False)
    assert "the compiler does not know this card" in found.reason


def test_only_fp16_scales_its_loss():
    for dtype, scaled in (("fp32", False), ("bf16", False), ("fp16", True)):
        assert Device("cpu", "x", dtype, False, "").scaler().is_enabled() is scaled


def test_autocast_is_on_for_half_precision_only():
    x = torch.ones(2, 2)
    for dtype, result in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with Device("cpu", "x", dtype, False, "").autocast():
            assert (x @ x).dtype == result


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_is_taken_if_it_computes():
    found = pick("auto", "auto", "auto", 300)
    assert found.type == "cuda" and found.dtype in ("bf16", "fp16", "fp32")
