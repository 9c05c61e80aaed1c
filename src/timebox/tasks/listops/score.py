"""How answers are judged, and what rules score that ask neither the operation nor a model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from timebox.tasks.listops.data import NOTHING, OPERATIONS, Inputs, ListData, answers

COMMON = "most common answer"  # to this operation in the training part


def accuracy(right_N: np.ndarray) -> float:
    """The share of answers that are right; 0 where there is none."""
    return float(right_N.mean()) if len(right_N) else 0.0


def by_operation(inputs: Inputs, right_N: np.ndarray) -> dict[str, float]:
    """The share of right answers to the inputs of each operation that occurs."""
    return {
        name: accuracy(right_N[inputs.operation_N == k])
        for k, name in enumerate(OPERATIONS)
        if (inputs.operation_N == k).any()
    }


def _always(operation: str) -> Callable[[Inputs], np.ndarray]:
    """Whatever is asked for, the answer that `operation` has."""
    k = OPERATIONS.index(operation)
    return lambda inputs: answers(Inputs(np.full(len(inputs), k), inputs.items_NM))


def _middle(inputs: Inputs) -> np.ndarray:
    values = np.where(inputs.items_NM == NOTHING, np.iinfo(np.int16).max, inputs.items_NM)
    return np.sort(values, axis=1)[np.arange(len(inputs)), inputs.length_N // 2].astype(np.int64)


def _common(data: ListData) -> Callable[[Inputs], np.ndarray]:
    training = data.parts["training"]
    counts = np.zeros((len(OPERATIONS), data.max_value + 1), np.int64)
    np.add.at(counts, (training.operation_N, answers(training)), 1)
    return lambda inputs: counts.argmax(1)[inputs.operation_N]


def trivial(data: ListData) -> dict[str, Callable[[Inputs], np.ndarray]]:
    """Rules that cost nothing, the one that is right most often on the training part first."""
    rules = {
        "first item": _always("First"),
        "last item": _always("Last"),
        "largest item": _always("Max"),
        "smallest item": _always("Min"),
        "middle value": _middle,
        COMMON: _common(data),
    }
    training = data.parts["training"]
    truth = answers(training)
    order = sorted(rules, key=lambda name: -accuracy(rules[name](training) == truth))
    return {name: rules[name] for name in order}
