"""A submission is valid from the first minute and is only ever replaced by a better one."""

from __future__ import annotations

import json
import math
import os
import signal
import time

import pytest
from toy import Toy, child, open_session, process, run_json, submission, train, wait_for

from timebox import files
from timebox.clock import Clock
from timebox.loop import fit
from timebox.record import Record, read
from timebox.submission import FLOOR, Submission

LONG = {"hours": 0.02}


def place(folder, toy=None):
    """A Submission in `folder` with the memory of the session before, as a session makes one."""
    folder.mkdir(parents=True, exist_ok=True)
    clock = Clock(60.0)
    record = Record(folder, clock, read(folder, ours=True) or {}, lambda text: None)
    record.data["task"] = "toy"
    return Submission(folder, (toy or Toy()).task(), record), clock.share(30.0)


def answers(folder):
    return json.loads((folder / "submission.json").read_text())


def fixed(number):
    """A toy that exports the same number everywhere, so that one can see whose it is."""
    return Toy(answers=lambda found: [number] * len(found))


def model():
    return Toy().task().model().eval()


def test_the_floor_stands_and_is_checked_before_the_first_batch(tmp_path):
    """A run that is killed inside its very first batch leaves it."""
    run = process(child, tmp_path, {}, {"hours": 0.05}, {"batch": 30.0})
    wait_for(tmp_path / "at-batch", run)
    os.kill(run.pid, signal.SIGKILL)
    run.join()
    assert run_json(tmp_path)["steps"] == 0
    Toy().task().check(tmp_path / "submissions" / "r")
    assert submission(tmp_path) == [0] * 50


def test_the_floor_is_there_before_the_model_is_built(tmp_path):
    toy, seen = Toy(), []
    session = open_session(tmp_path, toy)
    toy.on_model = lambda: seen.append(toy.events[0])
    toy.on_batch = lambda step: seen.append(session.submission.valid())
    toy.task().check(session.folder)
    session.task.model()
    assert seen == ["floor"]
    session.close()


def test_a_floor_that_does_not_pass_its_check_ends_the_session_before_training(tmp_path):
    toy = Toy(items=50)
    task = toy.task()
    (tmp_path / "x").mkdir()
    share = Clock(60.0).share(1.0)

    import dataclasses

    def no_floor(model, folder, share):
        (folder / "submission.json").write_text("[]")
        (folder / "eval_predictions.json").write_text("[]")
        return {"complete": True}

    record = Record(tmp_path / "x", Clock(60.0), {}, lambda text: None)
    broken = Submission(tmp_path / "x", dataclasses.replace(task, export=no_floor), record)
    with pytest.raises(ValueError, match="not 50 numbers"):
        broken.floor(share)
    assert not (tmp_path / "x" / "submission.json").exists()


def test_a_worse_one_never_replaces_a_better_one(tmp_path):
    one, share = place(tmp_path, fixed(1))
    one.floor(share)
    assert one.key() == FLOOR
    assert one.offer(model(), [0.5, 0.0], share) is not None
    two, share = place(tmp_path, fixed(2))  # a new session
    assert two.key() == [0.5, 0.0, 1, 1]
    assert two.floor(share) is False
    assert two.offer(model(), [0.4, 9.0], share) is None
    assert two.offer(model(), [0.5, -1.0], share) is None, "the second number breaks ties"
    assert answers(tmp_path) == [1] * 50
    assert two.offer(model(), [0.6, 0.0], share) is not None
    assert answers(tmp_path) == [2] * 50
    three, share = place(tmp_path)
    assert three.key() == [0.6, 0.0, 1, 1]


def test_an_equal_one_replaces_only_one_of_fewer_views(tmp_path):
    """The best weights of a later session are often the same, and its last minutes are fewer."""

    def later(number, views):
        toy = fixed(number)
        toy.views = views
        return place(tmp_path, toy)

    one, share = later(1, 56)
    one.floor(share)
    assert one.offer(model(), [50.0, 0.5, 0.0], share)["views"] == 56
    for views in (26, 56):
        two, share = later(2, views)
        assert two.offer(model(), [50.0, 0.5, 0.0], share) is None
        assert answers(tmp_path) == [1] * 50
    three, share = later(3, 64)
    assert three.offer(model(), [50.0, 0.5, 0.0], share)["views"] == 64
    assert answers(tmp_path) == [3] * 50
    four, share = later(4, 1)
    assert four.offer(model(), [50.0, 0.6, 0.0], share)["views"] == 1, "better weights count first"


