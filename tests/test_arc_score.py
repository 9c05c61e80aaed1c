"""How ARC answers are judged: known answers for each rule, and every way a file can be wrong."""

import json

import numpy as np
import pytest

from timebox.tasks.arc import score
from timebox.tasks.arc.data import Puzzle


def grid(*rows):
    return np.array(rows, dtype=np.uint8)


A, B, C = grid([1, 2], [3, 4]), grid([5, 5]), grid([0])
TRUTH = {"one": [A], "two": [A, B], "three": [C]}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def attempts(first, second):
    return {"attempt_1": first.tolist(), "attempt_2": second.tolist()}


def test_the_three_rules_differ_where_they_should():
    """One of two outputs of a task solved: half of it by one rule, none of it by another."""
    answers = {"one": [[B, A]], "two": [[A, C], [C, C]], "three": [[A, B]]}
    scored = score.scores(answers, TRUTH)
    assert scored["competition"] == scored["pass@2"] == 2 / 4
    assert scored["mean_over_tasks"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert scored["tasks_solved_completely"] == 1 / 3
    assert scored["pass@1"] == scored["exact"] == 1 / 4
    assert (scored["items"], scored["tasks"]) == (4, 3)


def test_a_missing_task_and_a_missing_output_count_as_wrong():
    scored = score.scores({"two": [[A, C]]}, TRUTH)
    assert scored["competition"] == 1 / 4
    assert scored["mean_over_tasks"] == pytest.approx(0.5 / 3)
    assert score.scores({}, TRUTH)["competition"] == 0


def test_answers_to_unknown_tasks_gain_nothing():
    assert score.scores({"other": [[A, A]]}, TRUTH)["competition"] == 0


def test_cell_accuracy_is_zero_where_the_size_is_wrong():
    assert score.judge(grid([1, 2], [3, 0]), A) == {
        "exact": 0.0,
        "cell_accuracy": 0.75,
        "size_correct": 1.0,
    }
    # A single row that would broadcast against the truth is still the wrong size.
    assert score.judge(grid([1, 2]), A)["cell_accuracy"] == 0
    assert score.judge(A, A)["exact"] == 1


def test_the_baselines_do_what_their_names_say():
    puzzle = Puzzle("x", ((A, grid([7, 7, 1])), (B, grid([7, 2, 2]))), ())
    assert np.array_equal(score.BASELINES["copy the input"](puzzle, A), A)
    assert np.array_equal(score.BASELINES["all background"](puzzle, A), grid([7, 7], [7, 7]))
    assert np.array_equal(score.BASELINES["most common size"](puzzle, A), grid([7, 7, 7]))


@pytest.mark.parametrize("layout", ["official", "records"])
def test_a_written_submission_scores_as_its_answers_do(tmp_path, layout):
    answers = {"one": [[B, A]], "two": [[A, C], [C, C]], "three": [[A, B]]}
    path = write(tmp_path / "submission.json", score.to_layout(answers, layout))
    truth = write(tmp_path / "s.json", {id: [g.tolist() for g in t] for id, t in TRUTH.items()})
    challenges = write(
        tmp_path / "c.json",
        {id: {"train": [], "test": [{"input": [[0]]} for _ in t]} for id, t in TRUTH.items()},
    )
    assert score.score_files(path, truth) == score.scores(answers, TRUTH)
    assert score.check_files(path, challenges) == []


def test_the_official_layout_is_the_competitions():
    content = score.to_layout({"two": [[A, C], [B, C]]}, "official")
    assert content == {"two": [attempts(A, C), attempts(B, C)]}
    records = score.to_layout({"two": [[A, C], [B, C]]}, "records")
    assert records == [{"task_id": "two", **attempts(x, C)} for x in (A, B)]


GOOD = {"one": [attempts(A, B)], "two": [attempts(A, B), attempts(A, B)]}


def broken(change):
    content = json.loads(json.dumps(GOOD))
    change(content)
    return content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (broken(lambda s: s.pop("two")), "two: the task is missing"),
        (broken(lambda s: s.update(x=s["one"])), "x: there is no such task"),
        (broken(lambda s: s["two"].pop()), "two: has 1 outputs for 2 test inputs"),
        (broken(lambda s: s["one"][0].pop("attempt_2")), "one: test 0: attempt_2 is missing"),
        (
            broken(lambda s: s["two"][1].update(attempt_1=[[1, 2], [3]])),
            "two: test 1: attempt_1 row 1: has 1 cells where row 0 has 2",
        ),
        (broken(lambda s: s["one"][0].update(attempt_1=[])), "1 to 30 rows, not 0"),
        (broken(lambda s: s["one"][0].update(attempt_1=[[]])), "1 to 30 cells, not 0"),
        (broken(lambda s: s["one"][0].update(attempt_1=[[10]])), "from 0 to 9, not 10"),
        (broken(lambda s: s["one"][0].update(attempt_1=[[0] * 31])), "not 31"),
        (broken(lambda s: s["one"][0].update(attempt_1=None)), "not NoneType"),
        (broken(lambda s: s.update(one={})), "one: is not a list of attempts"),
        (json.dumps(GOOD)[:-9], "is not JSON"),
        ('"text"', "a dict by task id or a list"),
        ([{"attempt_1": [[0]], "attempt_2": [[0]]}], "record 0: is not a dict with a task_id"),
    ],
)
def test_every_fault_of_a_submission_is_found_and_named(tmp_path, content, words):
    tests = {"one": 1, "two": 2}
    problems = score.problems_of(write(tmp_path / "submission.json", content), tests)
    assert any(words in problem for problem in problems), problems


def test_a_valid_submission_has_no_problems_and_several_faults_are_all_listed(tmp_path):
    tests = {"one": 1, "two": 2}
    assert score.problems_of(write(tmp_path / "good.json", GOOD), tests) == []
    content = broken(lambda s: (s.pop("one"), s["two"][0].pop("attempt_1"), s["two"].pop()))
    assert len(score.problems_of(write(tmp_path / "bad.json", content), tests)) == 3


def test_scoring_a_file_that_is_not_json_is_refused(tmp_path):
    truth = write(tmp_path / "s.json", {"one": [A.tolist()]})
    with pytest.raises(ValueError, match="bad.json is not JSON"):
        score.score_files(write(tmp_path / "bad.json", "{"), truth)


def test_solutions_or_challenges_that_are_none_are_refused(tmp_path):
    submission = write(tmp_path / "submission.json", GOOD)
    with pytest.raises(ValueError, match="holds no solutions"):
        score.score_files(submission, write(tmp_path / "s.json", {}))
    with pytest.raises(ValueError, match="one: there is no list 'test'"):
        score.check_files(submission, write(tmp_path / "c.json", {"one": 3}))
    with pytest.raises(ValueError, match="list of outputs"):
        score.score_files(submission, write(tmp_path / "s.json", {"one": 3}))
