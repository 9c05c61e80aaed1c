"""Predictions: valid files from the first second, anytime work, and an honest report."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from toy import FakeTime

from timebox.clock import Clock
from timebox.tasks import load_task
from timebox.tasks.collatz import data as collatz
from timebox.tasks.collatz import export, score


class Knower(torch.nn.Module):
    """A model that computes long steps, but writes `wrong` results where it is told to."""

    def __init__(self, data, wrong=lambda n, result, k, kk: result, time=None, most=10**9):
        super().__init__()
        self.one = torch.nn.Parameter(torch.zeros(1))
        self.data, self.wrong, self.time, self.most = data, wrong, time, most
        self.asked = 0

    def predict(self, input_BN):
        if len(input_BN) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        assert not self.training and not torch.is_grad_enabled()
        self.asked += len(input_BN)
        if self.time:
            self.time.pass_by(1.0)
        n = collatz.number(input_BN.numpy(), self.data.base, self.data.order)
        answers = self.wrong(n, *collatz.long_step(n))
        tokens = self.data.answers(np.maximum(answers, 1))
        tokens[answers == 0, :] = collatz.pad(self.data.base)
        return torch.from_numpy(tokens)

    def loss(self, batch):
        assert float(batch["weight"].sum()) == pytest.approx(1)
        size = batch["input"].float().mean(1) + batch["answer"].float().mean(1) * 0 + self.one
        return (size * batch["weight"]).sum(), {"token_accuracy": torch.tensor(0.75)}


def make(**options) -> export.Predictions:
    options = {"range_max": 2**22, "test_numbers": 600, "validation_numbers": 700, **options}
    return export.Predictions(load_task("collatz", **options).data)


@pytest.fixture
def predictions():
    return make()


def share(seconds=1000.0, time=None):
    return Clock(10_000, now=time or FakeTime()).share(seconds)


def read(folder):
    return [json.loads((folder / n).read_text()) for n in (export.SUBMISSION, export.PREDICTIONS)]


def test_the_floor_is_valid_complete_and_easy_to_read(predictions, tmp_path):
    notes = predictions.export(None, tmp_path, share())
    assert notes == {"numbers": 600, "floor_only": 600, "complete": True}
    predictions.check(tmp_path)
    submission, entries = read(tmp_path)
    for n, entry in zip(predictions.data.test.tolist(), entries, strict=True):
        assert submission["answers"][str(n)] == entry["answer"] == (3 * n + 1) // 4
        assert entry["n"] == n and (entry["k"], entry["k_prime"]) == tuple(
            int(v[0]) for v in collatz.long_step(np.array([n]))[1:]
        )
        assert [entry[name] for name in export.FIELDS] == [None] * 5


@pytest.mark.parametrize("order", ["least", "most"])
@pytest.mark.parametrize("range_max", [10_000, 2**22, 10**12])
def test_a_model_that_is_right_is_reported_as_right(order, range_max, tmp_path):
    predictions = make(order=order, range_max=range_max)
    notes = predictions.export(Knower(predictions.data), tmp_path, share())
    assert notes["complete"] and notes["floor_only"] == 0
    predictions.check(tmp_path)
    report = predictions.report(tmp_path)
    found = report["evaluation"]
    assert found["exact"] == found["k_exact"] == found["k_prime_exact"] == 1
    assert found["items"] == found["items_total"] == len(predictions.data.test)
    assert all(entry["correct"] and entry["kind"] == "right" for entry in read(tmp_path)[1])
    predictions.check(tmp_path)


def test_the_report_says_what_was_wrong_with_each_answer(predictions, tmp_path):
    def wrong(n, result, k, k_prime):
        return np.where(k_prime == 2, 2 * result, np.where(k == 3, 0, result))

    predictions.export(Knower(predictions.data, wrong), tmp_path, share())
    predictions.check(tmp_path)
    report = predictions.report(tmp_path)
    for entry in read(tmp_path)[1]:
        (truth,), (k,), (k_prime,) = collatz.long_step(np.array([entry["n"]]))
        assert entry["truth"] == truth and entry["correct"] == (entry["answer"] == truth)
        implied = entry["implied_k"], entry["implied_k_prime"]
        if k_prime == 2:
            assert (entry["kind"], *implied) == ("power_of_two", k, 1)
        elif k == 3:
            assert (entry["kind"], *implied) == ("not_a_number", None, None)
        else:
            assert (entry["kind"], *implied) == ("right", k, k_prime)
    _, k, k_prime = collatz.long_step(predictions.data.test)
    right = (k_prime != 2) & (k != 3)
    found = report["evaluation"]
    assert found["exact"] == pytest.approx(right.mean())
    assert found["wrong_loop_lengths"] == pytest.approx((k_prime == 2).sum() / (~right).sum())
    baselines = report["baselines"]["evaluation"]
    floor = float((predictions.data.test % 8 == 1).mean())
    best = "best constant: k=1, k'=1 (the floor)"
    assert list(baselines) == [best, "copy the input"], "one row for one rule"
    assert baselines[best]["exact"] == pytest.approx(floor)
    assert baselines["copy the input"]["exact"] == 0


def test_the_floor_has_a_row_of_its_own_where_other_loop_lengths_are_more_common(tmp_path):
    predictions = make()
    predictions.data.validation = predictions.data.validation[predictions.data.validation % 16 == 3]
    predictions.export(None, tmp_path, share())
    baselines = predictions.report(tmp_path)["baselines"]["evaluation"]
    assert list(baselines)[:2] == ["the floor: k=1, k'=1", "best constant: k=2, k'=2"]
    floor = float((predictions.data.test % 8 == 1).mean())
    assert baselines["the floor: k=1, k'=1"]["exact"] == pytest.approx(floor)


def test_a_score_is_free_running_and_says_what_else_was_measured(predictions):
    data = predictions.data
    model = Knower(data, lambda n, result, k, kk: np.where(k + kk <= 3, result, 2 * result))
    found = predictions.score(model, share(), None)
    _, k, k_prime = collatz.long_step(data.validation)
    assert found["exact"] == pytest.approx(float((k + k_prime <= 3).mean()))
    assert found["items"] == found["items_total"] == 700
    assert found["by_level"]["2"] == found["by_level"]["3"] == 1 and found["by_level"]["4"] == 0
    assert found["by_class"]["00001"] == 1 and found["by_class"]["11111"] == 0
    assert found["rung"] == 3
    assert found["token_accuracy_teacher_forced"] == 0.75
    # The mean over all numbers, whatever the batches were.
    expected = data.encode(data.validation)["input"].float().mean(1).mean()
    assert found["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert found["tie_break"] == -found["loss"]
    # The example is a wrong one of the lowest level: k + k' = 4.
    assert "= 2 x truth" in found["example"]
    n = int(found["example"].split()[0])
    assert sum(int(v[0]) for v in collatz.long_step(np.array([n]))[1:]) == 4
    assert model.training


def test_the_example_of_a_perfect_model_is_right(predictions):
    found = predictions.score(Knower(predictions.data), share(), 50)
    assert " right (k=" in found["example"] and found["items"] == 50


def test_the_floor_scores_a_quarter_without_a_model(predictions):
    found = predictions.score(None, share(), None)
    assert found["exact"] == pytest.approx(float((predictions.data.validation % 8 == 1).mean()))
    assert 0.2 < found["exact"] < 0.3 and "loss" not in found


def test_when_the_share_ends_early_the_rest_keeps_the_floor_and_is_counted(tmp_path):
    predictions, time = make(test_numbers=2000), FakeTime()
    model = Knower(predictions.data, time=time)
    notes = predictions.export(model, tmp_path, share(3, time))
    assert notes == {"numbers": 2000, "floor_only": 2000 - model.asked, "complete": False}
    assert 0 < model.asked < 2000
    predictions.check(tmp_path)
    entries = read(tmp_path)[1]
    truth = collatz.long_step(predictions.data.test)[0]
    assert [e["answer"] for e in entries[: model.asked]] == truth[: model.asked].tolist()
    floor = score.floor(predictions.data.test)[model.asked :].tolist()
    assert [e["answer"] for e in entries[model.asked :]] == floor


def test_a_score_cut_short_counts_what_it_saw(predictions):
    time = FakeTime()
    found = predictions.score(Knower(predictions.data, time=time), share(1, time), None)
    assert 0 < found["items"] < found["items_total"] and found["exact"] == 1
    over = predictions.score(Knower(predictions.data), share(0), None)
    assert over["items"] == 0 and over["exact"] == 0


def test_out_of_memory_halves_the_batch_and_goes_on(predictions, tmp_path):
    model = Knower(predictions.data, most=30)
    assert predictions.export(model, tmp_path, share())["complete"]
    assert predictions.report(tmp_path)["evaluation"]["exact"] == 1
    with pytest.raises(RuntimeError, match="memory"):
        predictions.export(Knower(predictions.data, most=0), tmp_path, share())


def change(name, value):
    def damage(submission, entries):
        submission["answers"][next(iter(submission["answers"]))] = value

    damage.__name__ = name
    return damage


def _less(submission, entries):
    submission["answers"].popitem()


def _more(submission, entries):
    submission["answers"]["2"] = 1


def _renamed(submission, entries):
    submission["task"] = "arc"


def _no_entry(submission, entries):
    entries.pop()


def _other_entry(submission, entries):
    entries[0]["n"] += 2


def entry(**changed):
    def damage(submission, entries):
        for name, value in changed.items():
            entries[0][name] = value(entries[0][name])

    damage.__name__ = " ".join(changed)
    return damage


def _no_k(submission, entries):
    del entries[0]["k"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("text", "31"), "whole number"),
        (change("null", None), "whole number"),
        (change("fraction", 1.5), "whole number"),
        (change("truth value", True), "whole number"),
        (change("negative", -1), "whole number"),
        (change("too large", 2**63), "whole number"),
        (_less, "is missing"),
        (_more, "'2' was not asked"),
        (_renamed, "task 'collatz'"),
        (_no_entry, "600 entries"),
        (_other_entry, "not that of"),
        (entry(n=float), "not that of"),
        (entry(answer=lambda answer: answer + 2), "answer is .*, as submitted, not"),
        (entry(answer=float), "as submitted, not .*\\.0"),
        (_no_k, "k is [0-9]+, not None"),
        (entry(k=lambda k: 77), "k is [0-9]+, not 77"),
        (entry(k_prime=str), "k_prime is [0-9]+, not '"),
        (entry(truth=lambda _: 12), "truth is null or [0-9]+, not 12"),
        (entry(correct=lambda _: 0), "correct is null or (True|False), not 0"),
        (entry(correct=lambda _: 1), "correct is null or (True|False), not 1"),
        (entry(kind=lambda _: "luck"), "kind is null or right or .*, not 'luck'"),
        (entry(implied_k=lambda _: -1), "implied_k is null or a number of steps, not -1"),
        (entry(implied_k_prime=lambda _: 1.0), "implied_k_prime is null or"),
    ],
)
def test_the_check_names_what_is_wrong(predictions, tmp_path, damage, message):
    predictions.export(None, tmp_path, share())
    predictions.check(tmp_path)
    submission, entries = read(tmp_path)
    damage(submission, entries)
    (tmp_path / export.SUBMISSION).write_text(json.dumps(submission))
    (tmp_path / export.PREDICTIONS).write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=message):
        predictions.check(tmp_path)


def test_files_of_other_numbers_are_refused(predictions, tmp_path):
    make(range_max=2**23).export(None, tmp_path, share())
    with pytest.raises(ValueError, match="more problems"):
        predictions.check(tmp_path)
