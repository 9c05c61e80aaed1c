"""Predictions: of the validation inputs for a score, of everything that is asked for files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from timebox.clock import Share
from timebox.files import read_json, refuse, write_json
from timebox.tasks.listops.data import Inputs, ListData, answers, encode
from timebox.tasks.listops.score import COMMON, accuracy, by_operation, trivial

SUBMISSION, PREDICTIONS = "submission.json", "eval_predictions.json"
TOP = 5
CHUNK = 2048  # inputs in one call of the model: a fraction of a second, even on a CPU


def log_probabilities(model: torch.nn.Module, inputs: Inputs, share: Share) -> torch.Tensor:
    """(N, V) on the CPU, of the first inputs if the share ends before all of them."""
    device = next(model.parameters()).device
    found, training = [], model.training
    model.eval()
    try:
        with torch.no_grad():
            for begin in range(0, len(inputs), CHUNK):
                if share.over():
                    break
                tokens_BL, mask_BL = encode(inputs[begin : begin + CHUNK])
                logits_BV = model(tokens_BL.to(device), mask_BL.to(device))
                found.append(logits_BV.float().log_softmax(-1).cpu())
    finally:
        model.train(training)
    return torch.cat(found) if found else torch.zeros(0, 1)


class Predictions:
    """What the task does with a model: score, export, report and check."""

    def __init__(self, data: ListData):
        self.data = data
        self.validation, self.test = data.parts["validation"], data.parts["test"]
        self.other = data.other_unseen()
        self.questions = self.test.texts()
        self.trivial = trivial(data)
        self.floor = next(iter(self.trivial.values()))
        self.shown = 0  # examples shown so far, so that each operation has its turn

    def score(self, model: torch.nn.Module | None, share: Share, limit: int | None) -> dict:
        """Exact match on the first `limit` validation inputs; of a model also its loss.

        "example" is the answer to one of them, of another operation each time.
        """
        inputs = self.validation[:limit]
        result = {"items_total": len(self.validation)}
        if model is None:
            right_N = self.floor(inputs) == answers(inputs)
        else:
            log_p_NV = log_probabilities(model, inputs, share)
            inputs = inputs[: len(log_p_NV)]
            truth_N = answers(inputs)
            given_N = log_p_NV.argmax(-1).numpy()
            right_N = given_N == truth_N
            if len(inputs):
                loss = float(F.nll_loss(log_p_NV, torch.from_numpy(truth_N)))
                result |= {"loss": loss, "tie_break": -loss}
                result["example"] = self._example(inputs, log_p_NV, truth_N)
        return {
            "exact": accuracy(right_N),
            **result,
            "by_operation": by_operation(inputs, right_N),
            "items": len(inputs),
        }

    def _example(self, inputs: Inputs, log_p_NV: torch.Tensor, truth_N: np.ndarray) -> str:
        row = self.shown % len(inputs)
        self.shown += 1
        log_p, given = log_p_NV[row].max(-1)
        return (
            f"{inputs[row : row + 1].texts()[0]} = {truth_N[row]}   "
            f"model: {int(given)} ({math.exp(float(log_p)):.0%})"
        )

    def export(self, model: torch.nn.Module | None, folder: Path, share: Share) -> dict:
        """Write submission.json and eval_predictions.json, both complete, into `folder`.

        The test inputs are answered first, then all other unseen ones where these are few. What
        the share does not suffice for has the floor's answer, or none.
        """
        began = share.clock.now()
        top_NK, share_NK = self._floor_top(self.test)
        answered, other = len(self.test), self.floor(self.other).tolist()
        if model is not None:
            log_p_NV = log_probabilities(model, self.test, share)
            answered = len(log_p_NV)
            if answered:
                best = log_p_NV.topk(min(TOP, log_p_NV.shape[1]), -1)
                top_NK = best.indices.tolist() + top_NK[answered:]
                share_NK = best.values.exp().tolist() + share_NK[answered:]
            given = log_probabilities(model, self.other, share).argmax(-1).tolist()
            other = given + [None] * (len(self.other) - len(given))
        entries = [
            {
                "question": question,
                "answer": top_K[0],
                "top": [
                    [value, round(probability, 6)]
                    for value, probability in zip(top_K, share_K, strict=True)
                ],
                "truth": None,
                "correct": None,
            }
            for question, top_K, share_K in zip(self.questions, top_NK, share_NK, strict=True)
        ]
        submission = {entry["question"]: entry["answer"] for entry in entries}
        write_json(Path(folder) / SUBMISSION, submission)
        write_json(Path(folder) / PREDICTIONS, {"test": entries, "other_unseen": other})
        return {
            "inputs": len(self.test),
            "floor_only": len(self.test) - answered,
            "complete": answered == len(self.test),
            "plain_seconds": share.clock.now() - began,
        }

    def _floor_top(self, inputs: Inputs) -> tuple[list, list]:
        return [[value] for value in self.floor(inputs).tolist()], [[1.0]] * len(inputs)

    def report(self, folder: Path) -> dict:
        """Score the predictions by the right answers, and write the verdict beside each.

        "all_unseen" is the accuracy on every input that neither trained nor chose the weights,
        where these are few enough to be asked.
        """
        path = Path(folder) / PREDICTIONS
        predictions = read_json(path)
        truth_N = answers(self.test)
        for entry, truth in zip(predictions["test"], truth_N.tolist(), strict=True):
            entry["truth"], entry["correct"] = truth, entry["answer"] == truth
        write_json(path, predictions)

        given_N = np.array([entry["answer"] for entry in predictions["test"]])
        found = self._scores(given_N)
        other = predictions["other_unseen"]
        if other and None not in other:
            every = np.concatenate((given_N == truth_N, np.array(other) == answers(self.other)))
            found = {"exact": found["exact"], "all_unseen": accuracy(every), **found}
        # The best rule is what the floor submission follows; the others tell little more.
        chosen = [next(iter(self.trivial)), COMMON]
        baselines = {name: self._scores(self.trivial[name](self.test)) for name in chosen}
        chance = 1 / (self.data.max_value + 1)
        uniform = dict.fromkeys(["exact", *by_operation(self.test, given_N)], chance)
        return {
            "evaluation": {**found, "items": len(given_N), "items_total": len(self.test)},
            "baselines": {"evaluation": {**baselines, "any value": uniform}},
        }

    def _scores(self, given_N: np.ndarray) -> dict[str, float]:
        right_N = given_N == answers(self.test)
        return {"exact": accuracy(right_N), **by_operation(self.test, right_N)}

    def check(self, folder: Path) -> None:
        """Reload both files; a ValueError that names the problems unless both are valid."""
        path = Path(folder) / SUBMISSION
        submission = read_json(path)
        if type(submission) is not dict:
            raise ValueError(f"{path}: a submission is an object from question to answer")
        refuse(path, list(self._wrong_questions(list(submission))))
        refuse(path, [f"{q}: {p}" for q, v in submission.items() for p in self._wrong(v)])

        path = Path(folder) / PREDICTIONS
        predictions = read_json(path)
        if type(predictions) is not dict or predictions.keys() != {"test", "other_unseen"}:
            raise ValueError(f'{path}: predictions are an object of "test" and "other_unseen"')
        test, other = predictions["test"], predictions["other_unseen"]
        if type(test) is not list or not all(type(entry) is dict for entry in test):
            raise ValueError(f'{path}: "test" is a list of objects')
        if type(other) is not list or len(other) != len(self.other):
            raise ValueError(f'{path}: "other_unseen" is a list of {len(self.other):,} answers')
        refuse(path, list(self._wrong_questions([entry.get("question") for entry in test])))
        problems = [
            f"{entry['question']}: {problem}"
            for entry in test
            for problem in self._wrong_entry(entry, submission[entry["question"]])
        ]
        problems += [
            f"other_unseen {k}: {problem}"
            for k, value in enumerate(other)
            if value is not None
            for problem in self._wrong(value)
        ]
        refuse(path, problems)

    def _wrong_questions(self, questions: list):
        if len(questions) != len(self.questions):
            yield f"it answers {len(questions):,} questions, not {len(self.questions):,}"
            return
        for given, expected in zip(questions, self.questions, strict=True):
            if given != expected:
                yield f"the question is {expected!r}, not {given!r}"

    def _wrong(self, value):
        if type(value) is not int or not 0 <= value <= self.data.max_value:
            yield f"an answer is a whole number from 0 to {self.data.max_value}, not {value!r}"

    def _wrong_entry(self, entry: dict, submitted: int):
        answer, top = entry.get("answer"), entry.get("top")
        if type(answer) is not int or answer != submitted:
            yield f"the answer is {submitted}, as submitted, not {answer!r}"
        pairs = type(top) is list and 1 <= len(top) <= TOP
        pairs = pairs and all(type(pair) is list and len(pair) == 2 for pair in top)
        if not pairs:
            yield f'"top" is a list of up to {TOP} pairs of a value and its probability'
            return
        for value, probability in top:
            yield from self._wrong(value)
            if type(probability) not in (int, float) or not 0 <= probability <= 1:
                yield f"a probability is a number from 0 to 1, not {probability!r}"
        if top[0][0] != answer:
            yield f"the first of the top is the answer {answer!r}, not {top[0][0]!r}"
