"""Predictions: of the validation numbers for a score, of the test numbers for the files.

Every number is answered by free-running greedy decoding: the model sees the input and its own
digits, never the truth's. When the share of the clock is over, the numbers that are left keep
the floor's answer.

A model needs two methods here: `predict(input (B, L)) -> tokens (B, at most answer_length)` and
`loss(batch) -> (mean loss, {"token_accuracy": ...})`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from timebox.clock import Share
from timebox.files import read_json, refuse, write_json
from timebox.tasks.collatz import score
from timebox.tasks.collatz.data import CollatzData, long_step

SUBMISSION, PREDICTIONS = "submission.json", "eval_predictions.json"
# Numbers in one call of predict: a fraction of a second, so the share is asked often enough.
NUMBERS = {"cpu": 512, "cuda": 4096}
# Of a prediction: what the report adds.
FIELDS = ("truth", "correct", "implied_k", "implied_k_prime", "kind")
LARGEST_ANSWER = 2**63 - 1


def answers(
    model: torch.nn.Module, data: CollatzData, numbers: np.ndarray, share: Share, loss: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray, float, float]]:
    """Numbers and answers (B,), in order, batch by batch until the share ends.

    With `loss` also the mean loss and the teacher-forced token accuracy of the batch, else 0.
    Where memory runs out the batch is halved, and it goes on.
    """
    device = next(model.parameters()).device
    size = NUMBERS.get(device.type, NUMBERS["cpu"])
    training = model.training
    model.eval()
    begin = 0
    try:
        with torch.no_grad():
            while begin < len(numbers) and not share.over():
                chosen = numbers[begin : begin + size]
                try:
                    found = _batch(model, data, chosen, device, loss)
                except RuntimeError as error:
                    if "memory" not in str(error).lower() or len(chosen) == 1:
                        raise
                    if device.type == "cuda":
                        torch.cuda.empty_cache()
                    size = len(chosen) // 2
                    continue
                begin += len(chosen)
                yield chosen, *found
    finally:
        model.train(training)


def _batch(model, data, numbers, device, loss: bool) -> tuple[np.ndarray, float, float]:
    given = torch.from_numpy(data.inputs(numbers)).to(device)
    found = data.read(model.predict(given).cpu().numpy())
    if not loss:
        return found, 0.0, 0.0
    batch = {name: tensor.to(device) for name, tensor in data.encode(numbers).items()}
    batch["weight"] = torch.full((len(numbers),), 1 / len(numbers), device=device)
    value, logs = model.loss(batch)
    return found, float(value), float(logs["token_accuracy"])


class Predictions:
    """`score`, `export`, `report` and `check` of the Collatz task."""

    def __init__(self, data: CollatzData, class_bits: int = 5):
        self.data, self.class_bits = data, class_bits

    def score(self, model: torch.nn.Module | None, share: Share, limit: int | None) -> dict:
        """Exact match of free-running answers on the first `limit` validation numbers.

        A model's also has "loss", the mean loss as in training, and
        "token_accuracy_teacher_forced", the share of right tokens after the true ones before:
        it looks far better than "exact" and is no score. "example": one answer in words, a
        wrong one of the lowest k + k' if there is any.
        """
        numbers, total = self.data.validation[:limit], len(self.data.validation)
        if model is None:
            judged = score.judge(numbers, score.floor(numbers))
            return {**self._verdict(judged), "items": len(numbers), "items_total": total}
        found, losses, accuracies = [], [], []
        for chosen, given, loss, accuracy in answers(model, self.data, numbers, share, loss=True):
            found.append(given)
            losses.append(loss * len(chosen))
            accuracies.append(accuracy * len(chosen))
        count = sum(map(len, found))
        if not count:
            return {"exact": 0.0, "loss": 0.0, "items": 0, "items_total": total}
        loss = sum(losses) / count
        judged = score.judge(numbers[:count], np.concatenate(found))
        shown = int(np.lexsort((judged.level, judged.right))[0])
        return {
            **self._verdict(judged),
            "loss": loss,
            "token_accuracy_teacher_forced": sum(accuracies) / count,
            "items": count,
            "items_total": total,
            "tie_break": -loss,
            "example": score.explain(int(judged.n[shown]), int(judged.answer[shown])),
        }

    def _verdict(self, judged: score.Judged) -> dict:
        return {
            "exact": float(judged.right.mean()),
            "rung": score.rung(judged),
            "by_level": score.by_level(judged),
            "by_class": score.by_class(judged, self.class_bits),
        }

    def export(self, model: torch.nn.Module | None, folder: Path, share: Share) -> dict:
        """Write submission.json and eval_predictions.json, both complete, into `folder`.

        Returns notes: how many test numbers there are and how many only have the floor's answer.
        """
        numbers = self.data.test
        given = score.floor(numbers)
        done = 0
        if model is not None:
            work = share.part(0.97)  # the rest is for writing
            for chosen, found, *_ in answers(model, self.data, numbers, work):
                given[done : done + len(chosen)] = found
                done += len(chosen)
        plain = {str(n): answer for n, answer in zip(numbers.tolist(), given.tolist(), strict=True)}
        write_json(Path(folder) / SUBMISSION, {"task": "collatz", "answers": plain})
        _, k, k_prime = long_step(numbers)
        predictions = [
            {"n": n, "answer": answer, "k": a, "k_prime": b, **dict.fromkeys(FIELDS)}
            for n, answer, a, b in zip(
                numbers.tolist(), given.tolist(), k.tolist(), k_prime.tolist(), strict=True
            )
        ]
        write_json(Path(folder) / PREDICTIONS, predictions)
        return {
            "numbers": len(numbers),
            "floor_only": len(numbers) - done,
            "complete": model is None or done == len(numbers),
        }

    def report(self, folder: Path) -> dict:
        """Judge the predictions of the test numbers, and write the verdict beside each."""
        path = Path(folder) / PREDICTIONS
        predictions = read_json(path)
        n, given = (np.array([p[name] for p in predictions], np.int64) for name in ("n", "answer"))
        judged = score.judge(n, given)
        kinds = list(score.KINDS)
        for i, entry in enumerate(predictions):
            entry["truth"] = int(judged.truth[i])
            entry["correct"] = bool(judged.right[i])
            for name in ("implied_k", "implied_k_prime"):
                implied = int(getattr(judged, name)[i])
                entry[name] = None if implied == score.NONE else implied
            entry["kind"] = kinds[judged.kind[i]]
        write_json(path, predictions)
        k, k_prime = score.best_constant(self.data.validation)
        # Of uniform numbers the floor's loop lengths are the best ones.
        floor = {} if (k, k_prime) == (1, 1) else {"the floor: k=1, k'=1": score.floor(n)}
        same = "" if floor else " (the floor)"
        baselines = {
            **floor,
            f"best constant: k={k}, k'={k_prime}{same}": score.constant(n, k, k_prime),
            "copy the input": n,
        }
        return {
            "evaluation": {
                **score.summary(judged, self.class_bits),
                "items_total": len(self.data.test),
            },
            "baselines": {
                "evaluation": {
                    name: {"exact": float((answer == judged.truth).mean())}
                    for name, answer in baselines.items()
                }
            },
        }

    def check(self, folder: Path) -> None:
        """Reload both files; a ValueError that names the problems unless both are valid."""
        numbers = self.data.test.tolist()
        path = Path(folder) / SUBMISSION
        given = read_json(path)
        if type(given) is not dict or given.get("task") != "collatz":
            raise ValueError(f"{path}: is not a dict with the task 'collatz'")
        if type(given.get("answers")) is not dict:
            raise ValueError(f"{path}: there is no dict 'answers'")
        given = given["answers"]
        problems = [
            f"answer to {n}: {_problem(given[str(n)])}" if str(n) in given else f"{n} is missing"
            for n in numbers
            if str(n) not in given or _problem(given[str(n)])
        ]
        if len(given) > len(numbers) - len(problems):
            asked = set(map(str, numbers))
            problems += [f"{n!r} was not asked" for n in given if n not in asked]
        refuse(path, problems)

        path = Path(folder) / PREDICTIONS
        predictions = read_json(path)
        if type(predictions) is not list or len(predictions) != len(numbers):
            raise ValueError(f"{path}: predictions are a list of {len(numbers)} entries")
        problems = []
        steps = (part.tolist() for part in long_step(self.data.test))
        for n, entry, *step in zip(numbers, predictions, *steps, strict=True):
            if type(entry) is not dict or type(entry.get("n")) is not int or entry["n"] != n:
                problems.append(f"an entry is not that of {n}")
            else:
                wrong = _wrong(entry, given[str(n)], *step)
                problems += [f"answer to {n}: {problem}" for problem in wrong]
        refuse(path, problems)


def _problem(answer: object) -> str:
    """What is wrong with an answer in a file; 0 stands for "not a number"."""
    if type(answer) is not int or not 0 <= answer <= LARGEST_ANSWER:
        return f"is a whole number from 0 to 2^63 - 1, not {answer!r}"
    return ""


def _wrong(entry: dict, submitted: int, truth: int, k: int, k_prime: int) -> Iterator[str]:
    """What is wrong with a prediction; before the report its verdict is null."""
    for name, expected in {"answer": submitted, "k": k, "k_prime": k_prime}.items():
        value = entry.get(name)
        if type(value) is not int or value != expected:
            as_submitted = ", as submitted," if name == "answer" else ","
            yield f"{name} is {expected}{as_submitted} not {value!r}"
    possible = {"truth": [truth], "correct": [submitted == truth], "kind": list(score.KINDS)}
    for name, values in possible.items():
        value = entry.get(name)
        if value is not None and not any(type(value) is type(v) and value == v for v in values):
            yield f"{name} is null or {' or '.join(map(str, values))}, not {value!r}"
    for name in ("implied_k", "implied_k_prime"):
        value = entry.get(name)
        if value is not None and (type(value) is not int or value < 0):
            yield f"{name} is null or a number of steps, not {value!r}"