def test_what_is_known_of_a_submission_survives_a_session_that_does_not_better_it(tmp_path):
    train(tmp_path, max_steps=24)
    first = run_json(tmp_path)["submission"]
    assert first["notes"]["views"] == 1 and first["notes"]["complete"] is True
    again = train(tmp_path, max_steps=24)
    assert len(again["sessions"]) == 2
    assert again["submission"] == first


def test_a_run_that_gets_worse_keeps_its_best_submission_across_sessions(tmp_path):
    scores = iter([0.9] + [0.1] * 100)

    def session(root, **given):
        toy = Toy(scores=lambda measured: next(scores))
        return train(root, toy, eval_every_epochs=1, eval_items=50, **LONG, **given)

    stop = lambda step: step == 5 and (tmp_path / "submissions/r/stop").touch()  # noqa: E731
    toy = Toy(scores=lambda measured: next(scores), on_batch=stop)
    train(tmp_path, toy, eval_every_epochs=1, eval_items=50, max_steps=12, **LONG)
    kept = submission(tmp_path)
    keys = run_json(tmp_path)["submission"]["keys"]
    assert list(keys.values()) == [[50, 0.9, 0, 1, 1]], "items, score, tie break, complete, views"
    data = session(tmp_path, max_steps=12)
    assert data["status"] == "finished"
    assert submission(tmp_path) == kept
    assert data["scores"]["validation"]["exact"] == 0.9
    assert data["submission"]["keys"] == keys


def test_the_best_weights_make_the_submission_not_the_last(tmp_path):
    """Validation preferred step 4; the submission must be that of a run that ended there."""
    scores = iter([0.9] + [0.1] * 100)
    toy = Toy(scores=lambda measured: next(scores), dropout=0.0)
    train(tmp_path / "a", toy, max_steps=16, eval_every_epochs=1, eval_items=50)
    stop = Toy(
        on_batch=lambda s: s == 3 and (tmp_path / "b/submissions/r/stop").touch(), dropout=0.0
    )
    train(tmp_path / "b", stop, max_steps=16, eval_every_epochs=1, eval_items=50)
    assert submission(tmp_path / "a") == submission(tmp_path / "b")
    assert submission(tmp_path / "a") != [0] * 50


def test_an_export_that_fails_its_check_is_never_put_in_place(tmp_path):
    toy = Toy(answers=lambda found: found[:-1])
    data = train(tmp_path, toy, max_steps=8, eval_every_epochs=1)
    assert submission(tmp_path) == [0] * 50, "the floor stands"
    Toy().task().check(tmp_path / "submissions" / "r")
    assert any("submission" in text for text in data["warnings"])
    assert data["status"] == "finished", "and the training went on"
    assert not (tmp_path / "submissions" / "r" / ".staged").exists()


def test_an_error_in_an_export_leaves_the_one_before(tmp_path):
    one, share = place(tmp_path, fixed(1))
    one.offer(model(), [0.5, 0.0], share)

    def broken(item):
        raise OSError("no space left")

    two, share = place(tmp_path, Toy(on_export=broken))
    with pytest.raises(OSError):
        two.offer(model(), [0.8, 0.0], share)
    assert answers(tmp_path) == [1] * 50
    assert two.key() == [0.5, 0.0, 1, 1]


def test_an_incomplete_one_replaces_the_floor_but_no_complete_one(tmp_path):
    one, share = place(tmp_path, fixed(1))
    one.floor(share)
    over = Clock(60.0).share(0.0)
    assert one.offer(model(), [0.3, 0.0], over)["complete"] is False
    assert one.offer(model(), [0.5, 0.0], share)["complete"] is True
    two, _ = place(tmp_path, fixed(2))
    assert two.offer(model(), [0.9, 0.0], over) is None
    assert answers(tmp_path) == [1] * 50


