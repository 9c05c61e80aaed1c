"""What the loop is promised by every task: a sixth task is tested by being there."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json

import pytest
import torch

from timebox import tasks
from timebox.clock import Clock
from timebox.device import pick
from timebox.session import resolve
from timebox.settings import SettingError, Settings, parameters
from timebox.step import _gradients

NAMES = ["submission.json", "eval_predictions.json"]


@pytest.fixture(scope="module", params=tasks.names())
def task(request):
    return tasks.load_task(request.param)


@pytest.fixture(scope="module")
def model(task):
    torch.manual_seed(0)
    return task.model().eval()


def share(seconds=1000.0, improve=False):
    return Clock(2000.0).share(seconds, improve=improve)


@pytest.fixture(scope="module")
def floor(task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("floor")
    return folder, task.export(None, folder, share())


def test_the_task_says_who_it_is(task):
    assert task.name in tasks.names()
    assert task.better in (-1, 1)
    assert all(getattr(task, f.name) is not None for f in dataclasses.fields(task))
    package = importlib.import_module(f"timebox.tasks.{task.name}")
    assert package.__doc__ and package.task.__doc__
    defaults = inspect.signature(package.task).parameters
    assert all(p.default is not inspect.Parameter.empty for p in defaults.values())
    assert defaults["seed"].default == 0
    assert set(package.SESSION_OPTIONS) <= set(defaults)
    mine = {f.name for f in dataclasses.fields(Settings)}
    assert mine & set(parameters(package.task)) == {"seed"}, "one name, one meaning"


def test_an_unknown_option_is_refused(task):
    with pytest.raises(SettingError, match="no option of the"):
        tasks.load_task(task.name, colour_of_the_sky="blue")


def test_the_floor_is_complete_and_passes_its_check(task, floor):
    folder, notes = floor
    assert notes["complete"] is True
    assert sorted(p.name for p in folder.iterdir()) == sorted(NAMES)
    task.check(folder)


DAMAGE = {
    "empty": lambda text: "",
    "truncated": lambda text: text[: len(text) // 2],
    "null": lambda text: "null",
    "a number": lambda text: "3",
    "an empty dict": lambda text: "{}",
    "an empty list": lambda text: "[]",
    "a list of nothing": lambda text: "[null, null]",
    "nested otherwise": lambda text: json.dumps({"x": json.loads(text)}),
    "one part missing": lambda text: json.dumps(less(json.loads(text))),
    "one part null": lambda text: json.dumps(null(json.loads(text))),
}


def less(value):
    """`value` without its last part."""
    if isinstance(value, dict):
        return dict(list(value.items())[:-1])
    return value[:-1]


def null(value):
    """`value` with null as its first part."""
    if isinstance(value, dict):
        return {**value, next(iter(value)): None}
    return [None, *value[1:]]


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_check_refuses_a_damaged_submission(task, floor, tmp_path, damage):
    """With a ValueError, for that is what the engine takes for an invalid file."""
    for name in NAMES:
        (tmp_path / name).write_text((floor[0] / name).read_text())
    task.check(tmp_path)
    text = (tmp_path / NAMES[0]).read_text()
    (tmp_path / NAMES[0]).write_text(DAMAGE[damage](text))
    with pytest.raises(ValueError):
        task.check(tmp_path)


def test_the_check_misses_a_missing_file(task, floor, tmp_path):
    for missing in NAMES:
        for name in NAMES:
            (tmp_path / name).write_text((floor[0] / name).read_text())
        (tmp_path / missing).unlink()
        with pytest.raises((ValueError, OSError)):
            task.check(tmp_path)


def test_an_epoch_visits_every_example_once_on_any_number_of_processes(task):
    for world in (1, 3):
        seen = 0
        for step in range(task.data.steps):
            total = 0.0
            for rank in range(world):
                weight = task.data.batch(step, rank, world)["weight"]
                assert len(weight) > 0
                seen += int((weight > 0).sum())
                total += float(weight.sum())
            assert total == pytest.approx(1, abs=1e-4)
            if world > 1 and step == 20:  # the whole epoch once is enough
                break
        if world == 1:
            assert seen == task.data.examples


def test_a_batch_is_a_function_of_seed_and_step_alone(task):
    again = tasks.load_task(task.name)
    other = tasks.load_task(task.name, seed=1)
    later = task.data.steps + 3  # in the second epoch
    different = False
    for step in (0, later, 1):
        a, b, c = (t.data.batch(step) for t in (task, again, other))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert len({len(tensor) for tensor in a.values()}) == 1, "examples come first"
        different |= any(a[n].shape != c[n].shape or not torch.equal(a[n], c[n]) for n in a)
    assert different
    assert task.data.digest == again.data.digest != other.data.digest


def test_a_loss_is_finite_and_every_parameter_gets_a_gradient(task):
    torch.manual_seed(0)
    model = task.model()
    used = {name: False for name, _ in model.named_parameters()}
    for step in range(3):
        loss, logs = model.loss(task.data.batch(step))
        assert loss.ndim == 0 and torch.isfinite(loss)
        assert all(float(value) == float(value) for value in logs.values())
        loss.backward()
    for name, parameter in model.named_parameters():
        used[name] = parameter.grad is not None
        assert used[name] and torch.isfinite(parameter.grad).all(), name


def test_the_loss_of_a_batch_is_the_sum_over_its_pieces(task, model):
    batch = task.data.batch(0)
    whole = float(model.loss(batch)[0].detach())
    size = -(-len(batch["weight"]) // 3)
    parts = zip(*(tensor.split(size) for tensor in batch.values()), strict=True)
    pieces = [model.loss(dict(zip(batch, part, strict=True)))[0] for part in parts]
    assert float(sum(pieces).detach()) == pytest.approx(whole, rel=1e-3)


def test_what_is_logged_is_a_mean_however_the_batch_is_cut(task):
    """Over micro-batches and over ranks the engine weights the means again."""
    torch.manual_seed(0)
    model = task.model().eval()
    device = pick("cpu", "fp32", "off", 60)
    batch = task.data.batch(0)
    logs = [_gradients(model, device.scaler(), device, batch, pieces)[1] for pieces in (1, 2)]
    assert logs[1] == pytest.approx(logs[0], rel=0.02, abs=1e-3)


def test_a_few_steps_on_one_batch_lower_its_loss(task):
    torch.manual_seed(0)
    model = task.model()
    optimizer = task.optimizer(model, Settings())
    batch, losses = task.data.batch(0), []
    for _ in range(6):
        optimizer.zero_grad()
        loss, _ = model.loss(batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all("peak_lr" in group for group in optimizer.param_groups)
    covered = {p for group in optimizer.param_groups for p in group["params"]}
    assert covered == set(model.parameters())


def test_the_score_has_its_metric_and_says_on_how_many_items(task, model):
    with torch.no_grad():
        found = task.score(model, share(), 5)
    assert found["items"] == 5 <= found["items_total"]
    assert isinstance(found[task.metric], float)
    assert isinstance(found.get("loss"), float) == task.validation_loss
    assert isinstance(found.get("example", ""), str) and "\n" not in found.get("example", "")
    floor = task.score(None, share(), 5)
    assert floor["items"] == 5 and isinstance(floor[task.metric], float)
    json.dumps(found, allow_nan=False)


def test_a_validation_loss_means_what_the_training_loss_means(task):
    """An untrained model's losses are near each other; so are those of any two samples."""
    if not task.validation_loss:
        pytest.skip("the task measures none")
    torch.manual_seed(0)
    model = task.model().eval()
    with torch.no_grad():
        trained = [float(model.loss(task.data.batch(step))[0]) for step in range(3)]
        found = task.score(model, share(), 200)["loss"]
    assert found == pytest.approx(sum(trained) / 3, rel=0.15)


