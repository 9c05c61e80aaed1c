"""Names and values are checked before time is spent, and every setting does something."""

from __future__ import annotations

import ast
import dataclasses
import signal
from pathlib import Path
from typing import Literal

import pytest
import torch
from toy import FakeTime, Toy, checkpoint, open_session, run_json, same, train

import timebox
from timebox.loop import fit
from timebox.session import resolve, start
from timebox.settings import SettingError, Settings, cast, cast_all, check_names, parameters


def test_the_defaults_are_a_run_of_five_minutes():
    assert Settings().hours == pytest.approx(5 / 60)


IMPOSSIBLE = [
    ("hours", 0), ("hours", -1), ("hours", float("nan")), ("hours", float("inf")),
    ("total_hours", -1), ("total_hours", float("nan")), ("total_hours", 0.01),
    ("epochs", -1), ("max_steps", -5), ("patience", -1), ("keep_top", -1),
    ("save_every_minutes", 0), ("save_every_minutes", -1), ("eval_every_minutes", -1),
    ("eval_every_epochs", -1), ("eval_items", -1), ("grace_seconds", -0.1),
    ("log_every_seconds", 0), ("lr", -0.1), ("lr", float("nan")), ("weight_decay", -1),
    ("warmup", -0.1), ("warmup", 0.5), ("cooldown", 1.1), ("cooldown", -1),
    ("clip", 0), ("clip", -1), ("clip", float("nan")), ("seed", -1), ("seed", 2**32),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), IMPOSSIBLE)
def test_an_impossible_value_is_refused_by_name(name, value):
    with pytest.raises(SettingError, match=name):
        Settings(**{name: value})


@pytest.mark.parametrize(("name", "text"), [
    ("hours", "soon"), ("max_steps", "2.5"), ("epochs", "many"), ("optimizer", "sgd"),
    ("device", "tpu"), ("dtype", "fp8"), ("compile", "maybe"), ("seed", "1e400"), ("lr", ""),
    ("max_steps", "inf"), ("keep_top", "True"),
])  # fmt: skip
def test_a_text_that_is_no_such_value_is_refused_by_name(name, text):
    with pytest.raises(SettingError, match=name):
        cast_all({name: text}, Settings, "setting")


def test_texts_become_values_of_the_right_type():
    found = cast_all(
        {"hours": "0.5", "max_steps": "1e3", "optimizer": "adamw", "seed": "4294967295", "lr": 1},
        Settings,
        "setting",
    )
    assert found == {
        "hours": 0.5,
        "max_steps": 1000,
        "optimizer": "adamw",
        "seed": 2**32 - 1,
        "lr": 1,
    }
    assert isinstance(found["max_steps"], int) and isinstance(found["lr"], float)


@pytest.mark.parametrize(("text", "value"), [
    ("true", True), ("False", False), ("1", True), ("no", False), (True, True),
])  # fmt: skip
def test_truth_has_few_names(text, value):
    assert cast("flag", text, bool) is value


def test_what_is_neither_true_nor_false_is_refused():
    with pytest.raises(SettingError, match="flag must be true or false"):
        cast("flag", "perhaps", bool)


def test_an_optional_value_may_be_none():
    assert cast("n", "None", int | None) is None
    assert cast("n", "3", int | None) == 3


def test_a_choice_that_is_close_is_named():
    with pytest.raises(SettingError, match="did you mean 'adamw'"):
        cast("optimizer", "adam", Literal["muon", "adamw"])


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(SettingError, match="no setting 'max_step'; did you mean 'max_steps'"):
        check_names(["max_step"], parameters(Settings), "setting")
    with pytest.raises(SettingError, match="known: .*cooldown.*warmup"):
        check_names(["zzz"], parameters(Settings), "setting")


@pytest.mark.parametrize(("task", "given", "message"), [
    ("ark", {}, "no task 'ark'; did you mean 'arc'"),
    ("arc", {"weight_decy": 1}, "no parameter 'weight_decy'; did you mean 'weight_decay'"),
    ("arc", {"presett": "small"}, "no parameter 'presett'; did you mean 'preset'"),
    ("arc", {"preset": "smal"}, "preset must be one of .*did you mean 'small'"),
    ("arc", {"clip": "-1"}, "clip must be greater than 0"),
    ("arc", {"batch_tokens": "lots"}, "batch_tokens must be a number"),
])  # fmt: skip
def test_a_wrong_name_or_value_is_found_before_anything_is_written(tmp_path, task, given, message):
    with pytest.raises(SettingError, match=message):
        resolve(task, given)
    with pytest.raises(SettingError, match=message):
        start(task, minutes=1, run="r", root=tmp_path, **given)
    assert list(tmp_path.glob("[!.]*")) == []


@pytest.mark.parametrize("minutes", [0, -1, float("nan")])
def test_the_budget_of_a_session_is_positive(tmp_path, minutes):
    with pytest.raises(SettingError, match="minutes must be greater than 0"):
        start("arc", minutes=minutes, root=tmp_path)
    with pytest.raises(SettingError, match="either minutes or hours"):
        start("arc", minutes=1, hours=1, root=tmp_path)


