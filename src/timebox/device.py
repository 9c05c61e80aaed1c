"""What this machine can do, and why we chose it.

`torch.cuda.is_available()` is no proof: an image without kernels for the card says True and
fails at the first operation. So every choice here rests on a real operation.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import torch

from timebox.settings import SettingError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Device:
    """The device of a run: `type` for torch, `dtype` for autocast, and the reason for both."""

    type: str
    name: str
    dtype: str
    compile: bool
    reason: str

    def autocast(self):
        """The context in which forward passes run."""
        return torch.autocast(self.type, DTYPES[self.dtype], enabled=self.dtype != "fp32")

    def scaler(self) -> torch.amp.GradScaler:
        """The loss scaler; it does nothing but for fp16, whose gradients underflow."""
        return torch.amp.GradScaler(self.type, enabled=self.dtype == "fp16")

    def to(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch on this device."""
        return {name: tensor.to(self.type) for name, tensor in batch.items()}

    def record(self) -> dict:
        """What run.json says about it."""
        return asdict(self)


def pick(device: str, dtype: str, compile: str, seconds: float, local_rank: int = 0) -> Device:
    """Choose device, dtype and compilation for a budget of `seconds`; "auto" leaves it to us.

    An explicit device that does not compute is an error; with "auto" it is a reason to use the CPU.
    """
    reasons = []
    kind = "cpu"
    for candidate in ("cuda", "mps") if device == "auto" else (device,):
        failure = _fails(candidate, local_rank)
        if failure is None:
            kind = candidate
            break
        if device != "auto":
            raise SettingError(f"device {candidate!r} as set does not compute: {failure}")
        if failure != "absent":
            reasons.append(f"{candidate} is reported but does not compute ({failure})")
    name = _name(kind, local_rank)
    if dtype == "auto":
        dtype, why = _choose_dtype(kind, local_rank)
        reasons.append(why)
    else:
        reasons.append(f"{dtype} as set")
        if dtype != "fp32" and (failure := _dtype_fails(kind, dtype)):
            raise SettingError(f"dtype {dtype!r} does not compute on {name}: {failure}")
    compiled, why = _choose_compile(compile, kind, seconds)
    return Device(kind, name, dtype, compiled, "; ".join([*reasons, why]))


def _fails(kind: str, local_rank: int) -> str | None:
    """None if a small matrix product on `kind` gives the right number, else what went wrong."""
    if kind == "cpu":
        return None
    if kind == "cuda" and not torch.cuda.is_available():
        return "absent"
    if kind == "mps" and not torch.backends.mps.is_available():
        return "absent"
    try:
        if kind == "cuda":
            torch.cuda.set_device(local_rank)
        ones = torch.ones(64, 64, device=kind)
        return None if (ones @ ones).sum().item() == 64**3 else "it computes wrong numbers"
    except Exception as error:  # whatever the driver raises, the answer is the same
        return str(error).splitlines()[0][:160] or type(error).__name__


def _dtype_fails(kind: str, dtype: str) -> str | None:
    try:
        ones = torch.ones(8, 8, device=kind, dtype=DTYPES[dtype])
        return None if (ones @ ones).sum().item() == 8**3 else "it computes wrong numbers"
    except Exception as error:
        return str(error).splitlines()[0][:160] or type(error).__name__


def _name(kind: str, local_rank: int) -> str:
    if kind == "cuda":
        return torch.cuda.get_device_name(local_rank)
    return f"CPU, {torch.get_num_threads()} threads" if kind == "cpu" else kind.upper()


def _choose_dtype(kind: str, local_rank: int) -> tuple[str, str]:
    if kind == "cuda":
        # is_bf16_supported() also counts emulation, which is slower than fp16 on a T4.
        major, minor = torch.cuda.get_device_capability(local_rank)
        if major >= 8:
            return "bf16", f"bf16 is native on compute capability {major}.{minor}"
        if major >= 7:
            return "fp16", f"no native bf16 on compute capability {major}.{minor}: fp16 with scaler"
        return "fp32", f"no fast half precision on compute capability {major}.{minor}"
    if kind == "mps":
        return "fp32", "fp32 on MPS"
    if _dtype_fails("cpu", "bf16"):
        return "fp32", "this CPU build has no bf16"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other on a busy machine tell nothing
    try:
        ratio = _matmul_seconds("fp32") / _matmul_seconds("bf16")
    finally:
        torch.set_num_threads(threads)
    # Casting costs something too: a small gain in the product alone does not pay.
    if ratio > 1.6:
        return "bf16", f"bf16 products measured {ratio:.1f} times as fast as fp32 here"
    return "fp32", f"bf16 products measured only {ratio:.1f} times as fast as fp32 here"


def _matmul_seconds(dtype: str, size: int = 256, repeats: int = 20) -> float:
    x = torch.ones(size, size, dtype=DTYPES[dtype])
    best = float("inf")
    for _ in range(repeats + 1):  # the first one pays for the kernel's set-up
        start = time.perf_counter()
        x @ x
        best = min(best, time.perf_counter() - start)
    return best


def _choose_compile(wish: str, kind: str, seconds: float) -> tuple[bool, str]:
    if wish == "on":
        return True, "compiled as set"
    if wish == "off":
        return False, "not compiled as set"
    if kind != "cuda":
        return False, f"not compiled: it does not pay on {kind}"
    if torch.cuda.get_device_capability()[0] < 7:
        return False, "not compiled: the compiler does not know this card"
    # Compilation takes one to three minutes and saves perhaps a fifth of the steps' time.
    if seconds < 20 * 60:
        return False, f"not compiled: would not pay within {seconds / 60:.0f} minutes"
    return True, f"compiled: expected to pay within {seconds / 60:.0f} minutes"
