"""List operations: First, Second, Last, Max or Min of a list of numbers.

Small enough to be understood completely: every input of the test is one that training never saw,
all inputs can be counted, and what the model attends to can be looked at.
"""

from __future__ import annotations

from typing import Literal

from timebox import optim
from timebox.settings import SettingError, check_heads, within
from timebox.task import Task
from timebox.tasks.listops.data import MOST_VALUE, ListData, lengths
from timebox.tasks.listops.export import Predictions
from timebox.tasks.listops.model import ListModel

SESSION_OPTIONS = ()
RECIPES = {
    # The step-by-step guide of llmlearn (github.com/GregoryShapiro/llmlearn), but on distinct
    # inputs and with true gradients.
    "guide": {
        "batch_size": 32, "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.0,
        "warmup": 0.0, "cooldown": 0.0, "epochs": 10, "eval_every_epochs": 1,
    },
}  # fmt: skip


def task(
    seed: int = 0,
    size: Literal["small", "medium", "large"] = "small",
    items: str = "3",
    max_value: int = 9,
    test_items: str = "",
    batch_size: int = 64,
    d_model: int = 64,
    nhead: int = 4,
    num_layers: int = 2,
    adam_lr: float = 3e-3,
) -> Task:
    """The listops task.

    `size`: 1,000, 10,000 or 100,000 examples. `items`: how many a list has, 2 to 20, or a range
    such as "2-20"; `test_items`: the same for the test part alone, other lengths than training
    shows; empty: those of `items`. `max_value`: the values are 0 to this, at most 99. `d_model`,
    `nhead`, `num_layers`: width, heads and layers of the encoder. `adam_lr`: peak rate of what
    Muon does not step; with optimizer=adamw of everything where no `lr` is given.
    """
    if not 1 <= max_value <= MOST_VALUE:
        raise SettingError(
            f"max_value must be from 1 (a single value is always the answer) to {MOST_VALUE}, "
            f"not {max_value}"
        )
    check_heads(d_model, nhead)
    within("num_layers", num_layers, 1, 1000)
    within("batch_size", batch_size, 1, 10**6)
    within("adam_lr", adam_lr, 1e-8, 1)
    trained = lengths("items", items)
    tested = lengths("test_items", test_items) if test_items else None
    if tested and (shared := set(trained) & set(tested)):
        raise SettingError(
            f"test_items {test_items} must be other lengths than items {items}: both have "
            f"{', '.join(map(str, sorted(shared)))}"
        )
    data = ListData(seed, size, trained, max_value, batch_size, tested)
    predictions = Predictions(data)
    return Task(
        name="listops",
        metric="exact",
        better=+1,
        data=data,
        model=lambda: ListModel(max_value + 1, d_model, nhead, num_layers),
        optimizer=lambda model, settings: optim.build(model, settings, lr=0.01, adam_lr=adam_lr),
        score=predictions.score,
        export=predictions.export,
        report=predictions.report,
        check=predictions.check,
        validation_loss=True,
    )