def test_every_recipe_is_made_of_settings_and_options_that_there_are(task):
    package = importlib.import_module(f"timebox.tasks.{task.name}")
    for recipe, given in package.RECIPES.items():
        settings, options, _ = resolve(task.name, {"recipe": recipe})
        both = {**dataclasses.asdict(settings), **options}
        assert {name: both[name] for name in given} == given
        tasks.load_task(task.name, **options)


def test_a_score_without_time_scores_nothing_and_does_not_fail(task, model):
    assert task.score(model, share(0.0), 5)["items"] == 0


def test_an_export_without_time_is_valid_but_not_complete(task, model, tmp_path):
    with torch.no_grad():
        notes = task.export(model, tmp_path, share(0.0))
    assert notes["complete"] is False
    task.check(tmp_path)


def test_an_export_within_seconds_is_valid_and_keeps_to_them(task, model, tmp_path):
    clock = Clock(600.0)
    with torch.no_grad():
        task.export(model, tmp_path, clock.share(2.0))
    assert clock.elapsed() < 10
    task.check(tmp_path)


def test_a_report_scores_the_files_beside_trivial_baselines(task, floor):
    found = task.report(floor[0])
    assert isinstance(found["evaluation"][task.metric], float)
    assert found["baselines"]["evaluation"]
    for scores in found["baselines"]["evaluation"].values():
        assert isinstance(scores[task.metric], float)
    task.check(floor[0])
    json.dumps(found, allow_nan=False)
