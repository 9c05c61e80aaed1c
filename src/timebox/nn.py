"""The blocks that more than one model uses.

Shapes: B batch, L sequence length, M length of a memory, D width, H heads, K width of a head.
Statistics and positions stay in the dtype that autocast gives them; no block has a bias, so
every matrix has two dimensions and the optimizer can tell it from the rest.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Norm(nn.Module):
    """Layer normalisation with a gain and no bias.

    RMS normalisation does as well, but PyTorch's takes three times as long to differentiate on
    a CPU.
    """

    def __init__(self, width: int):
        super().__init__()
        self.gain_D = nn.Parameter(torch.ones(width))

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x_BLD, x_BLD.shape[-1:], self.gain_D.to(x_BLD.dtype), None, 1e-6)


def frequencies(channels: int, base: float) -> torch.Tensor:
    """The `channels` // 2 angular frequencies of rotary positions, from 1 down to 1 / `base`."""
    return base ** -(torch.arange(0, channels, 2, dtype=torch.float32) / channels)


def rotary(position_BL: torch.Tensor, channels: int, base: float = 10_000.0):
    """Cosines and signed sines, each (B, 1, L, K), that `rotate` applies (arXiv 2104.09864)."""
    angle_BLK = position_BL[..., None] * frequencies(channels, base).to(position_BL.device)
    return _turn(angle_BLK)


def rotary_2d(row_BL: torch.Tensor, column_BL: torch.Tensor, channels: int, base: float = 100.0):
    """As `rotary`, for the cells of a grid: half of the channels turn with the row, half with the
    column. The base is small because a grid has at most 30 of each; the fastest channels turn by
    nearly half a circle per cell, which tells neighbours apart best."""
    speed_K = 3 * frequencies(channels // 2, base).to(row_BL.device)
    angle = [position_BL[..., None] * speed_K for position_BL in (row_BL, column_BL)]
    return _turn(torch.cat(angle, -1))


def _turn(angle_BLK: torch.Tensor):
    cos, sin = angle_BLK.cos(), angle_BLK.sin()
    return torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None]


def rotate(x_BHLK: torch.Tensor, turn) -> torch.Tensor:
    """Turn each pair (channel i, channel i + K/2) by the angles in `turn`."""
    cos, sin = (t.to(x_BHLK.dtype) for t in turn)
    return x_BHLK * cos + x_BHLK.roll(x_BHLK.shape[-1] // 2, -1) * sin


def attend(q_BHLK, k_BHLK, v_BHLK, mask=None, causal: bool = False) -> torch.Tensor:
    """Scaled dot-product attention; `mask` (True: may be attended to) broadcasts to (B, H, L, L).

    With `causal` a position sees itself and those before it, of them what `mask` lets it see.

    On a CPU in half precision PyTorch's own kernel takes two to six times as long as the plain
    products it stands for.
    """
    if q_BHLK.device.type != "cpu" or q_BHLK.dtype == torch.float32:
        if causal and mask is not None:  # PyTorch's kernel takes one of them
            size = q_BHLK.shape[-2], k_BHLK.shape[-2]
            mask = mask & torch.ones(size, dtype=torch.bool, device=mask.device).tril()
            causal = False
        return F.scaled_dot_product_attention(
            q_BHLK, k_BHLK, v_BHLK, attn_mask=mask, is_causal=causal
        )
    return attention_weights(q_BHLK, k_BHLK, mask, causal).to(v_BHLK.dtype) @ v_BHLK


def attention_weights(q_BHLK, k_BHLK, mask=None, causal: bool = False) -> torch.Tensor:
    """The weights (B, H, L, L) with which `attend` takes the mean of the values."""
    scores_BHLL = (q_BHLK * q_BHLK.shape[-1] ** -0.5) @ k_BHLK.mT
    if causal:
        size, device = scores_BHLL.shape[-2:], scores_BHLL.device
        before_LL = torch.ones(size, dtype=torch.bool, device=device).tril()
        mask = before_LL if mask is None else mask & before_LL
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=scores_BHLL.dtype, device=scores_BHLL.device)
        scores_BHLL += bias.masked_fill_(~mask, float("-inf"))
    return scores_BHLL.softmax(-1)


class Cache:
    """Keys and values of one attention layer, of the positions that were decoded so far."""

    def __init__(self):
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None

    def extend(self, k_BHLK: torch.Tensor, v_BHLK: torch.Tensor):
        """Keys and values of all positions, the new ones last."""
        if self.keys is not None:
            k_BHLK = torch.cat((self.keys, k_BHLK), 2)
            v_BHLK = torch.cat((self.values, v_BHLK), 2)
        self.keys, self.values = k_BHLK, v_BHLK
        return k_BHLK, v_BHLK


