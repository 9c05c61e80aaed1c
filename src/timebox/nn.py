"""The blocks that more than one model uses.

Shapes: B batch, L sequence length, D width, H heads, K width of a head, F hidden width.
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

    On a CPU in half precision PyTorch's own kernel takes two to six times as long as the plain
    products it stands for.
    """
    if q_BHLK.device.type != "cpu" or q_BHLK.dtype == torch.float32:
        return F.scaled_dot_product_attention(
            q_BHLK, k_BHLK, v_BHLK, attn_mask=mask, is_causal=causal
        )
    scores_BHLL = (q_BHLK * q_BHLK.shape[-1] ** -0.5) @ k_BHLK.mT
    if causal:
        mask = torch.ones(scores_BHLL.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=scores_BHLL.dtype).masked_fill_(~mask, float("-inf"))
        scores_BHLL += bias
    return scores_BHLL.softmax(-1).to(v_BHLK.dtype) @ v_BHLK


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

    def forward(self, x_BLD: torch.Tensor, turn=None, mask=None, causal=False) -> torch.Tensor:
        """`turn` comes from `rotary`; `mask` and `causal` as in `attend`."""
        B, L, D = x_BLD.shape
        qkv = self.qkv(x_BLD).view(B, L, 3, self.heads, D // self.heads)
        q_BHLK, k_BHLK, v_BHLK = qkv.permute(2, 0, 3, 1, 4)
        q_BHLK, k_BHLK = self.query_norm(q_BHLK), self.key_norm(k_BHLK)
        if turn is not None:
            q_BHLK, k_BHLK = rotate(q_BHLK, turn), rotate(k_BHLK, turn)
        y_BHLK = attend(q_BHLK, k_BHLK, v_BHLK, mask, causal)
        return self.out(y_BHLK.transpose(1, 2).reshape(B, L, D))


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

    def forward(self, x_BLD: torch.Tensor, turn=None, mask=None, causal=False) -> torch.Tensor:
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), turn, mask, causal)
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
