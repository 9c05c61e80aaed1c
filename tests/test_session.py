"""Starting a session: names and values are checked first, and a way back is written down."""

import time

import pytest
from toy import nothing, open_session

from timebox.files import Busy
from timebox.session import command, resolve, start
from timebox.settings import SettingError


def test_settings_and_options_come_from_one_set_of_names():
    settings, options, free = resolve("arc", {"lr": "0.5", "views": "8", "preset": "orcasword"})
    assert (settings.lr, options["views"], options["preset"]) == (0.5, 8, "orcasword")
    assert options["version"] == "2025", "options that were not given have their defaults"
    assert "views" in free and "preset" not in free


@pytest.mark.parametrize(
    ("task", "given", "said"),
    [
        ("arcc", {}, "did you mean 'arc'"),
        ("arc", {"epoch": 3}, "did you mean 'epochs'"),
        ("arc", {"preset": "smal"}, "did you mean 'small'"),
        ("arc", {"epochs": 1.5}, "epochs must be a whole number"),
        ("arc", {"hours": -1}, "hours must be greater than 0"),
        ("arc", {"seed": "one"}, "seed must be a number"),
    ],
)
def test_a_wrong_name_or_value_is_refused_before_anything_is_written(tmp_path, task, given, said):
    with pytest.raises(SettingError, match=said):
        start(task, root=tmp_path, **given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../up", "a/b", "..", ".hidden", "-p", "a b"])
def test_a_name_that_is_not_plain_is_refused(tmp_path, name):
    with pytest.raises(SettingError, match="a run name is"):
        start("arc", root=tmp_path, run=name)
    assert list(tmp_path.iterdir()) == []


def test_minutes_and_hours_together_are_refused(tmp_path):
    with pytest.raises(SettingError, match="either minutes or hours"):
        start("arc", root=tmp_path, minutes=5, hours=1)


def test_the_command_to_continue_names_what_was_changed(tmp_path):
    """A checkpoint wants the settings and options it was made with."""
    settings, options, _ = resolve("arc", {"hours": 0.125, "lr": 0.5, "preset": "orcasword"})
    there = tmp_path / "there"
    assert command("arc", settings, options, there, "night") == (
        f"timebox run arc --minutes 7.5 --run night --root {there} -p lr=0.5 -p preset=orcasword"
    )
    assert " --root " not in command("arc", settings, options, tmp_path, "night")
    assert " --run " not in command("arc", settings, options, tmp_path), "a new run"


def test_a_budget_that_was_used_up_before_the_start_is_refused(tmp_path):
    """As where a notebook's first cells took longer than the whole budget."""
    with pytest.raises(SettingError, match=r"used up before the run began: \d+\.\d of 5 minutes"):
        open_session(tmp_path, began=time.time() - 400, hours=5 / 60)
    assert list(tmp_path.iterdir()) == []


def test_a_second_session_of_one_process_is_told_what_to_do(tmp_path):
    """As when a notebook's cell is run twice: the process in the way is the user's own."""
    first = open_session(tmp_path, max_steps=2)
    with pytest.raises(Busy, match=r"held by a session of this process: fit\(\) it, or close\(\)"):
        open_session(tmp_path, say=nothing)
    first.close()
    open_session(tmp_path).close()