class SelfAttention(nn.Module):
    """Multi-head attention with normalised queries and keys; its output projection starts at 0."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % (4 * heads):
            raise ValueError(f"width {width} must be a multiple of 4 times the {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.query_norm, self.key_norm = Norm(width // heads), Norm(width // heads)
        nn.init.zeros_(self.out.weight)

    def forward(
        self, x_BLD: torch.Tensor, turn=None, mask=None, causal=False, cache: Cache | None = None
    ) -> torch.Tensor:
        """`turn` comes from `rotary`; `mask` and `causal` as in `attend`.

        With a `cache`, `x_BLD` is what comes after the positions in it, which are attended to too.
        """
        q_BHLK, k_BHLK, v_BHLK = self._project(x_BLD, turn)
        if cache is not None:
            k_BHLK, v_BHLK = cache.extend(k_BHLK, v_BHLK)
        y_BHLK = attend(q_BHLK, k_BHLK, v_BHLK, mask, causal)
        return self.out(y_BHLK.transpose(1, 2).flatten(2))

    def weights(self, x_BLD: torch.Tensor, turn=None, mask=None, causal=False) -> torch.Tensor:
        """The attention (B, H, L, L) that `forward` pays, each row adding up to 1."""
        q_BHLK, k_BHLK, _ = self._project(x_BLD, turn)
        return attention_weights(q_BHLK, k_BHLK, mask, causal)

    def _project(self, x_BLD: torch.Tensor, turn):
        B, L, D = x_BLD.shape
        qkv = self.qkv(x_BLD).view(B, L, 3, self.heads, D // self.heads)
        q_BHLK, k_BHLK, v_BHLK = qkv.permute(2, 0, 3, 1, 4)
        q_BHLK, k_BHLK = self.query_norm(q_BHLK), self.key_norm(k_BHLK)
        if turn is not None:
            q_BHLK, k_BHLK = rotate(q_BHLK, turn), rotate(k_BHLK, turn)
        return q_BHLK, k_BHLK, v_BHLK


class CrossAttention(nn.Module):
    """As `SelfAttention`, from the positions of one sequence to those of another (M of them)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.query_norm, self.key_norm = Norm(width // heads), Norm(width // heads)
        nn.init.zeros_(self.out.weight)

    def keys_values(self, memory_BMD: torch.Tensor, turn=None):
        """Keys and values (B, H, M, K) of `memory_BMD`: the same for every step of a decoding."""
        B, M, D = memory_BMD.shape
        kv = self.kv(memory_BMD).view(B, M, 2, self.heads, D // self.heads)
        k_BHMK, v_BHMK = kv.permute(2, 0, 3, 1, 4)
        k_BHMK = self.key_norm(k_BHMK)
        return (k_BHMK if turn is None else rotate(k_BHMK, turn)), v_BHMK

    def forward(self, x_BLD: torch.Tensor, keys_values, turn=None, mask=None) -> torch.Tensor:
        """`keys_values` from the method of that name; `turn` is that of `x_BLD`."""
        B, L, D = x_BLD.shape
        q_BHLK = self.q(x_BLD).view(B, L, self.heads, D // self.heads).transpose(1, 2)
        q_BHLK = self.query_norm(q_BHLK)
        if turn is not None:
            q_BHLK = rotate(q_BHLK, turn)
        y_BHLK = attend(q_BHLK, *keys_values, mask)
        return self.out(y_BHLK.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two matrices with a GELU between; the second starts at 0."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        # The exact GELU: on a CPU the approximation is the slower one.
        return self.down(F.gelu(self.up(x_BLD)))


class Block(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.attention_norm, self.attention = Norm(width), SelfAttention(width, heads)
        self.mlp_norm, self.mlp = Norm(width), MLP(width, hidden)

    def forward(
        self, x_BLD: torch.Tensor, turn=None, mask=None, causal=False, cache: Cache | None = None
    ) -> torch.Tensor:
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), turn, mask, causal, cache)
        return x_BLD + self.mlp(self.mlp_norm(x_BLD))


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Trainable parameters of each direct part of `model`, and their total."""
    counts = {
        name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()
    }
    own = sum(p.numel() for p in model.parameters(recurse=False))
    if own:
        counts["own"] = own
    return {**counts, "total": sum(counts.values())}
