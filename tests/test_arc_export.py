"""Predictions: valid files from the first second, anytime work, votes, and honest notes."""

import json

import numpy as np
import pytest
import torch

from timebox.clock import Clock
from timebox.tasks.arc import data as arc
from timebox.tasks.arc import export

IDENTITY = np.arange(10, dtype=np.uint8)


class FakeTime:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Turner(torch.nn.Module):
    """A model that knows the rule of every task here: exchange rows and columns."""

    def __init__(self, time=None, cost=0.0, right=lambda call, view: True, most_cells=10**9):
        super().__init__()
        self.one = torch.nn.Parameter(torch.zeros(1))
        self.time, self.cost, self.right, self.most_cells = time, cost, right, most_cells
        self.calls, self.views = 0, 0

    def predict(self, views):
        if sum(view.canvas[0] * view.canvas[1] for view in views) > self.most_cells:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        assert not self.training
        self.calls += 1
        self.views += len(views)
        if self.time:
            self.time.now += self.cost * len(views)
        answers = []
        for view in views:
            # In the view's frame the exchange is another symmetry of the square.
            original = arc.untransform(view.grid, view.transform)
            answer = arc.transform(original.T, view.transform)
            answers.append(
                (np.ascontiguousarray(answer), -1.0)
                if self.right(self.calls, view)
                else (np.zeros_like(answer), 0.0)  # wrong and sure of it
            )
        return answers


def make(tasks=3, tests=2, views=4, layout="official"):
    rng = np.random.default_rng(0)
    challenges, solutions = {}, {}
    for name, start in (("training", 0), ("evaluation", 100), ("test", 200)):
        challenges[name], solutions[name] = {}, {}
        for k in range(start, start + tasks):
            grids = [rng.integers(1, 10, rng.integers(2, 6, 2)).astype(np.uint8) for _ in range(6)]
            pairs = [(g, np.ascontiguousarray(g.T)) for g in grids]
            # One demonstration that no trivial rule explains: the floor cannot solve the task.
            pairs[0] = (pairs[0][0], np.zeros((1, 1), np.uint8))
            puzzle = arc.Puzzle(str(k), tuple(pairs[:3]), tuple(g for g, _ in pairs[3 : 3 + tests]))
            challenges[name][str(k)] = puzzle
            solutions[name][str(k)] = [o for _, o in pairs[3 : 3 + tests]]
    data = arc.ArcData(arc.Source("made", challenges, solutions.get))
    return export.Predictions(data, views, layout)


def share(seconds=1000.0, time=None):
    return Clock(10_000, now=time or FakeTime()).share(seconds)


def read(folder):
    return [json.loads((folder / n).read_text()) for n in (export.SUBMISSION, export.PREDICTIONS)]


@pytest.mark.parametrize("layout", ["official", "records"])
def test_the_floor_is_valid_complete_and_never_the_same_twice(tmp_path, layout):
    predictions = make(layout=layout)
    notes = predictions.export(None, tmp_path, share())
    predictions.check(tmp_path)
    assert (notes["inputs"], notes["floor_only"], notes["views"]) == (12, 12, 0)
    assert notes["complete"]
    submission, evaluation = read(tmp_path)
    assert len(submission) == (3 if layout == "official" else 6) and len(evaluation) == 6
    assert all(entry["exact"] is None and entry["accuracy"] is None for entry in evaluation)


def test_a_model_that_is_right_solves_everything_after_the_votes(tmp_path):
    predictions = make()
    notes = predictions.export(Turner(), tmp_path, share())
    predictions.check(tmp_path)
    assert (notes["inputs"], notes["floor_only"], notes["views"]) == (12, 0, 4)
    assert notes["complete"]
    report = predictions.report(tmp_path)
    assert report["evaluation"]["competition"] == 1 and report["evaluation"]["exact"] == 1
    assert report["evaluation"]["items"] == report["evaluation"]["items_total"] == 6
    assert report["baselines"]["evaluation"]["copy the input"]["exact"] == 0
    for entry in read(tmp_path)[1]:
        assert entry["exact"] and entry["accuracy"] == 1 and entry["size_correct"]
        assert entry["prediction"] != entry["attempt_2"]
    predictions.check(tmp_path)


