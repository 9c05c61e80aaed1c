"""The optimizer against what it stands for, and the schedule at the points that matter."""

import copy

import pytest
import torch
from torch import nn

from timebox import optim
from timebox.settings import Settings


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 8)
        self.wide = nn.Linear(8, 16)
        self.tall = nn.Linear(16, 8, bias=False)
        self.also_tall = nn.Linear(16, 8, bias=False)
        self.head = nn.Linear(8, 3, bias=False)

    def forward(self, index):
        hidden = self.wide(self.table(index)).relu()
        return self.head(self.tall(hidden) + self.also_tall(hidden))


def small(seed=0):
    torch.manual_seed(seed)
    return Small()


def give_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.4, 1.0), (0.7, 0.5), (1.0, 0.0)],
)
def test_the_rate_is_a_trapezoid(progress, expected):
    assert optim.rate(progress, warmup=0.1, cooldown=0.6) == pytest.approx(expected)


def test_the_rate_is_exactly_zero_at_the_end_and_behind_it_and_full_without_ramps():
    assert optim.rate(1.0, 0.02, 0.6) == 0.0
    assert optim.rate(1.2, 0.02, 0.6) == 0.0
    assert optim.rate(0.0, 0.0, 0.5) == 1.0
    assert optim.rate(1.0, 0.0, 0.0) == 1.0


def test_the_adamw_part_equals_pytorchs_adamw():
    ours, theirs = small(), small()
    groups = [
        {
            "params": list(ours.parameters()),
            "kind": "adamw",
            "peak_lr": 0.01,
            "weight_decay": 0.1,
            "betas": (0.9, 0.99),
        }
    ]
    optimizer = optim.Optimizer(groups)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1, betas=(0.9, 0.99))
    for step in range(5):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimizer.step()
        reference.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


def test_a_parameter_without_a_gradient_is_left_alone_and_corrected_by_its_own_steps():
    model = small()
    optimizer = optim.Optimizer(
        [{"params": list(model.parameters()), "kind": "adamw", "peak_lr": 0.01}]
    )
    before = model.table.weight.clone()
    give_gradients(model, 0)
    model.table.weight.grad = None
    optimizer.step()
    assert torch.equal(model.table.weight, before)
    give_gradients(model, 1)
    optimizer.step()
    # The first step of Adam moves every element by the rate, whatever its gradient's size.
    moved = (model.table.weight - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("shape", [(16, 8), (8, 16), (12, 12)])
def test_newton_schulz_brings_every_singular_value_near_one(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(optim.orthogonal(matrices))
    assert values.min() > 0.5 and values.max() < 1.3
    # Directions are kept: each matrix is turned towards itself, not towards another.
    products = torch.einsum("aij,bij->ab", optim.orthogonal(matrices), matrices)
    assert (products.argmax(1) == torch.arange(3)).all()


def test_the_muon_update_is_nearly_orthogonal_whatever_the_size_of_the_gradient():
    for scale in (1e-6, 1e3):
        matrix = nn.Parameter(torch.zeros(8, 16))
        optimizer = optim.Optimizer([{"params": [matrix], "kind": "muon", "peak_lr": 0.1}])
        matrix.grad = scale * torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        values = torch.linalg.svdvals(matrix.detach() / 0.1)
        assert values.min() > 0.5 and values.max() < 1.5
        rows = matrix.detach().norm(dim=1)
        assert rows.max() / rows.min() < 1.01  # NorMuon evens the rows out


def test_matrices_of_one_shape_are_stepped_as_if_each_were_alone():
    together, alone = small(), small()
    names = ("tall", "also_tall")
    both = optim.Optimizer(
        [{"params": [getattr(together, n).weight for n in names], "kind": "muon", "peak_lr": 0.1}]
    )
    single = [
        optim.Optimizer([{"params": [getattr(alone, n).weight], "kind": "muon", "peak_lr": 0.1}])
        for n in names
    ]
    for step in range(3):
        give_gradients(together, step)
        give_gradients(alone, step)
        for optimizer in (both, *single):
            optimizer.step()
    for n in names:
        torch.testing.assert_close(getattr(together, n).weight, getattr(alone, n).weight)


def test_build_gives_matrices_to_muon_and_everything_else_to_adamw():
    model = small()
    optimizer = optim.build(model, Settings(), lr=0.02, adam_lr=0.003, embedding_lr=0.03)
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert groups["matrices"]["kind"] == "muon"
    assert {id(p) for p in groups["matrices"]["params"]} == {
        id(layer.weight) for layer in (model.wide, model.tall, model.also_tall)
    }
    assert groups["head"]["params"][0] is model.head.weight
    assert groups["embeddings"]["params"][0] is model.table.weight
    assert groups["vectors"]["params"][0] is model.wide.bias
    peaks = {name: group["peak_lr"] for name, group in groups.items()}
    assert peaks == {"matrices": 0.02, "head": 0.003, "embeddings": 0.03, "vectors": 0.003}
    assert {n: g["weight_decay"] for n, g in groups.items() if g["weight_decay"]} == {
        "matrices": Settings().weight_decay,
        "head": Settings().weight_decay,
    }
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))


