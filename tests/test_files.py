"""A file is whole or absent, and a folder belongs to one live process."""

from __future__ import annotations

import json
import os
import signal

import pytest
from toy import child, open_session, process, train, wait_for

from timebox import files


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"n": 1})

    def half(beside):
        beside.write_text('{"n": ')
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        files.write_whole(path, half)
    assert files.read_json(path) == {"n": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, 1)

    def slow(beside):
        beside.write_text("2")
        assert files.read_json(path) == 1

    files.write_whole(path, slow)
    assert files.read_json(path) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_numbers_that_json_lacks_are_refused(tmp_path, value):
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "a.json", value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("data", [b"{", b"", b"\xff\xfe", b'{"a": 1} x'])
def test_what_is_not_json_is_refused_by_name(tmp_path, data):
    (tmp_path / "odd.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"odd\.json is not JSON"):
        files.read_json(tmp_path / "odd.json")


def test_text_of_any_language_survives(tmp_path):
    files.write_json(tmp_path / "a.json", "čaj → 茶")
    assert files.read_json(tmp_path / "a.json") == "čaj → 茶"


def test_sha256_is_the_known_one(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256(tmp_path / "abc") == known


def test_putting_in_place_replaces_each_file(tmp_path):
    staged, folder = tmp_path / "staged", tmp_path / "folder"
    staged.mkdir()
    folder.mkdir()
    for name in ("a", "b"):
        (staged / name).write_text("new")
        (folder / name).write_text("old")
    files.put_in_place(staged, folder, ["a", "b"])
    assert [(folder / n).read_text() for n in ("a", "b")] == ["new", "new"]
    assert not list(staged.iterdir())


@pytest.mark.parametrize("name", ["a", "arc-2026", "night_3.b", "x" * 100, "7", "_", "a+b"])
def test_plain_run_names_are_taken(name):
    assert files.check_name(name) == name


BAD = [
    "", ".", "..", "../up", "a/b", "/etc", "a\\b", "a..b", ".hidden", "-rf", "a b", "a\n",
    "x" * 101,
    "naïve", "a:b", "a\0", "~", "$HOME", "*",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_run_names_that_could_leave_their_folder_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="run name"):
        files.check_name(name)


def test_a_folder_in_use_is_refused_and_a_dead_owner_is_not_waited_for(tmp_path):
    run = process(child, tmp_path, {}, {"hours": 0.05}, {"batch": 0.002})
    wait_for(tmp_path / "at-batch", run)
    folder = tmp_path / "submissions" / "r"
    assert files.is_locked(folder)
    with pytest.raises(files.Busy, match=f"in use by process {run.pid}"):
        open_session(tmp_path)
    with pytest.raises(files.Busy):
        open_session(tmp_path, fresh=True)
    assert json.loads((folder / "run.json").read_text())["status"] == "running"
    os.kill(run.pid, signal.SIGKILL)
    run.join()
    assert (folder / ".lock").exists()
    assert not files.is_locked(folder)
    assert train(tmp_path, max_steps=2)["status"] == "finished"


def test_a_session_that_was_refused_lets_the_folder_go(tmp_path):
    train(tmp_path, max_steps=2)
    with pytest.raises(ValueError):
        open_session(tmp_path, lr=3.0)
    assert not files.is_locked(tmp_path / "submissions" / "r")
    assert train(tmp_path, max_steps=2)["status"] == "finished"


def test_a_folder_that_is_not_there_is_not_locked(tmp_path):
    assert not files.is_locked(tmp_path / "nowhere")


def test_moving_aside_keeps_everything_even_twice_in_a_second(tmp_path):
    folder = tmp_path / "r"
    assert files.move_aside(folder) is None
    kept = []
    for text in ("one", "two", "three"):
        folder.mkdir()
        (folder / "a").write_text(text)
        kept.append(files.move_aside(folder))
        assert not folder.exists()
    assert [(path / "a").read_text() for path in kept] == ["one", "two", "three"]
    assert all(path.name.startswith("r.before-") for path in kept)
