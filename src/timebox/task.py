"""What the loop is told about a task, and all it is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from timebox.clock import Share


class Data(Protocol):
    """The training examples, as batches that are a pure function of (seed, step).

    One epoch is `steps` steps and visits each of the `examples` training examples exactly
    once. `digest` names the data and its order: a checkpoint of another digest is refused.
    """

    examples: int
    steps: int
    digest: str

    def batch(self, step: int, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
        """This rank's part of the batch of `step`: tensors with the examples as first dimension.

        ``batch["weight"]`` (float, one per example) adds up to 1 over all ranks, so losses of
        micro-batches and of ranks are *summed*. A rank never gets an empty batch: where there
        are fewer examples than ranks it gets one of weight 0.
        """


@dataclass(frozen=True)
class Task:
    """A task is these eleven things. The loop knows them by these names and by no other."""

    name: str
    metric: str  # the key of score()'s answer that chooses the best weights
    better: int  # +1: higher is better, -1: lower is
    data: Data
    # Has loss(batch) -> (the loss, summed by weight, {name: mean over the batch, to be logged}).
    model: Callable[[], torch.nn.Module]
    optimizer: Callable[[torch.nn.Module, Any], Any]  # (model, Settings) -> see timebox.optim
    # score(model | None, share, limit) -> scores on the first `limit` validation items in a fixed
    # random order (None: all); says "items" (scored) and "items_total"; None scores the floor.
    # "tie_break" (higher is better), where given, decides between equal metrics; "example", a
    # line about one item, is said beside the scores; nested dicts are only written down.
    score: Callable[[torch.nn.Module | None, Share, int | None], dict]
    # export(model | None, folder, share) -> notes; writes valid submission.json and
    # eval_predictions.json into folder: the cheapest complete version first, then better ones
    # while share.improving(). The notes say whether it got "complete" and, where it went on
    # after that, the "plain_seconds" of the first complete version. None writes the floor.
    export: Callable[[torch.nn.Module | None, Path, Share], dict]
    # report(folder) -> {"evaluation": {...}, "baselines": {...}}; the only one to open the
    # evaluation answers; adds the truth's verdict to eval_predictions.json.
    report: Callable[[Path], dict]
    check: Callable[[Path], None]  # raises ValueError unless the files in folder are valid
    # score() of a model also says its "loss": the mean over these items of what model.loss means.
    validation_loss: bool = False
