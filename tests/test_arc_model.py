"""The grid model: what it can see, what counts, and what it answers."""

import numpy as np
import pytest
import torch

from timebox import optim
from timebox.nn import parameter_counts
from timebox.settings import Settings
from timebox.tasks.arc import data as arc
from timebox.tasks.arc import model as models


def few_puzzles(count=6):
    rng = np.random.default_rng(0)

    def grid():
        return rng.integers(0, 10, rng.integers(2, 5, 2)).astype(np.uint8)

    puzzles = {}
    for k in range(count):
        grids = [grid() for _ in range(4)]
        turned = [np.ascontiguousarray(g.T if k % 2 else g) for g in grids]
        puzzles[str(k)] = arc.Puzzle(
            str(k), tuple(zip(grids[:3], turned[:3], strict=True)), (grids[3],)
        )
    return puzzles


@pytest.fixture(scope="module")
def data():
    training = few_puzzles()
    challenges = {"training": training, "evaluation": {}, "test": {}}
    return arc.ArcData(arc.Source("few", challenges, lambda name: None))


def fresh(data, seed=0, random=False):
    torch.manual_seed(seed)
    model = models.GridModel(len(data.puzzles), "small")
    if random:  # the zeros at the start would hide everything
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_every_parameter_gets_a_gradient(data):
    model = fresh(data, random=True)
    for step in range(data.steps):
        model.loss(data.batch(step))[0].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_padding_changes_no_answer(data):
    """The same view alone and beside a larger one."""
    model = fresh(data, random=True)
    small = arc.Item(data.puzzles[0], 0, 0, np.array([[1, 2], [3, 4]], np.uint8)).view()
    large = arc.Item(data.puzzles[1], 1, 0, np.full((5, 6), 3, np.uint8)).view()
    alone, beside = model.predict([small])[0], model.predict([small, large])[0]
    assert np.array_equal(alone[0], beside[0])
    assert alone[1] == pytest.approx(beside[1], rel=1e-4)


def test_the_loss_counts_neither_padding_nor_an_example_of_weight_zero(data):
    model, batch = fresh(data, random=True), data.batch(0)
    loss = model.loss(batch)[0]
    assert (batch["input"] == arc.PAD).any()
    batch["row"] = batch["row"].masked_fill(batch["input"][..., 0] == arc.PAD, 3)
    torch.testing.assert_close(model.loss(batch)[0], loss)
    batch["weight"][0] = 0
    batch["target"][0] = 5
    changed = model.loss(batch)[0]
    batch["target"][0] = 6
    torch.testing.assert_close(model.loss(batch)[0], changed)


def test_losses_of_micro_batches_add_up(data):
    model, batch = fresh(data, random=True), data.batch(0)
    halves = [{name: tensor[part::2] for name, tensor in batch.items()} for part in (0, 1)]
    total = sum(model.loss(half)[0] for half in halves)
    torch.testing.assert_close(total, model.loss(batch)[0])


def test_the_task_and_the_transform_matter(data):
    model, batch = fresh(data, random=True), data.batch(0)
    before = model(batch)
    for name in ("task", "transform"):
        changed = {**batch, name: (batch[name] + 1) % 6}
        assert not torch.allclose(model(changed), before)


def test_the_likeliest_answer_is_the_best_rectangle_by_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(20):
        log_p = np.log(rng.dirichlet(np.ones(11), (3, 4)))
        best, colour, outside = log_p[..., :10].max(-1), log_p[..., :10].argmax(-1), log_p[..., 10]

        def total(rows, columns, best=best, outside=outside):
            inside = np.zeros((3, 4), bool)
            inside[:rows, :columns] = True
            return np.where(inside, best, outside).sum()

        wanted = max(((r, c) for r in (1, 2, 3) for c in (1, 2, 3, 4)), key=lambda s: total(*s))
        answer, log_probability = models.likeliest(best, colour, outside)
        assert answer.shape == wanted
        assert np.array_equal(answer, colour[: wanted[0], : wanted[1]])
        assert log_probability == pytest.approx(total(*wanted))


def test_it_overfits_one_batch_and_then_answers_it_size_included(data):
    """Half of these tasks exchange rows and columns, so sizes have to be found too."""
    model, batch = fresh(data), data.batch(0)
    optimizer = optim.build(model, Settings(), lr=0.02, adam_lr=3e-3, embedding_lr=0.01)
    steps = 60
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * optim.rate(step / steps, 0.05, 0.5)
        loss, logged = model.loss(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1 and logged["cell accuracy"] > 0.95
    for row, puzzle in enumerate(data.puzzles):
        for given, output in puzzle.demos:
            item, shown = arc.Item(puzzle, row, 0, given), arc.Item(puzzle, row, 0, output)
            for i in (batch["task"] == row).nonzero()[:, 0].tolist():
                which, colours = int(batch["transform"][i]), batch["colours"][i].numpy()
                view = item.view(which, colours.astype(np.uint8))
                cells = arc.collate([view])["input"][0]
                if torch.equal(batch["input"][i][: len(cells)], cells):
                    answer, _ = model.predict([view])[0]
                    assert answer.shape == shown.view(which, view.colours).grid.shape


def test_the_presets_have_the_size_they_promise():
    counts = parameter_counts(models.GridModel(1120, "orcasword"))
    assert 4.7e6 < counts["total"] < 5.3e6
    assert counts["total"] == sum(v for name, v in counts.items() if name != "total")
    assert parameter_counts(models.GridModel(1120, "small"))["total"] < 2e6