def test_the_most_voted_answer_wins(tmp_path):
    """Right under three of four views, whichever view is the odd one."""
    for odd in range(4):
        predictions = make()
        model = Turner(right=lambda call, view, odd=odd: view.transform != odd)
        predictions.export(model, tmp_path, share())
        assert predictions.report(tmp_path)["evaluation"]["pass@1"] == 1


def test_a_tie_of_votes_goes_to_the_surer_answer():
    item = make().evaluation[0]
    votes = export.Votes(item)
    votes.add(np.array([[1]], np.uint8), -3.0)
    votes.add(np.array([[2]], np.uint8), -1.0)
    votes.add(np.array([[3]], np.uint8), -2.0)
    assert [a.tolist() for a in votes.attempts()] == [[[2]], [[3]]]


def test_a_copy_of_the_input_is_the_last_choice_unless_a_demonstration_keeps_its_input():
    item = make().evaluation[0]
    for may_copy in (False, True):
        votes = export.Votes(item)
        votes.may_copy = may_copy
        votes.add(item.input, -1.0)
        votes.add(item.input, -1.0)
        votes.add(np.array([[2]], np.uint8), -9.0)
        assert np.array_equal(votes.attempts()[0], item.input) == may_copy


def test_when_the_share_ends_early_the_rest_keeps_the_floor_and_is_counted(tmp_path):
    time = FakeTime()
    predictions = make(tasks=60)
    model = Turner(time, cost=1.0)
    notes = predictions.export(model, tmp_path, share(100, time))
    predictions.check(tmp_path)
    assert 0 < notes["floor_only"] < notes["inputs"] == 240 and notes["views"] == 0
    assert not notes["complete"]
    assert model.views + notes["floor_only"] == 240


def test_no_work_begins_after_the_share_is_over(tmp_path):
    time = FakeTime()
    model = Turner(time)
    over = share(1, time)
    time.now = 2.0
    predictions = make()
    assert predictions.export(model, tmp_path, over)["floor_only"] == 12
    predictions.check(tmp_path)
    scored = predictions.score(model, over, None)
    assert (scored["items"], scored["items_total"], model.calls) == (0, 6, 0)


def test_out_of_memory_halves_the_batch_and_goes_on(tmp_path):
    predictions = make()
    model = Turner(most_cells=250)
    assert predictions.export(model, tmp_path, share())["views"] == 4
    assert predictions.report(tmp_path)["evaluation"]["competition"] == 1
    with pytest.raises(RuntimeError, match="out of memory"):
        predictions.export(Turner(most_cells=1), tmp_path, share())


def test_an_input_that_two_sets_share_is_predicted_once(tmp_path):
    predictions = make()
    data = predictions.data
    challenges = {**data.tasks, "test": data.tasks["evaluation"]}
    same = arc.ArcData(arc.Source("same", challenges, data.source.solutions))
    predictions, model = export.Predictions(same, 1, "official"), Turner()
    predictions.export(model, tmp_path, share())
    assert model.views == 6
    submission, evaluation = read(tmp_path)
    for entry in evaluation:
        attempts = submission[entry["task_id"]][entry["test_index"]]
        assert attempts["attempt_1"] == entry["prediction"]


def test_the_score_counts_the_first_items_of_one_fixed_order():
    predictions = make(tasks=40)
    wrong = {item.input.tobytes() for item in predictions.validation[:20]}
    model = Turner(right=lambda call, view: view.grid.tobytes() not in wrong)
    assert predictions.score(model, share(), 20)["exact"] == 0
    whole = predictions.score(model, share(), None)
    assert whole["exact"] == pytest.approx(0.75) and whole["items"] == whole["items_total"] == 80
    assert whole["tie_break"] == whole["cell_accuracy"]
    assert make(tasks=40).validation[0].puzzle.id == predictions.validation[0].puzzle.id
    assert predictions.score(None, share(), None)["exact"] < 0.05


def test_a_score_that_is_cut_short_says_how_many_items_it_saw():
    time = FakeTime()
    predictions = make(tasks=80)
    scored = predictions.score(Turner(time, cost=1.0), share(60, time), None)
    assert 0 < scored["items"] < scored["items_total"] == 160 and scored["exact"] == 1