@pytest.mark.parametrize("crash_at", [1, 2])
def test_a_crash_while_putting_in_place_leaves_a_submission_of_known_worth(
    tmp_path, monkeypatch, crash_at
):
    one, share = place(tmp_path, fixed(1))
    one.offer(model(), [0.5, 0.0], share)
    two, share = place(tmp_path, fixed(2))
    replace, count = os.replace, iter(range(1, 99))

    def cut(source, target):
        if ".staged" in str(source) and next(count) == crash_at:
            raise SystemExit("the power is gone")
        replace(source, target)

    monkeypatch.setattr(os, "replace", cut)
    with pytest.raises(SystemExit):
        two.offer(model(), [0.8, 0.0], share)
    monkeypatch.undo()
    three, share = place(tmp_path)
    assert three.valid()
    expected = {1: ([1] * 50, [0.5, 0.0, 1, 1]), 2: ([2] * 50, [0.8, 0.0, 1, 1])}[crash_at]
    assert (answers(tmp_path), three.key()) == expected


def killed_between_the_two_files(folder):
    one, share = place(folder, fixed(1))
    one.offer(model(), [0.5, 0.0], share)
    two, share = place(folder, fixed(2))
    replace, count = os.replace, iter(range(1, 99))

    def cut(source, target):
        if ".staged" in str(source) and next(count) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = cut
    two.offer(model(), [0.8, 0.0], share)


def test_a_kill_between_the_two_files_is_made_good_at_the_next_start(tmp_path):
    """The predictions that are judged must be those of the submission that stands."""
    run = process(killed_between_the_two_files, tmp_path)
    run.join(30)
    assert run.exitcode == -signal.SIGKILL
    assert answers(tmp_path) == [2] * 50
    predictions = tmp_path / "eval_predictions.json"
    assert json.loads(predictions.read_text()) == [1] * 50
    next_one, share = place(tmp_path)
    assert json.loads(predictions.read_text()) == answers(tmp_path) == [2] * 50
    assert next_one.key() == [0.8, 0.0, 1, 1]
    assert not (tmp_path / ".staged").exists()


def test_kills_during_exports_leave_a_valid_submission_and_a_known_key(tmp_path):
    """Real kills: in the export and in the window between writing and putting in place."""
    settings = {"hours": 0.05, "eval_every_epochs": 3, "max_steps": 400}
    for n in range(5):
        run = process(child, tmp_path, {}, settings, {"batch": 0.002, "export": 0.002})
        wait_for(tmp_path / "at-export", run)
        time.sleep(0.05 + 0.04 * n)
        os.kill(run.pid, signal.SIGKILL)
        run.join()
        (tmp_path / "at-export").unlink()
        Toy().task().check(tmp_path / "submissions" / "r")
        data = run_json(tmp_path)
        digest = files.sha256(tmp_path / "submissions" / "r" / "submission.json")
        assert digest in data["submission"]["keys"]


@pytest.mark.parametrize("text", ["", "[", "{}", "[1, 2]", "null", json.dumps([math.pi] * 50)])
def test_a_submission_that_was_tampered_with_is_replaced_by_the_floor(tmp_path, text):
    train(tmp_path, max_steps=4)
    (tmp_path / "submissions" / "r" / "submission.json").write_text(text)
    session = open_session(tmp_path)
    assert session.submission.valid()
    assert submission(tmp_path) == [0] * 50
    assert session.submission.key() == FLOOR
    session.close()


def test_another_valid_file_in_its_place_counts_as_the_floor(tmp_path):
    """Nobody knows how good it is: the run's own best may replace it."""
    train(tmp_path, max_steps=24)
    own = submission(tmp_path)
    (tmp_path / "submissions" / "r" / "submission.json").write_text(json.dumps([7] * 50))
    data = train(tmp_path, max_steps=24)
    assert submission(tmp_path) == own
    assert data["status"] == "finished"


def test_the_predictions_of_the_evaluation_are_replaced_together_with_the_submission(tmp_path):
    train(tmp_path, max_steps=40)
    folder = tmp_path / "submissions" / "r"
    assert json.loads((folder / "eval_predictions.json").read_text()) == submission(tmp_path)


def test_fit_reports_on_the_files_that_stand(tmp_path):
    session = open_session(tmp_path, max_steps=40)
    data = fit(session)
    found = session.task.report(session.folder)
    assert data["scores"]["evaluation"] == found["evaluation"]
    assert data["baselines"] == found["baselines"]


def test_weights_that_validate_worse_than_the_floor_do_not_replace_it(tmp_path):
    data = train(tmp_path, Toy(scores=lambda measured: -0.5), max_steps=24, eval_every_epochs=2)
    assert data["status"] == "finished"
    assert submission(tmp_path) == [0] * 50
