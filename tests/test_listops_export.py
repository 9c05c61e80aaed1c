"""Predictions of the listops task: scores, files, verdicts, and what is refused of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from timebox.clock import Clock
from timebox.tasks import load_task
from timebox.tasks.listops.data import NOTHING, OPERATIONS, Inputs, answers, encode
from timebox.tasks.listops.score import COMMON, trivial


class Oracle(torch.nn.Module):
    """Knows every answer, but gives it plus one to the operations in `wrong`."""

    def __init__(self, values: int = 10, wrong: tuple[str, ...] = ()):
        super().__init__()
        self.values, self.wrong = values, {OPERATIONS.index(name) for name in wrong}
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, tokens_BL, mask_BL):
        operation_B = tokens_BL[:, 0].numpy() - 1
        items = tokens_BL[:, 1:].numpy() - len(OPERATIONS) - 2
        truth = answers(Inputs(operation_B, np.where(items < 0, NOTHING, items)))
        truth = (truth + np.isin(operation_B, list(self.wrong))) % self.values
        return 8.0 * torch.nn.functional.one_hot(torch.from_numpy(truth), self.values).float()


def share(seconds=100.0):
    return Clock(200.0).share(seconds)


@pytest.fixture
def task():
    return load_task("listops")


def files(folder):
    return [
        json.loads((folder / f"{n}.json").read_text()) for n in ("submission", "eval_predictions")
    ]


def test_a_score_is_the_share_of_right_answers_with_its_loss_and_an_example(task):
    scores = task.score(Oracle(wrong=("Max",)), share(), None)
    assert scores["exact"] == pytest.approx(0.8)
    assert scores["by_operation"] == {**dict.fromkeys(OPERATIONS, 1.0), "Max": 0.0}
    assert (scores["items"], scores["items_total"]) == (100, 100)
    right = np.log(np.exp(8) + 9) - 8
    assert scores["loss"] == pytest.approx(0.8 * right + 0.2 * (right + 8), rel=1e-4)
    assert scores["tie_break"] == -scores["loss"]
    assert " = " in scores["example"] and "model: " in scores["example"]
    assert "\n" not in scores["example"]


def test_the_loss_of_a_score_is_that_of_training(task):
    torch.manual_seed(0)
    model = task.model()
    part = task.data.parts["validation"]
    tokens, mask = encode(part)
    batch = {
        "tokens": tokens, "mask": mask, "answer": torch.from_numpy(answers(part)),
        "weight": torch.full((len(part),), 1 / len(part)),
    }  # fmt: skip
    loss = float(model.loss(batch)[0].detach())
    assert task.score(model, share(), None)["loss"] == pytest.approx(loss, rel=1e-4)


def test_examples_take_turns(task):
    shown = {task.score(Oracle(), share(), None)["example"] for _ in range(6)}
    assert len(shown) == 6


def test_what_is_exported_is_reported_with_top_five_and_verdicts(task, tmp_path):
    notes = task.export(Oracle(wrong=("Min",)), tmp_path, share())
    assert notes["complete"] and notes["floor_only"] == 0
    task.check(tmp_path)
    submission, predictions = files(tmp_path)
    test = task.data.parts["test"]
    assert list(submission) == test.texts()
    assert all(entry["correct"] is None for entry in predictions["test"])
    assert len(predictions["other_unseen"]) == 4_000

    found = task.report(tmp_path)
    task.check(tmp_path)
    scores = found["evaluation"]
    assert scores["exact"] == pytest.approx(0.8) and scores["Min"] == 0 and scores["Last"] == 1
    assert scores["all_unseen"] == pytest.approx(0.8)
    assert (scores["items"], scores["items_total"]) == (100, 100)
    for entry, truth in zip(files(tmp_path)[1]["test"], answers(test).tolist(), strict=True):
        assert entry["truth"] == truth and entry["correct"] == (entry["answer"] == truth)
        assert entry["correct"] != entry["question"].startswith("Min")
        assert submission[entry["question"]] == entry["answer"] == entry["top"][0][0]
        values, shares = zip(*entry["top"], strict=True)
        assert len(set(values)) == 5 and list(shares) == sorted(shares, reverse=True)


def test_a_space_that_is_used_up_has_no_other_unseen_inputs(tmp_path):
    task = load_task("listops", size="medium")
    task.export(Oracle(), tmp_path, share())
    assert files(tmp_path)[1]["other_unseen"] == []
    assert "all_unseen" not in task.report(tmp_path)["evaluation"]


def test_without_time_the_floor_stands_in_and_nothing_else_is_claimed(task, tmp_path):
    notes = task.export(Oracle(), tmp_path, share(0.0))
    assert not notes["complete"] and notes["floor_only"] == 100
    task.check(tmp_path)
    assert set(files(tmp_path)[1]["other_unseen"]) == {None}
    assert "all_unseen" not in task.report(tmp_path)["evaluation"]


def test_the_floor_is_the_best_trivial_rule_on_the_training_part(task, tmp_path):
    rules = trivial(task.data)
    training = task.data.parts["training"]
    shares = [(rule(training) == answers(training)).mean() for rule in rules.values()]
    assert shares == sorted(shares, reverse=True)
    task.export(None, tmp_path, share())
    best = next(iter(rules))
    report = task.report(tmp_path)
    assert report["evaluation"]["exact"] == report["baselines"]["evaluation"][best]["exact"]
    assert report["baselines"]["evaluation"]["any value"]["exact"] == 0.1


def test_trivial_rules_answer_as_they_say():
    task = load_task("listops", items="2-5")
    rules = trivial(task.data)
    items = np.array([[3, 7, 1, NOTHING, NOTHING], [4, 0, 9, 9, 5]], np.int16)
    inputs = Inputs(np.array([0, 4]), items)
    for name, expected in {
        "first item": [3, 4], "last item": [1, 5], "largest item": [7, 9],
        "smallest item": [1, 0], "middle value": [3, 5],
    }.items():  # fmt: skip
        assert rules[name](inputs).tolist() == expected, name
    training = task.data.parts["training"]
    of_max = answers(training)[training.operation_N == OPERATIONS.index("Max")]
    common = rules[COMMON](Inputs(np.array([3]), items[:1]))
    assert common.tolist() == [np.bincount(of_max).argmax()]


DAMAGE = {
    "another question": lambda s, p: s.update({"Max(1, 1, 1)": s.pop(next(iter(s)))}),
    "a question twice": lambda s, p: s.update({"First(0, 0, 0) ": 0}),
    "an answer too large": lambda s, p: s.update({next(iter(s)): 10}),
    "a text": lambda s, p: s.update({next(iter(s)): "7"}),
    "a truth value": lambda s, p: s.update({next(iter(s)): True}),
    "a fraction": lambda s, p: s.update({next(iter(s)): 7.0}),
    "no predictions": lambda s, p: p.clear(),
    "a prediction less": lambda s, p: p["test"].pop(),
    "a prediction of null": lambda s, p: p["test"].__setitem__(0, None),
    "another order": lambda s, p: p["test"].reverse(),
    "not as submitted": lambda s, p: p["test"][0].update(answer=(p["test"][0]["answer"] + 1) % 10),
    "no top": lambda s, p: p["test"][0].update(top=[]),
    "a top of numbers": lambda s, p: p["test"][0].update(top=[1, 2]),
    "a probability above 1": lambda s, p: p["test"][0]["top"][0].__setitem__(1, 1.5),
    "no probability": lambda s, p: p["test"][0]["top"][0].__setitem__(1, None),
    "a top that starts elsewhere": lambda s, p: p["test"][0]["top"].reverse(),
    "an unseen one less": lambda s, p: p["other_unseen"].pop(),
    "an unseen one too large": lambda s, p: p["other_unseen"].__setitem__(0, 10),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_is_refused(task, tmp_path, what):
    task.export(Oracle(), tmp_path, share())
    task.check(tmp_path)
    submission, predictions = files(tmp_path)
    DAMAGE[what](submission, predictions)
    (tmp_path / "submission.json").write_text(json.dumps(submission))
    (tmp_path / "eval_predictions.json").write_text(json.dumps(predictions))
    with pytest.raises(ValueError, match="submission.json|eval_predictions.json"):
        task.check(tmp_path)
