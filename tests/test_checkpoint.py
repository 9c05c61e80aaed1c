"""Checkpoints are whole or refused: rotation, manifest, damage, and a full disk."""

from __future__ import annotations

import math
import os
import random
import shutil
import subprocess
import zipfile
from contextlib import suppress

import numpy as np
import pytest
import torch
from toy import (
    FakeTime,
    Toy,
    checkpoint,
    child,
    metrics,
    open_session,
    process,
    run_json,
    same,
    train,
)

from timebox import files
from timebox.checkpoint import (
    FORMAT,
    Store,
    differences,
    random_state,
    read,
    restore_random_state,
)
from timebox.loop import fit


def state(step, size=100):
    """A checkpoint with nothing much in it."""
    return {
        "format": FORMAT,
        "identity": {"task": "toy", "lr": 0.1},
        "device": {"name": "CPU", "dtype": "fp32"},
        "position": {"step": step},
        "model": {"weight": torch.full((size,), float(step))},
        "optimizer": {},
        "scaler": {},
        "random": {},
    }


def filled(folder, steps=(1, 2)):
    """A store in `folder` that has saved `steps`, and what it says from then on."""
    folder.mkdir(parents=True, exist_ok=True)
    said = []
    store = Store(folder, say=said.append)
    for step in steps:
        store.save(state(step))
    return store, said


def rewrite(path, data):
    """Other bytes under the same name, without touching files that share its bytes so far."""
    path.unlink()
    path.write_bytes(data)


def test_two_are_kept_and_the_manifest_knows_their_hashes(tmp_path):
    store, said = filled(tmp_path, (1, 2, 3))
    manifest = files.read_json(tmp_path / "manifest.json")
    assert manifest["format"] == FORMAT
    assert sorted(manifest["files"]) == ["last.pt", "previous.pt"]
    for name, step in (("last.pt", 3), ("previous.pt", 2)):
        entry = manifest["files"][name]
        assert entry["sha256"] == files.sha256(tmp_path / name)
        assert entry["bytes"] == (tmp_path / name).stat().st_size
        assert entry["step"] == read(tmp_path / name)["position"]["step"] == step
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "manifest.json", "previous.pt"]
    assert not said


def test_a_run_keeps_last_previous_best_and_the_best_three(tmp_path):
    scores = iter([0.1, 0.5, 0.3, 0.9, 0.2, 0.7, 0.4])
    toy = Toy(scores=lambda measured: next(scores))
    data = train(tmp_path, toy, max_steps=24, eval_every_epochs=1, eval_items=50)
    folder = tmp_path / "checkpoints" / "r"
    found = {p.name for p in folder.glob("*.pt")}
    entries = files.read_json(folder / "manifest.json")["files"]
    evaluations = {e["step"]: e["exact"] for e in data["history"] if e["kind"] == "evaluation"}
    best = sorted(evaluations, key=evaluations.get)[-3:]
    assert found == {"last.pt", "previous.pt", "best.pt", *(f"top-{s:08d}.pt" for s in best)}
    assert found == set(entries)
    for name in found:
        saved = checkpoint(tmp_path, name)  # torch.load with weights_only
        assert saved["position"]["step"] == entries[name]["step"]
        assert files.sha256(folder / name) == entries[name]["sha256"]
    assert entries["best.pt"]["step"] == best[-1]
    assert checkpoint(tmp_path, "best.pt")["position"]["best"] == [50, evaluations[best[-1]], 0]


def test_a_short_run_saves_at_least_three_times(tmp_path):
    now = FakeTime()
    toy = Toy(on_batch=lambda step: now.pass_by(0.2))
    data = train(tmp_path, toy, now=now, hours=60 / 3600, eval_every_epochs=10**6)
    assert data["reason"] == "deadline"
    saves = [line["step"] for line in metrics(tmp_path) if line["kind"] == "save"]
    assert len(set(saves)) >= 4, "one at the start, and three on the way"


def test_random_states_come_back_exactly(tmp_path):
    def draw():
        return random.random(), float(np.random.rand()), torch.rand(2), random.gauss(0, 1)

    np.random.randn()  # leaves half of a pair behind
    random.gauss(0, 1)
    torch.save({"random": random_state("cpu")}, tmp_path / "r.pt")
    expected = draw()
    draw()
    restore_random_state(torch.load(tmp_path / "r.pt", weights_only=True)["random"], "cpu")
    assert same(draw(), expected)


