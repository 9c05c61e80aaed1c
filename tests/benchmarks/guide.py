"""The training loop that the guide for the full-data ARC run describes, written plainly.

One pair per step, every grid padded with colour 0 to 30x30, a post-norm encoder of 5.0 M
parameters over 900 cells in fp32, AdamW. It is the yardstick for pairs per second.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

SIDE = 30


class GuideModel(nn.Module):
    """256 wide, 6 layers, 8 heads; a colour for each of the 900 cells."""

    def __init__(self):
        super().__init__()
        self.colour = nn.Embedding(10, 256)
        self.position = nn.Parameter(torch.randn(1, SIDE * SIDE, 256) * 0.02)
        layer = nn.TransformerEncoderLayer(256, 8, 1024, 0.1, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.head = nn.Sequential(
            nn.Linear(256, 128), nn.GELU(), nn.Dropout(0.1), nn.Linear(128, 10)
        )

    def forward(self, cells_BL: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.colour(cells_BL) + self.position))


def canvas(grid: np.ndarray) -> torch.Tensor:
    """`grid` on a 30x30 canvas of colour 0, flattened, as a batch of one."""
    padded = np.zeros((SIDE, SIDE), dtype=np.int64)
    padded[: grid.shape[0], : grid.shape[1]] = grid
    return torch.from_numpy(padded.ravel())[None]


class GuideLoop:
    """`step(pair)` is one of the guide's training steps."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = GuideModel()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.01)

    def step(self, pair: tuple[np.ndarray, np.ndarray]) -> float:
        cells_BL, target_BL = canvas(pair[0]), canvas(pair[1])
        self.optimizer.zero_grad()
        logits_BLC = self.model(cells_BL)
        loss = nn.functional.cross_entropy(logits_BLC.flatten(0, 1), target_BL.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()
