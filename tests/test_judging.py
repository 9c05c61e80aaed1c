"""What the loop makes of a validation loss: the best weights, the rate, a warning."""

from __future__ import annotations

import errno
import math

import pytest
import torch

from tests import toy
from timebox import checkpoint, loop, record
from timebox.run import Run
from timebox.session import resolve, start
from timebox.settings import SettingError, Settings, own_names

# One evaluation at each epoch's end; four steps are an epoch; the rate itself stays.
BY_EPOCH = {"hours": 1, "eval_every_epochs": 1, "warmup": 0.0, "cooldown": 0.0, "eval_items": 50}


def evaluations(root):
    return [line for line in toy.metrics(root) if line["kind"] == "evaluation"]


def said(root, text):
    return [line["text"] for line in toy.metrics(root) if text in line.get("text", "")]


# --- the rate falls on a plateau


def test_the_rate_falls_by_its_factor_after_more_evaluations_than_patience_bears(tmp_path):
    """As PyTorch's ReduceLROnPlateau counts: with patience 2 the third bad one lowers the rate."""
    best_at_3 = toy.Toy(losses=lambda n: 1.0 if n == 3 else 2.0)
    toy.train(
        tmp_path, best_at_3, **BY_EPOCH, epochs=12, select="loss", plateau_patience=2,
        plateau_factor=0.1,
    )  # fmt: skip
    # Evaluations 1 (best), 2, 3 (best), 4, 5, 6 -> falls; 7, 8, 9 -> falls; 10, 11.
    by_epoch = best_at_3.rates[::4]
    assert by_epoch == pytest.approx([1.0] * 6 + [0.1] * 3 + [0.01] * 3)
    assert len(said(tmp_path, "no improvement in 3 evaluations, rate now 0.1")) == 1


def test_without_a_patience_the_rate_stays(tmp_path):
    never = toy.Toy(losses=lambda n: 1.0 + n)
    toy.train(tmp_path, never, **BY_EPOCH, epochs=8, select="loss")
    assert never.rates == pytest.approx([1.0] * 32)


@pytest.mark.parametrize("at", [6, 10, 18, 20])
def test_a_plateau_is_counted_on_in_the_next_session(tmp_path, at):
    """The evaluation with which a stop ends comes out of turn: it counts for nothing."""
    given = {**BY_EPOCH, "epochs": 12, "select": "loss", "plateau_patience": 2}
    # Worse with each step that was taken, however often it is asked.
    whole, halves = toy.Toy(), toy.Toy()
    for built in (whole, halves):
        built.losses = lambda n, built=built: float(1 + len(built.rates))
    toy.train(tmp_path / "whole", whole, **given)

    def interrupted(step):
        if step == at - 1 and not halves.rates[at - 1 :]:
            (tmp_path / "halves" / "submissions" / "r" / "stop").touch()

    halves.on_batch = interrupted
    first = toy.train(tmp_path / "halves", halves, **given)
    assert first["status"] == "stopped" and first["steps"] == at
    toy.train(tmp_path / "halves", halves, **given)
    assert halves.rates == pytest.approx(whole.rates)
    assert min(whole.rates) < 0.2


# --- the best weights by loss


def test_the_lowest_validation_loss_chooses_the_weights_if_asked(tmp_path):
    data = toy.train(
        tmp_path, toy.Toy(losses=lambda n: abs(n - 4) + 1.0), **BY_EPOCH, epochs=8, select="loss"
    )
    assert data["scores"]["validation"]["loss"] == 1.0
    assert toy.checkpoint(tmp_path, "best.pt")["position"]["step"] == 4 * 4
    best = [line["step"] for line in evaluations(tmp_path) if line["best"]]
    assert best == [4, 8, 12, 16]


def test_the_metric_chooses_otherwise(tmp_path):
    toy.train(tmp_path, toy.Toy(losses=lambda n: float(n)), **BY_EPOCH, epochs=30)
    assert toy.checkpoint(tmp_path, "best.pt")["position"]["step"] > 4


def test_early_stopping_follows_the_loss_too(tmp_path):
    data = toy.train(
        tmp_path, toy.Toy(losses=lambda n: abs(n - 4) + 1.0), **BY_EPOCH, epochs=50,
        select="loss", patience=5,
    )  # fmt: skip
    assert (data["reason"], data["epochs"]) == ("early_stopping", 9)


def test_a_loss_that_is_not_a_number_is_the_worst(tmp_path):
    data = toy.train(
        tmp_path, toy.Toy(losses=lambda n: math.nan if n == 3 else 1.0 / n), **BY_EPOCH,
        epochs=4, select="loss",
    )  # fmt: skip
    assert data["status"] == "finished"
    assert [line["best"] for line in evaluations(tmp_path)] == [True, True, False, True]