def test_an_item_of_the_evaluation_set_never_chooses_the_weights():
    predictions = make()
    data = predictions.data
    shared = dict(list(data.tasks["evaluation"].items())[:1])
    challenges = {**data.tasks, "training": {**data.tasks["training"], **shared}}
    mixed = arc.ArcData(arc.Source("mixed", challenges, data.source.solutions))
    assert len(export.Predictions(mixed, 1, "official").validation) == 6


def test_a_model_goes_back_to_training_after_predicting():
    predictions, model = make(), Turner()
    model.train()
    predictions.score(model, share(), None)
    assert model.training


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "{}",
        lambda text: "[]",
        lambda text: text.replace("[[", "[[12, ", 1),
        lambda text: text.replace("attempt_2", "attempt_3", 1),
    ],
)
@pytest.mark.parametrize("name", [export.SUBMISSION, export.PREDICTIONS])
def test_a_damaged_file_is_refused(tmp_path, damage, name):
    predictions = make()
    predictions.export(None, tmp_path, share())
    path = tmp_path / name
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=name):
        predictions.check(tmp_path)


def test_two_equal_attempts_are_refused(tmp_path):
    predictions = make()
    predictions.export(None, tmp_path, share())
    submission, _ = read(tmp_path)
    submission["200"][0]["attempt_2"] = submission["200"][0]["attempt_1"]
    (tmp_path / export.SUBMISSION).write_text(json.dumps(submission))
    with pytest.raises(ValueError, match="200: test 0: the two attempts are the same"):
        predictions.check(tmp_path)


@pytest.mark.parametrize(
    "rule",
    [
        np.flipud,
        np.rot90,
        lambda g: np.kron(g, np.ones((2, 2), np.uint8)),
        lambda g: np.tile(g, (1, 3)),
        lambda g: np.array([0, 5, 6, 7, 1, 2, 3, 4, 9, 8], np.uint8)[g],
        lambda g: np.full((2, 2), 4, np.uint8),
    ],
)
def test_the_floor_solves_what_a_trivial_rule_explains(rule):
    rng = np.random.default_rng(0)
    grids = [rng.permutation(np.resize(np.arange(10, dtype=np.uint8), 20)) for _ in range(4)]
    grids = [g.reshape(4, 5) for g in grids]
    demos = tuple((g, np.ascontiguousarray(rule(g)).astype(np.uint8)) for g in grids[:3])
    first, second = export.floor(arc.Puzzle("x", demos, ()), grids[3])
    assert np.array_equal(first, rule(grids[3])) and not np.array_equal(first, second)


def flipped(demos: int, answer) -> tuple[arc.Puzzle, np.ndarray]:
    """A puzzle whose demonstrations are all turned upside down, and a test input of it."""
    rng = np.random.default_rng(1)
    grids = [rng.integers(0, 10, (3, 4)).astype(np.uint8) for _ in range(demos + 1)]
    pairs = tuple((g, np.ascontiguousarray(g[::-1])) for g in grids[:demos])
    return arc.Puzzle("flip", pairs, (grids[-1],)), answer(grids[-1])


def test_an_answer_by_a_rule_that_explains_everything_comes_before_the_models():
    puzzle, right = flipped(3, lambda grid: grid[::-1])
    votes = export.Votes(arc.Item(puzzle, 0, 0, puzzle.tests[0]))
    wrong = np.ones((2, 2), np.uint8)
    votes.add(wrong, 0.0)
    first, second = votes.attempts()
    assert np.array_equal(first, right) and np.array_equal(second, wrong)


def test_one_demonstration_does_not_make_a_rule():
    """Any single pair is explained by "always this output"."""
    puzzle, _ = flipped(1, lambda grid: grid[::-1])
    assert export.by_rule(puzzle, puzzle.tests[0]) is None


def test_the_validation_score_tells_the_models_share_from_the_rules(monkeypatch):
    predictions = make()
    predictions.score(None, share(), None)
    first = predictions._truth[predictions.validation[0].puzzle.id]
    predictions._ruled[0] = first[predictions.validation[0].index]
    scores = predictions.score(Turner(right=lambda call, view: False), share(), None)
    assert scores["model_exact"] == 0 and scores["exact"] == 1 / 6
