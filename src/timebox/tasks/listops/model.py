"""A small encoder that reads the answer where the operation stands.

All tokens look at all tokens of their list, two layers deep; what then stands at the operation
decides between the values. Positions turn the queries and keys (rotary), so that "the one after"
means the same everywhere in a list.

Shapes: B batch, L tokens, D width, H heads, V values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from timebox.nn import Block, Norm, rotary
from timebox.tasks.listops.data import FIRST_VALUE


class ListModel(nn.Module):
    """Logits over the `values` answers for the tokens of an operation and its list."""

    def __init__(self, values: int, width: int, heads: int, layers: int):
        super().__init__()
        self.channels = width // heads
        self.embedding = nn.Embedding(FIRST_VALUE + values, width)
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width) for _ in range(layers))
        self.norm = Norm(width)
        self.head = nn.Linear(width, values, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, tokens_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        """Logits (B, V); nothing attends where `mask_BL` is False."""
        x_BLD, turn, mask = self._start(tokens_BL, mask_BL)
        for block in self.blocks:
            x_BLD = block(x_BLD, turn, mask)
        return self.head(self.norm(x_BLD[:, 0])).float()

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Cross-entropy of the answers in nats, and the share that is right."""
        logits_BV = self(batch["tokens"], batch["mask"])
        loss_B = F.cross_entropy(logits_BV, batch["answer"], reduction="none")
        right_B = (logits_BV.argmax(-1) == batch["answer"]).float()
        weight_B = batch["weight"]
        share_B = weight_B / weight_B.sum().clamp_min(1e-12)
        return (weight_B * loss_B).sum(), {"accuracy": (share_B * right_B).sum().detach()}

    def attention(self, tokens_BL: torch.Tensor, mask_BL: torch.Tensor) -> list[torch.Tensor]:
        """For each layer the weights (B, H, L, L) by which `forward` mixes the tokens."""
        x_BLD, turn, mask = self._start(tokens_BL, mask_BL)
        weights = []
        for block in self.blocks:
            weights.append(block.attention.weights(block.attention_norm(x_BLD), turn, mask, False))
            x_BLD = block(x_BLD, turn, mask)
        return weights

    def _start(self, tokens_BL: torch.Tensor, mask_BL: torch.Tensor):
        position_BL = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)[None]
        turn = rotary(position_BL, self.channels, base=100.0)
        return self.embedding(tokens_BL), turn, mask_BL[:, None, None, :]