def test_a_task_without_a_validation_loss_cannot_be_judged_by_it(tmp_path):
    with pytest.raises(SettingError, match="select=loss: the toy task measures no validation"):
        toy.open_session(tmp_path, select="loss")
    assert not (tmp_path / "submissions").exists()


# --- overfitting


def test_a_validation_loss_far_above_that_of_training_is_said_once(tmp_path):
    heard = []
    session = toy.open_session(
        tmp_path, toy.Toy(losses=lambda n: 100.0), say=heard.append, epochs=6, **BY_EPOCH
    )
    data = loop.fit(session)
    warnings = [text for text in data["warnings"] if "overfits" in text]
    assert len(warnings) == 1 and "validation loss 100.000 is more than 1.2 times" in warnings[0]
    assert sum("overfits" in text for text in heard) == 1


@pytest.mark.parametrize("ratio, warned", [(1.1, False), (1.3, True)])
def test_the_bound_is_12_tenths_of_the_loss_since_the_last_evaluation(tmp_path, ratio, warned):
    """Both losses are measured on the steps between two evaluations, not on the whole run."""
    sums = []
    built = toy.Toy(losses=lambda n: ratio * sums[-1])
    session = toy.open_session(tmp_path, built, epochs=3, **BY_EPOCH)
    run = Run(session)
    original = run.evaluate

    def evaluate(share=None):
        means = run.position.since
        sums.append(means["loss"] / means["examples"])
        return original(share)

    run.evaluate = evaluate
    loop.train(run)
    session.close()
    assert any("overfits" in w for w in session.record.data["warnings"]) == warned
    lines = evaluations(tmp_path)
    assert [line["train_loss"] for line in lines] == pytest.approx(sums[: len(lines)])
    epochs = [line for line in toy.metrics(tmp_path) if line["kind"] == "epoch"]
    assert lines[1]["train_loss"] == pytest.approx(epochs[1]["loss"])


def test_losses_of_next_to_nothing_are_no_overfitting(tmp_path):
    built = toy.Toy(losses=lambda n: 0.009, on_loss=lambda batch: 1e-6)
    data = toy.train(tmp_path, built, epochs=3, **BY_EPOCH)
    assert not any("overfits" in text for text in data["warnings"])


# --- checkpoints by epochs, examples, names


def test_a_checkpoint_of_each_nth_epoch_is_kept_and_can_be_loaded(tmp_path):
    toy.train(tmp_path, epochs=6, save_every_epochs=2, **BY_EPOCH)
    folder = tmp_path / "checkpoints" / "r"
    kept = sorted(path.name for path in folder.glob("epoch-*.pt"))
    assert kept == ["epoch-2.pt", "epoch-4.pt", "epoch-6.pt"]
    steps = [checkpoint.read(folder / name)["position"]["step"] for name in kept]
    assert steps == [8, 16, 24]


def test_no_checkpoint_is_kept_by_epoch_unless_asked(tmp_path):
    toy.train(tmp_path, epochs=6, **BY_EPOCH)
    assert not list((tmp_path / "checkpoints" / "r").glob("epoch-*.pt"))


def test_an_example_is_said_beside_the_score(tmp_path):
    heard = []
    built = toy.Toy(example="Max(3, 7, 1) = 7   model: 7")
    session = toy.open_session(tmp_path, built, say=heard.append, epochs=2, **BY_EPOCH)
    loop.fit(session)
    at = next(i for i, text in enumerate(heard) if text.startswith("Validation"))
    assert heard[at + 1] == "  Max(3, 7, 1) = 7   model: 7"


def test_settings_answer_to_the_names_that_other_trainers_use(tmp_path):
    settings, _, _ = resolve("arc", {"learning_rate": "0.5", "num_epochs": "3"})
    assert (settings.lr, settings.epochs) == (0.5, 3)
    with pytest.raises(SettingError, match="learning_rate is another name of lr"):
        own_names({"learning_rate": 1, "lr": 1})


def test_a_recipe_stands_behind_what_is_given_besides():
    settings, options, _ = resolve("collatz", {"recipe": "guide", "batch_size": "64"})
    assert (settings.plateau_patience, settings.patience, settings.select) == (3, 5, "loss")
    assert (options["batch_size"], options["d_model"]) == (64, 512)
    with pytest.raises(SettingError, match="recipe of the collatz task 'guid'.*'guide'"):
        resolve("collatz", {"recipe": "guid"})


@pytest.mark.parametrize("factor", [0.0, 1.0, 1.5])
def test_a_plateau_factor_lowers_the_rate_or_is_refused(factor):
    with pytest.raises(SettingError, match="plateau_factor must lie between 0 and 1"):
        Settings(plateau_factor=factor)


def test_a_list_of_words_is_taken_as_a_list_or_with_commas():
    for given in ("tensorboard,wandb", ["tensorboard", "wandb"], ("tensorboard", "wandb")):
        settings, _, _ = resolve("arc", {"sinks": given})
        assert settings.sinks == ("tensorboard", "wandb")
    assert resolve("arc", {"sinks": ""})[0].sinks == ()
    with pytest.raises(SettingError, match="sinks must be a list of words"):
        start("arc", minutes=1, sinks=[3])