def test_what_decides_the_weights_is_in_the_identity_and_the_budget_is_not():
    identity = Settings().identity()
    shape = {"optimizer", "lr", "weight_decay", "warmup", "cooldown", "clip", "seed"}
    assert shape | {"select", "plateau_patience", "plateau_factor"} == set(identity)


# --- every setting does something


def test_every_setting_is_read_somewhere_in_the_package():
    read = set()
    for path in Path(timebox.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and path.name != "settings.py":
                read.add(node.attr)
    assert {f.name for f in dataclasses.fields(Settings)} <= read


@pytest.mark.parametrize("given", [
    {"optimizer": "adamw"}, {"lr": 0.3}, {"weight_decay": 5.0}, {"clip": 1e-3}, {"seed": 7},
    {"warmup": 0.4}, {"cooldown": 0.1}, {"dtype": "bf16"}, {"dtype": "fp16"},
], ids=str)  # fmt: skip
def test_what_shapes_the_training_changes_the_weights(tmp_path, given):
    train(tmp_path / "a", max_steps=12, eval_every_epochs=9)
    data = train(tmp_path / "b", max_steps=12, eval_every_epochs=9, **given)
    assert data["status"] == "finished"
    a, b = checkpoint(tmp_path / "a")["model"], checkpoint(tmp_path / "b")["model"]
    assert not same(a, b)
    assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for p in b.values())


def test_a_stronger_decay_makes_smaller_weights(tmp_path):
    train(tmp_path / "a", max_steps=30, weight_decay=0.0)
    train(tmp_path / "b", max_steps=30, weight_decay=5.0)
    a, b = checkpoint(tmp_path / "a")["model"], checkpoint(tmp_path / "b")["model"]
    assert b["up.weight"].norm() < 0.5 * a["up.weight"].norm()


def timed(root, minutes=10, **given):
    now = FakeTime()
    toy = Toy(on_batch=lambda step: now.pass_by(0.5), on_score=lambda item: now.pass_by(0.02))
    data = fit(open_session(root, toy, now=now, hours=minutes / 60, **given))
    lines = [e for e in data["history"] if e["kind"] == "evaluation"]
    return data, lines, toy


def test_hours_are_the_budget(tmp_path):
    data, lines, toy = timed(tmp_path, minutes=3)
    assert data["budget_seconds"] == 180
    assert 160 < data["seconds"]["total"] <= 180


def test_eval_every_minutes_and_eval_items_are_followed(tmp_path):
    data, lines, toy = timed(tmp_path, eval_every_minutes=1.0, eval_items=20)
    steps = [e["step"] for e in lines]
    assert len(steps) == 10
    gaps = [b - a for a, b in zip(steps, steps[1:], strict=False)][:-1]
    assert all(115 <= gap <= 121 for gap in gaps), "a minute is 120 steps"
    assert {e["items"] for e in lines} == {20}


def test_eval_every_epochs_is_followed(tmp_path):
    data = train(tmp_path, max_steps=48, eval_every_epochs=3)
    assert [e["step"] for e in data["history"] if e["kind"] == "evaluation"] == [12, 24, 36, 48]


def test_save_every_minutes_is_followed(tmp_path):
    data, lines, toy = timed(tmp_path, save_every_minutes=0.5, eval_every_minutes=9.0)
    saves = (tmp_path / "submissions" / "r" / "metrics.jsonl").read_text().count('"kind": "save"')
    assert 18 <= saves <= 23


def test_keep_top_is_followed(tmp_path):
    for keep in (0, 1, 2):
        root = tmp_path / str(keep)
        train(root, max_steps=40, eval_every_epochs=1, keep_top=keep)
        assert len(list((root / "checkpoints" / "r").glob("top-*.pt"))) == keep
        assert (root / "checkpoints" / "r" / "best.pt").exists() is (keep > 0)


@pytest.mark.parametrize("grace", [2.0, 20.0])
def test_grace_seconds_bound_the_end_after_a_request(tmp_path, grace):
    now = FakeTime()

    def ask(step):
        now.pass_by(0.1)
        if step == 50:
            (tmp_path / "submissions" / "r" / "stop").touch()
            toy.on_export = lambda item: now.pass_by(1.0)

    toy = Toy(on_batch=ask)
    toy.on_export = lambda item: None
    session = open_session(tmp_path, toy, now=now, grace_seconds=grace, eval_every_epochs=99)
    data = fit(session)
    assert data["reason"] == "stop_file"
    after = session.clock.elapsed() - 5.1
    assert grace - 1 <= after <= grace + 1


def test_compile_and_device_are_as_set(tmp_path):
    data = train(tmp_path, max_steps=2, compile="off", device="cpu", dtype="bf16")
    assert data["device"]["compile"] is False and "as set" in data["device"]["reason"]
    assert data["device"]["dtype"] == "bf16"
    session = open_session(tmp_path / "on", compile="on")
    assert session.device.compile is True
    session.close()


def test_signals_are_back_to_what_they_were_after_fit(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    train(tmp_path, max_steps=2)
    assert signal.getsignal(signal.SIGTERM) is before
    assert run_json(tmp_path)["status"] == "finished"