def test_a_run_on_the_cpu_does_not_ask_a_gpu_that_may_be_broken(monkeypatch):
    def broken(*ignored):
        raise RuntimeError("CUDA error: no kernel image is available for execution")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("get_rng_state_all", "set_rng_state_all", "device_count"):
        monkeypatch.setattr(torch.cuda, name, broken)
    restore_random_state(random_state("cpu"), "cpu")


def test_everything_that_changes_is_in_a_checkpoint(tmp_path):
    train(tmp_path, max_steps=9)
    saved = checkpoint(tmp_path)
    assert saved["position"]["step"] == 9
    assert saved["position"]["progress"] == 1.0
    assert saved["position"]["seconds"]["total"] > 0
    assert {len(v) for v in saved["optimizer"]["state"].values()} == {2, 3}, "Muon's, and AdamW's"
    assert set(saved["random"]) == {"python", "numpy", "torch", "cuda"}
    assert saved["identity"]["task"] == "toy"


def test_differences_name_both_sides():
    old = {"identity": {"lr": 0.1, "seed": 0, "gone": 1}}
    assert differences(old, {"lr": 0.2, "seed": 0, "new": 2}) == [
        "gone: checkpoint 1, this run None",
        "lr: checkpoint 0.1, this run 0.2",
        "new: checkpoint None, this run 2",
    ]


# --- damage


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def zip_places(path):
    """Offsets in the file that hold each kind of thing a zip archive is made of."""
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        first, largest = infos[0], max(infos, key=lambda i: i.file_size)
        end = path.stat().st_size
    return {
        "the first local header": first.header_offset + 1,
        "a name in a local header": first.header_offset + 31,
        "a checksum in a local header": largest.header_offset + 15,
        "the pickled structure": first.header_offset + 90,
        "the weights": largest.header_offset + largest.file_size // 2 + 64,
        "a central header": archive.start_dir + 2,
        "a size in the central directory": archive.start_dir + 21,
        "an offset in the central directory": archive.start_dir + 43,
        "the end record": end - 10,
        "the very last byte": end - 1,
    }