# --- what must not happen meanwhile


def test_a_full_disk_at_an_epoch_that_is_to_be_kept_stops_nothing(tmp_path):
    session = toy.open_session(tmp_path, epochs=6, save_every_epochs=1, **BY_EPOCH)
    tries = []

    def full(state):
        tries.append(state["position"]["step"])
        raise OSError(errno.ENOSPC, "No space left on device")

    session.store.save = full
    data = loop.fit(session)
    assert (data["status"], data["steps"]) == ("finished", 24)
    assert len(tries) <= 2 * 6 + 2
    assert any("a checkpoint could not be written" in text for text in data["warnings"])


def test_a_model_below_the_floor_is_not_submitted_whatever_its_loss(tmp_path):
    built = toy.Toy(losses=lambda n: 1.0 / n, scores=lambda measured: 0.0)
    data = toy.train(tmp_path, built, epochs=4, select="loss", **BY_EPOCH)
    assert toy.submission(tmp_path) == [0] * built.items, "the floor stands"
    assert any("no weights scored better than the floor" in text for text in data["warnings"])
    assert "these are the floor submission's" in record.summary(data)


def test_a_model_above_the_floor_is_submitted_by_its_loss(tmp_path):
    built = toy.Toy(losses=lambda n: 1.0 / n, scores=lambda measured: 1.0)
    data = toy.train(tmp_path, built, epochs=4, select="loss", **BY_EPOCH)
    assert toy.submission(tmp_path) != [0] * built.items
    assert not any("floor" in text for text in data["warnings"])


def test_an_evaluation_that_is_stopped_before_its_first_item_has_no_loss_and_needs_none(tmp_path):
    built = toy.Toy(losses=lambda n: 1.0)
    session = toy.open_session(tmp_path, built, epochs=4, select="loss", **BY_EPOCH)
    run = Run(session)
    score = session.task.score
    nothing = {"exact": 0.0, "items": 0, "items_total": 50}
    object.__setattr__(session.task, "score", lambda *given: nothing)
    assert run.evaluate() is None
    object.__setattr__(session.task, "score", score)
    assert run.evaluate() is not None
    session.close()


def test_a_stopped_run_that_goes_on_to_its_deadline_has_finished(tmp_path):
    def stop(step):
        if step == 20:
            (tmp_path / "submissions" / "r" / "stop").touch()

    first = toy.train(tmp_path, toy.Toy(on_batch=stop), hours=3 / 3600)
    assert first["reason"] == "stop_file"
    second = toy.train(tmp_path, hours=2 / 3600)
    assert (second["status"], second["reason"]) == ("finished", "deadline")


def test_weights_that_were_trained_on_other_data_are_said(tmp_path):
    toy.train(tmp_path, name="a", max_steps=4)
    path = str(tmp_path / "checkpoints" / "a" / "last.pt")
    same = toy.train(tmp_path, name="b", max_steps=4, weights_from=path)
    other = toy.train(tmp_path, toy.Toy(seed=1), name="c", max_steps=4, weights_from=path)
    assert not any("other data" in text for text in same["warnings"])
    assert any("the weights were trained on other data" in text for text in other["warnings"])


def test_a_checkpoint_that_is_older_than_a_setting_can_be_continued(tmp_path):
    toy.train(tmp_path, max_steps=8, hours=1)
    path = tmp_path / "checkpoints" / "r"
    for name in ("last.pt", "previous.pt", "best.pt"):
        (path / name).unlink(missing_ok=True)
    (path / "manifest.json").unlink()
    state = torch.load(next(path.glob("top-*.pt")), weights_only=True)
    for name in ("select", "plateau_patience", "plateau_factor"):
        del state["identity"][name]
    torch.save(state, path / "last.pt")
    assert toy.train(tmp_path, max_steps=8, hours=1)["resumed_from"]["step"] == 8


# --- where metrics go besides


def test_metrics_go_to_tensorboard_too(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    toy.train(
        tmp_path, toy.Toy(losses=lambda n: 2.0 / n), epochs=4, sinks=("tensorboard",), **BY_EPOCH
    )
    written = accumulator.EventAccumulator(str(tmp_path / "submissions" / "r" / "tensorboard"))
    written.Reload()
    found = [event.value for event in written.Scalars("evaluation/loss")]
    assert found == pytest.approx([2.0, 1.0, 2 / 3, 0.5])
    assert [e.step for e in written.Scalars("epoch/loss")] == [4, 8, 12, 16]


def test_an_unknown_or_missing_sink_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(SettingError, match="there is no sink 'tensorbord'; did you mean"):
        toy.open_session(tmp_path, sinks=("tensorbord",))
    assert not (tmp_path / "submissions").exists()