def test_build_honours_optimizer_lr_and_weight_decay():
    model = small()
    given = Settings(optimizer="adamw", lr=0.007, weight_decay=0.3)
    matrices = optim.build(model, given, lr=0.02, adam_lr=0.003).param_groups[0]
    found = [matrices[name] for name in ("kind", "peak_lr", "weight_decay")]
    assert found == ["adamw", 0.007, 0.3]
    plain = optim.build(model, Settings(optimizer="adamw"), lr=0.02, adam_lr=0.003)
    assert plain.param_groups[0]["peak_lr"] == 0.003


def test_a_wrong_group_is_refused():
    vector = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="two dimensions"):
        optim.Optimizer([{"params": [vector], "kind": "muon", "peak_lr": 0.1}])
    with pytest.raises(ValueError, match="'sgd'"):
        optim.Optimizer([{"params": [vector], "kind": "sgd", "peak_lr": 0.1}])


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_saved_and_loaded_optimizer_continues_bit_for_bit(tmp_path, kind):
    """A resumed run must be the run that was interrupted."""

    def steps(model, optimizer, numbers):
        for number in numbers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * optim.rate(number / 8, 0.1, 0.5)
            give_gradients(model, number)
            optimizer.step()

    settings = Settings(optimizer=kind)
    straight = small()
    optimizer = optim.build(straight, settings, lr=0.02, adam_lr=0.003)
    steps(straight, optimizer, range(4))
    torch.save(
        {"model": straight.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt"
    )
    steps(straight, optimizer, range(4, 8))

    saved = torch.load(tmp_path / "x.pt", weights_only=True)
    resumed = small(seed=1)
    resumed.load_state_dict(saved["model"])
    again = optim.build(resumed, settings, lr=0.02, adam_lr=0.003)
    again.load_state_dict(saved["optimizer"])
    steps(resumed, again, range(4, 8))
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_gradient_scaler_can_drive_it():
    model = small()
    optimizer = optim.build(model, Settings(), lr=0.02, adam_lr=0.003)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = copy.deepcopy(model.state_dict())
    loss = model(torch.arange(7)).square().mean()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert not torch.equal(model.tall.weight, before["tall.weight"])


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_it_learns(kind):
    model, index, labels = small(), torch.arange(7), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    optimizer = optim.build(model, Settings(optimizer=kind), lr=0.02, adam_lr=0.01)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(index), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1


@pytest.mark.parametrize("kind, expected", [("muon", {0.5, 0.003, 0.03}), ("adamw", {0.5})])
def test_a_given_rate_is_muons_or_with_adamw_that_of_everything(kind, expected):
    model = nn.ModuleDict(
        {"table": nn.Embedding(4, 8), "up": nn.Linear(8, 8), "head": nn.Linear(8, 2)}
    )
    settings = Settings(optimizer=kind, lr=0.5)
    built = optim.build(model, settings, lr=0.02, adam_lr=0.003, embedding_lr=0.03)
    assert {group["peak_lr"] for group in built.param_groups} == expected