PLACES = [
    "the first local header", "a name in a local header", "a checksum in a local header",
    "the pickled structure", "the weights", "a central header",
    "a size in the central directory", "an offset in the central directory", "the end record",
    "the very last byte",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_one_flipped_bit_anywhere_is_noticed(tmp_path, place):
    filled(tmp_path)
    path = tmp_path / "last.pt"
    rewrite(path, flipped(path.read_bytes(), zip_places(path)[place]))
    said = []
    found = Store(tmp_path, say=said.append).load()
    assert found["position"]["step"] == 1
    assert torch.equal(found["model"]["weight"], torch.full((100,), 1.0))
    assert "last.pt" in said[0]
    assert "continuing from previous.pt, step 1" in said[-1]


def test_many_flipped_bits_at_random_are_noticed(tmp_path):
    filled(tmp_path)
    path, places = tmp_path / "last.pt", random.Random(5)
    whole, manifest = path.read_bytes(), (tmp_path / "manifest.json").read_bytes()
    for _ in range(150):
        path.write_bytes(flipped(whole, places.randrange(len(whole))))
        (tmp_path / "manifest.json").write_bytes(manifest)
        assert Store(tmp_path, say=lambda text: None).load()["position"]["step"] == 1
        (tmp_path / "last.pt.damaged").unlink()


BROKEN = {
    "truncated": lambda data: data[: len(data) * 2 // 3],
    "cut by one byte": lambda data: data[:-1],
    "empty": lambda data: b"",
    "text": lambda data: b"this is a shopping list\n" * 50,
    "zeros": lambda data: bytes(len(data)),
    "longer": lambda data: data + b"more",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_last_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, how):
    filled(tmp_path)
    path = tmp_path / "last.pt"
    rewrite(path, BROKEN[how](path.read_bytes()))
    said = []
    store = Store(tmp_path, say=said.append)
    assert store.load()["position"]["step"] == 1
    assert "last.pt" in said[0] and "continuing from previous.pt" in said[-1]
    store.save(state(3))
    again = Store(tmp_path, say=said.append)
    assert again.load()["position"]["step"] == 3
    assert read(tmp_path / "previous.pt")["position"]["step"] == 1, (
        "the good one was not pushed out"
    )


def test_a_foreign_file_falls_back(tmp_path):
    for name, foreign in (
        ("weights of something else", {"layer": torch.zeros(3)}),
        ("a list", [1, 2]),
        ("another format", {**state(2), "format": FORMAT + 1}),
        ("parts of one", {"format": FORMAT}),
    ):
        filled(tmp_path / name)
        (tmp_path / name / "last.pt").unlink()
        torch.save(foreign, tmp_path / name / "last.pt")
        assert Store(tmp_path / name, say=lambda text: None).load()["position"]["step"] == 1, name


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({**state(2), "model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt"):
        read(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()


def test_a_missing_last_checkpoint_falls_back_and_is_said(tmp_path):
    filled(tmp_path)
    (tmp_path / "last.pt").unlink()
    said = []
    assert Store(tmp_path, say=said.append).load()["position"]["step"] == 1
    assert "last.pt is missing" in said[0]


def test_best_and_top_stand_in_when_the_last_two_are_damaged(tmp_path):
    store, _ = filled(tmp_path, (1,))
    store.keep_last_as_top([0.5, 0.0])
    store.save(state(2))
    store.save(state(3))
    for name in ("last.pt", "previous.pt"):
        rewrite(tmp_path / name, b"gone")
    said = []
    assert Store(tmp_path, say=said.append).load()["position"]["step"] == 1
    assert "continuing from best.pt" in said[-1]


@pytest.mark.parametrize(
    "manifest", [None, b"", b"{", b"[]", b'{"files": 3}', b'{"files": {"a": 1}}']
)
def test_a_lost_or_broken_manifest_costs_nothing_that_is_whole(tmp_path, manifest):
    filled(tmp_path)
    (tmp_path / "manifest.json").unlink()
    if manifest is not None:
        (tmp_path / "manifest.json").write_bytes(manifest)
    store = Store(tmp_path, say=lambda text: None)
    assert store.load()["position"]["step"] == 2
    store.save(state(3))
    assert Store(tmp_path).load()["position"]["step"] == 3


def test_if_all_are_damaged_the_run_is_refused_and_stays_so(tmp_path):
    """Starting over silently would throw hours away: only --fresh does it."""
    train(tmp_path, max_steps=8)
    for path in (tmp_path / "checkpoints" / "r").glob("*.pt"):
        rewrite(path, b"damaged")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"checkpoint.*whole.*--fresh"):
            open_session(tmp_path)
    said = []
    data = train(tmp_path, max_steps=8, fresh=True, say=said.append)
    assert (data["status"], data["resumed_from"]) == ("finished", None)
    assert any("kept in" in text for text in said)
    assert len(list((tmp_path / "checkpoints").glob("r.before-*"))) == 1


def test_a_damaged_run_goes_on_from_the_checkpoint_before(tmp_path):
    """The whole way: what comes out is what an undamaged run would have given."""
    train(tmp_path / "a", max_steps=24)
    toy = Toy(on_batch=lambda s: s == 15 and (tmp_path / "b/submissions/r/stop").touch())
    train(tmp_path / "b", toy, max_steps=24, save_every_minutes=1e-5, keep_top=0)
    path = tmp_path / "b" / "checkpoints" / "r" / "last.pt"
    data = path.read_bytes()
    rewrite(path, data[:1000])
    said = []
    record = train(tmp_path / "b", max_steps=24, keep_top=0, say=said.append)
    assert record["resumed_from"]["step"] < 16
    assert any("damaged" in text for text in said)
    assert same(checkpoint(tmp_path / "a")["model"], checkpoint(tmp_path / "b")["model"])


def test_a_damaged_best_checkpoint_leaves_the_last_weights_and_is_said(tmp_path):
    scores = iter([0.9, 0.1, 0.1, 0.1, 0.1])
    toy, said = Toy(scores=lambda measured: next(scores)), []
    session = open_session(
        tmp_path, toy, max_steps=8, eval_every_epochs=1, eval_items=50, say=said.append
    )
    folder = session.checkpoints

    def damage(step):
        if step == 7:
            for name in ("best.pt", "top-00000004.pt"):
                rewrite(folder / name, b"gone")

    toy.data.on_batch = damage
    data = fit(session)
    assert data["status"] == "finished", data["error"]
    assert any("best.pt" in text and "damaged" in text for text in said)
    toy.task().check(session.folder)


# --- a crash in the middle of saving


@pytest.mark.parametrize("crash_at", range(1, 8))
def test_a_crash_at_any_moment_of_saving_leaves_a_checkpoint(tmp_path, monkeypatch, crash_at):
    """Stops before the n-th file operation of the third save, as a power cut would."""
    store, _ = filled(tmp_path, (1, 2))
    count = iter(range(1, 100))
    replace = os.replace
    fsync = os.fsync

    def counted(call):
        def run(*arguments):
            if next(count) == crash_at:
                raise SystemExit("the power is gone")
            return call(*arguments)

        return run

    monkeypatch.setattr(os, "replace", counted(replace))
    monkeypatch.setattr(os, "fsync", counted(fsync))
    try:
        store.save(state(3))
        store.keep_last_as_top([1.0])
    except SystemExit:
        pass
    monkeypatch.undo()
    said = []
    found = Store(tmp_path, say=said.append).load()
    assert found["position"]["step"] in (2, 3)
    assert not any("damaged" in text for text in said)


def test_what_a_killed_process_left_half_written_is_removed_at_the_next_save(tmp_path):
    store, _ = filled(tmp_path, (1,))
    leftover = tmp_path / ".incoming.pt.4242.tmp"
    leftover.write_bytes(b"half")
    store.save(state(2))
    assert not leftover.exists()


# --- a full disk


def test_a_full_disk_costs_no_earlier_checkpoint_and_stops_nothing(tmp_path):
    """No file may grow beyond a limit, in a process of its own: a checkpoint does not fit."""
    stop = Toy(on_batch=lambda s: s == 3 and (tmp_path / "submissions/r/stop").touch())
    train(tmp_path, stop, max_steps=40)
    size = (tmp_path / "checkpoints" / "r" / "last.pt").stat().st_size
    before = {p.name: files.sha256(p) for p in (tmp_path / "checkpoints" / "r").glob("*.pt")}
    run = process(child, tmp_path, {}, {"max_steps": 40}, {}, {}, size - 3000)
    run.join(60)
    assert run.exitcode == 0
    data = run_json(tmp_path)
    assert (data["status"], data["steps"]) == ("finished", 40)
    assert any("checkpoint" in text for text in data["warnings"])
    for name, digest in before.items():
        assert files.sha256(tmp_path / "checkpoints" / "r" / name) == digest
    assert not list((tmp_path / "checkpoints" / "r").glob(".*.tmp"))
    again = train(tmp_path, max_steps=40)
    assert again["resumed_from"]["step"] == 4
    assert again["status"] == "finished"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1.5 MB of its own, where the system lets us make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(folder)]
    if (
        os.name != "posix"
        or not hasattr(os, "geteuid")
        or os.geteuid()
        or not shutil.which("mount")
    ):
        pytest.skip("only root makes a small disk")
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this system mounts no tmpfs for us")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_during_training_stops_nothing(small_disk):
    toy = Toy(hidden=600)  # a checkpoint of about 100 kB
    session = open_session(
        small_disk, toy, max_steps=40, eval_every_epochs=2, save_every_minutes=1e-5
    )

    def fill(step):
        if step == 20:
            with suppress(OSError), open(small_disk / "fill", "wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

    toy.data.on_batch = fill
    data = fit(session)
    assert (data["status"], data["steps"]) == ("finished", 40), data["error"]
    assert any("checkpoint" in text for text in data["warnings"])
    toy.task().check(session.folder)
    (small_disk / "fill").unlink()
    state = Store(session.checkpoints, say=lambda text: None).load()
    assert 0 < state["position"]["step"] <= 20
    again = train(small_disk, Toy(hidden=600), max_steps=40, eval_every_epochs=2)
    assert again["status"] == "finished"
    assert run_json(small_disk)["warnings"] == []


def test_a_disk_without_room_is_refused_before_anything_is_moved(tmp_path, monkeypatch):
    store, _ = filled(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(OSError, match="no room"):
        store.save(state(3))
    assert Store(tmp_path).load()["position"]["step"] == 2
    assert math.isfinite(read(tmp_path / "last.pt")["model"]["weight"].sum())
