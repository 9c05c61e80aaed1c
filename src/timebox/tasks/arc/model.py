"""`grid`: a bidirectional transformer encoder over the cells of a canvas.

A cell's input is a colour, or OUTSIDE where the canvas is larger than the input; its output is
one of the colours, or OUTSIDE where the answer does not reach. So the size of the
answer is predicted with it, in one pass, and no decoding step depends on another. What the
puzzle demands is in an embedding of the task, learned from its demonstrations under all their
augmentations; there is no way to answer a task that was not trained on.

Shapes: B batch, L tokens of the flattened canvas, P cells of a token (1 or 4), D width, C output
classes.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from timebox.nn import Block, Norm, rotary_2d
from timebox.tasks.arc.data import (
    COLOURS,
    IGNORED,
    OUTSIDE,
    PAD,
    SIDE,
    TRANSFORMS,
    Grid,
    View,
    collate,
    on_canvas,
)

PRESETS = {  # width, layers, heads, hidden width
    "small": (128, 4, 2, 512),
    "orcasword": (256, 6, 8, 768),
}
# Tokens in a batch. On a CPU many small steps learn more than few large ones; a GPU wants work.
BATCH_TOKENS = {"small": 2048, "orcasword": 8192}


class GridModel(nn.Module):
    """The encoder for `tasks` tasks at one of the sizes in PRESETS."""

    def __init__(self, tasks: int, preset: str = "small"):
        super().__init__()
        width, layers, heads, hidden = PRESETS[preset]
        self.channels = width // heads
        # One table for a cell that is a token, and four for the four cells of one that is a square.
        self.colour = nn.Embedding(5 * (PAD + 1), width)
        self.position = nn.Embedding(4 * SIDE, width)
        self.transform = nn.Embedding(TRANSFORMS, width)
        self.task = nn.Embedding(tasks, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(layers))
        # The rule steers every layer: added to its input, which is then scaled and shifted
        # (FiLM, arXiv 1709.07871). Without the latter a task costs more visits to tell apart.
        self.add = nn.Parameter(torch.ones(layers))
        self.steer = nn.Linear(width, layers * 2 * width, bias=False)
        self.rule_norm = Norm(width)
        self.norm = Norm(width)
        self.head = nn.Linear(width, 5 * (OUTSIDE + 1), bias=False)
        self.keep = nn.Parameter(torch.tensor(1.0))
        for table in (self.colour, self.position, self.transform):
            nn.init.normal_(table.weight, std=0.5)
        # Tasks begin nearly alike, so what tells them apart is learned and not drawn.
        nn.init.normal_(self.task.weight, std=0.05)
        nn.init.zeros_(self.steer.weight)
        nn.init.zeros_(self.head.weight)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits (B, L, P, C) of the answer's cells, from a batch as `data.collate` makes it."""
        given_BLP, row_BL, column_BL = batch["input"], batch["row"], batch["column"]
        rows_B1, columns_B1 = batch["shape"].split(1, 1)
        cells = given_BLP.shape[2]
        first = int(cells > 1)  # which of the five tables the token's first cell looks up
        tables_P = torch.arange(first, first + cells, device=given_BLP.device)
        x_BLD = (
            self.colour(given_BLP + (PAD + 1) * tables_P).sum(2)
            + self.position(row_BL)
            + self.position(SIDE + column_BL)
            # Counted from the far edge too, which a relative position cannot see.
            + self.position(2 * SIDE + (rows_B1 - 1 - row_BL).clamp_min(0))
            + self.position(3 * SIDE + (columns_B1 - 1 - column_BL).clamp_min(0))
        )
        rule_B1D = (self.task(batch["task"]) + self.transform(batch["transform"]))[:, None]
        middle = (cells > 1) / 2
        turn = rotary_2d(row_BL + middle, column_BL + middle, self.channels)
        real_BL = given_BLP[..., 0] != PAD
        mask = real_BL[:, None, None]
        if mask.device.type == "cpu" and mask.all():  # elsewhere asking costs more than masking
            mask = None
        steer = self.steer(self.rule_norm(rule_B1D)).chunk(2 * len(self.blocks), -1)
        for i, block in enumerate(self.blocks):
            x_BLD = x_BLD + self.add[i] * rule_B1D
            x_BLD = block(x_BLD * (1 + steer[2 * i]) + steer[2 * i + 1], turn, mask)
        classes = OUTSIDE + 1
        weight_FD = self.head.weight[first * classes : (first + cells) * classes]
        logits_BLPC = F.linear(self.norm(x_BLD), weight_FD).unflatten(-1, (cells, classes)).float()
        # Most cells of most answers are as they were.
        return logits_BLPC + self.keep * F.one_hot(given_BLP.clamp_max(OUTSIDE), classes)

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Cross-entropy of the canvas's cells, averaged within each example, then by its weight.

        Also the share of the true answers' own cells that come out right. The cells around an
        answer do not count there, and padding counts nowhere.
        """
        logits_BMC, target_BM = self(batch).flatten(1, 2), batch["target"].flatten(1)
        cells_BM = F.cross_entropy(
            logits_BMC.transpose(1, 2), target_BM, ignore_index=IGNORED, reduction="none"
        )
        count_B = (target_BM != IGNORED).sum(1)
        loss = (cells_BM.sum(1) / count_B * batch["weight"]).sum()
        with torch.no_grad():
            own_BM = (target_BM != IGNORED) & (target_BM != OUTSIDE)
            right_BM = (logits_BMC.argmax(-1) == target_BM) & own_BM
            share_B = right_BM.sum(1) / own_BM.sum(1)
            part_B = batch["weight"] / batch["weight"].sum().clamp_min(1e-12)
            return loss, {"cell accuracy": (share_B * part_B).sum()}

    @torch.inference_mode()
    def predict(self, views: list[View]) -> list[tuple[Grid, float]]:
        """The answer to each view, in the view's own colours and orientation, and its
        log-probability."""
        batch = {k: t.to(self.head.weight.device) for k, t in collate(views).items()}
        log_p_BLPC = self(batch).log_softmax(-1)
        best_BLP, colour_BLP = log_p_BLPC[..., :COLOURS].max(-1)
        outside_BLP = log_p_BLPC[..., OUTSIDE]
        # To the CPU first: not every device has float64.
        found = (best_BLP, colour_BLP, outside_BLP)
        arrays = (a.float().cpu().numpy().astype(np.float64) for a in found)
        return [
            likeliest(*(on_canvas(row, view.canvas) for row in rows))
            for view, *rows in zip(views, *arrays, strict=True)
        ]


def likeliest(best: np.ndarray, colour: np.ndarray, outside: np.ndarray) -> tuple[Grid, float]:
    """The most probable answer, and its log-probability.

    Of all rectangles at the top left of the canvas the one that maximises the probability of
    its cells' best colours inside times that of OUTSIDE around it: the best valid answer that
    independent cells allow, whatever single cells say.

    `best` and `colour`: log-probability and number of each cell's best colour; `outside`:
    log-probability of OUTSIDE; all (rows, columns).
    """
    gain = (best - outside).cumsum(0).cumsum(1)
    last_row, last_column = np.unravel_index(gain.argmax(), gain.shape)
    answer = colour[: last_row + 1, : last_column + 1].astype(np.uint8)
    return answer, float(gain.max() + outside.sum())
