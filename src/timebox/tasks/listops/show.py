"""What the list operations, a model's answers to them and its attention look like.

Every picture has a form in plain characters too, for a terminal.
"""

from __future__ import annotations

import math
import re
import textwrap
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from timebox.files import read_json
from timebox.picture import BLUE, GREEN, INK, PALE, WIDTH, Picture, panels, picture, title
from timebox.task import Task
from timebox.tasks.listops.data import (
    MOST_ITEMS,
    OPERATIONS,
    PARTS,
    Inputs,
    answers,
    encode,
    question,
    word,
)
from timebox.tasks.listops.score import by_operation, trivial
from timebox.text import bars

BAR = 0.24  # inches from one bar to the next
TOP = 5
SHADES = " ░▒▓█"
# Entropy of attention as a share of the most it could be: log2 of the number of tokens.
FOCUSED, DISTRIBUTED = 1 / 3, 2 / 3


# --- the data ---------------------------------------------------------------------------------


def operations(task: Task, folder: Path) -> Picture:
    """How many training examples each operation has, and how long their lists are."""
    data = task.data
    rows = data.row_N.numpy()
    chosen = data.parts["training"][rows]
    counts = {name: int((chosen.operation_N == k).sum()) for k, name in enumerate(OPERATIONS)}
    by_length = {
        f"{n} items": int((chosen.length_N == n).sum()) for n in np.unique(chosen.length_N)
    }
    figure, (left, right) = _panels(_height(len(by_length)), 2)
    _bars(left, counts, "{:,.0f}".format)
    title(left, "Training examples by operation", 10)
    _bars(right, by_length, "{:,.0f}".format)
    title(right, "Training examples by length of the list", 10)
    text = "\n\n".join(bars(rows, "{:,.0f}".format) for rows in (counts, by_length))
    alt = f"{len(rows):,} training examples, {counts[OPERATIONS[0]]:,} of each operation"
    return picture(figure, folder / "operations.png", alt, f"{alt}\n\n{text}")


def samples(task: Task) -> pd.DataFrame:
    """A training input of each operation, its answer, and the tokens that the model sees."""
    inputs = _of_each(task.data.parts["training"])
    tokens_NL, _ = encode(inputs)
    rows = [
        (text, int(answer), " ".join(map(str, ids)), " ".join(map(word, ids)))
        for text, answer, ids in zip(
            inputs.texts(), answers(inputs), tokens_NL.tolist(), strict=True
        )
    ]
    columns = ["input", "answer", "token ids", "what they stand for"]
    return pd.DataFrame(rows, columns=columns).set_index("input")


def split(task: Task) -> pd.DataFrame:
    """What each part holds: examples, distinct inputs, and how many each operation has."""
    data, rows = task.data, {}
    for name in PARTS:
        part = data.parts[name]
        counts = np.bincount(part.operation_N, minlength=len(OPERATIONS))
        lengths = part.length_N
        rows[name] = {
            "examples": f"{data.examples if name == 'training' else len(part):,}",
            "distinct inputs": f"{len(set(part.keys())):,}",
            "of each operation": " to ".join(dict.fromkeys(f"{n:,}" for n in _ends(counts))),
            "items in a list": " to ".join(dict.fromkeys(map(str, _ends(lengths)))),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("part")


def rules(task: Task) -> pd.DataFrame:
    """What rules without understanding score on the validation part; the first is the floor."""
    validation, rows = task.data.parts["validation"], {}
    for name, rule in trivial(task.data).items():
        right_N = rule(validation) == answers(validation)
        shares = {"all": float(right_N.mean()), **by_operation(validation, right_N)}
        rows[name] = {column: _percent(share) for column, share in shares.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("rule")


def batch(task: Task, step: int = 0, rows: int = 6) -> pd.DataFrame:
    """The first `rows` of a batch: tokens, mask (1: may be attended to), answer and weight."""
    found = task.data.batch(step)
    table = [
        (
            " ".join(map(word, tokens)),
            "".join(str(int(m)) for m in mask),
            int(answer),
            f"{weight:.4f}",
        )
        for tokens, mask, answer, weight in zip(
            found["tokens"][:rows].tolist(),
            found["mask"][:rows].tolist(),
            found["answer"][:rows],
            found["weight"][:rows].tolist(),
            strict=True,
        )
    ]
    shape = " by ".join(map(str, found["tokens"].shape))
    columns = ["tokens", "mask", "answer", "weight"]
    return pd.DataFrame(table, columns=columns).rename_axis(f"batch of {shape}")


# --- the model --------------------------------------------------------------------------------


def untrained(task: Task) -> torch.nn.Module:
    """The model as training will begin with it."""
    with torch.random.fork_rng([]):
        torch.manual_seed(task.data.seed)
        return task.model().eval()


def trained(task: Task, checkpoints: Path) -> torch.nn.Module:
    """The model with the best weights by validation, or the last ones where none were judged."""
    found = [path for name in ("best.pt", "last.pt") if (path := checkpoints / name).is_file()]
    if not found:
        raise ValueError(f"there is no checkpoint in {checkpoints}")
    model = task.model()
    model.load_state_dict(torch.load(found[0], map_location="cpu", weights_only=True)["model"])
    return model.eval()


def layers(model: torch.nn.Module) -> pd.DataFrame:
    """Every matrix and vector of `model` by its part, with its shape and number of parameters."""
    rows = []
    for name, parameter in model.named_parameters():
        where, _, kind = name.removesuffix(".weight").rpartition(".")
        where = where.replace("blocks.", "layer ")
        if where.startswith("layer "):
            number, _, part = where.removeprefix("layer ").partition(".")
            where = f"layer {int(number) + 1} {part}"
        kind = re.sub("_[A-Z]+$", "", kind)  # a name may end in its shape
        label = f"{where} {kind}".replace(".", " ").replace("_", " ").strip()
        shape = " by ".join(map(str, parameter.shape))
        rows.append((label, shape, f"{parameter.numel():,}"))
    total = sum(parameter.numel() for parameter in model.parameters())
    rows.append(("all", "", f"{total:,}"))
    return pd.DataFrame(rows, columns=["part", "shape", "parameters"]).set_index("part")


def shapes(task: Task, model: torch.nn.Module, text: str) -> pd.DataFrame:
    """What one question becomes on its way through `model`: the parts passed, and the shapes."""
    tokens_BL, mask_BL = encode(question(text, task.data.max_value))
    rows, hooks = [("tokens", tokens_BL)], []

    def note(name: str):
        return lambda module, given, output: rows.append((name, output))

    for name, part in model.named_modules():
        depth = name.count(".")
        if name and (depth == 0 or (name.startswith("blocks.") and depth == 1)):
            label = f"layer {int(name[7:]) + 1}" if depth else name
            hooks.append(part.register_forward_hook(note(label)))
    try:
        with torch.no_grad():
            model(tokens_BL, mask_BL)
    finally:
        for hook in hooks:
            hook.remove()
    seen = [(name, " by ".join(map(str, tensor.shape[1:]))) for name, tensor in rows]
    return pd.DataFrame(seen, columns=["after", "shape"]).set_index("after")


def setup(task: Task, settings) -> pd.DataFrame:
    """How it will be trained: optimizer and rates, batches, and what ends the training."""
    data, optimizer = task.data, task.optimizer(task.model(), settings)
    groups = [
        (
            f"{group['kind']}, {sum(p.numel() for p in group['params']):,} parameters",
            f"peak rate {group['peak_lr']:g}, weight decay {group['weight_decay']:g}",
        )
        for group in optimizer.param_groups
    ]
    limit = {"epochs": settings.epochs, "steps": settings.max_steps}
    ends = [f"after {count:,} {name}" for name, count in limit.items() if count]
    rows = [
        *groups,
        ("batch", f"{data.batch_size:,} examples"),
        ("epoch", f"{data.examples:,} examples in {data.steps:,} steps"),
        ("ends", " or ".join([*ends, "at the deadline"])),
    ]
    return pd.DataFrame(rows, columns=["what", "how"]).set_index("what")


# --- answers ----------------------------------------------------------------------------------


def questions(task: Task) -> list[str]:
    """A test input of each operation, those with the shortest lists first."""
    return _of_each(_short(task.data.parts["test"])).texts()


def longer(task: Task) -> list[str]:
    """A question for each operation with one item more than any list of training has.

    At most MOST_ITEMS: where training has lists of so many, no more than these.
    """
    data, k = task.data, np.arange(len(OPERATIONS))
    count = min(data.items[-1] + 1, MOST_ITEMS)
    rng = np.random.default_rng(data.seed)
    items_NM = rng.integers(0, data.max_value + 1, (len(k), count)).astype(np.int16)
    return Inputs(k, items_NM).texts()


def top(
    task: Task, model: torch.nn.Module, folder: Path, texts: list[str], name: str = "top"
) -> Picture:
    """The five likeliest answers of `model` to each question, with the right one marked."""
    wrapped = [textwrap.wrap(text, 120 // len(texts)) for text in texts]
    above = 0.15 + 0.18 * (1 + max(map(len, wrapped)))  # inches
    figure, grid = _panels(_height(TOP) - 0.5 + above, len(texts), above)
    lines = []
    for text, above_it, axes in zip(texts, wrapped, grid, strict=True):
        inputs = question(text, task.data.max_value)
        truth = int(answers(inputs)[0])
        with torch.no_grad():
            probability_V = model(*encode(inputs))[0].softmax(-1)
        share, value = probability_V.topk(min(TOP, len(probability_V)))
        rows = dict(zip(map(str, value.tolist()), share.tolist(), strict=True))
        _bars(axes, rows, _percent, most=1.0, right=str(truth))
        title(axes, "\n".join([*above_it, f"= {truth}"]), 9)
        marked = {(f"{v} (right)" if v == str(truth) else v): p for v, p in rows.items()}
        verdict = "right" if int(value[0]) == truth else "wrong"
        lines.append(f"{text} = {truth}   model: {int(value[0])}, {verdict}")
        lines.append(bars(marked, _percent, most=1.0, width=60) + "\n")
    alt = f"The likeliest answers to {len(texts)} questions"
    return picture(figure, folder / f"{name}.png", alt, "\n".join(lines).rstrip())


def accuracy(task: Task, folder: Path) -> Picture:
    """The share of right test answers by operation, hardest first, and by length of the list."""
    test, right_N = _judged(task, folder)
    operations = sorted(by_operation(test, right_N).items(), key=lambda row: row[1])
    length_N = test.length_N
    by_length = {
        f"{n} items": float(right_N[length_N == n].mean()) for n in np.unique(length_N).tolist()
    }
    several = len(by_length) > 1
    figure, grid = _panels(_height(several * len(by_length)), 1 + several)
    words = ["Right test answers by operation, hardest first", "By length of the list"]
    groups = [dict(operations), by_length][: 1 + several]
    for axes, rows, name in zip(grid, groups, words, strict=False):
        _bars(axes, rows, _percent, most=1.0)
        title(axes, name, 10)
    alt = f"{int(right_N.sum()):,} of {len(right_N):,} test answers are right"
    text = "\n\n".join(bars(rows, _percent, most=1.0) for rows in groups)
    return picture(figure, folder / "accuracy.png", alt, f"{alt}\n\n{text}")


def mistakes(task: Task, folder: Path, most: int = 10) -> pd.DataFrame:
    """The wrong test answers, the surest first: what was asked, answered, and right."""
    wrong = [entry for entry in _test(folder) if entry["correct"] is False]
    wrong.sort(key=lambda entry: -entry["top"][0][1])
    rows = [
        (e["question"], e["answer"], _percent(e["top"][0][1]), e["truth"]) for e in wrong[:most]
    ]
    name = f"{len(wrong):,} of {len(task.data.parts['test']):,} wrong"
    rows = rows or [("nothing is wrong", "", "", "")]
    return pd.DataFrame(rows, columns=[name, "answer", "how sure", "right"]).set_index(name)


# --- attention --------------------------------------------------------------------------------


def entropy(weights: torch.Tensor) -> torch.Tensor:
    """In bits, of distributions along the last dimension: 0 is one place, log2(n) all of n."""
    return torch.special.entr(weights).sum(-1) / math.log(2)


def pattern(share: float) -> str:
    """Attention in a word, by its entropy as a share of the most possible: "focused" below a
    third, "distributed" above two thirds, else "mixed"."""
    return "focused" if share < FOCUSED else "distributed" if share > DISTRIBUTED else "mixed"


def attention(task: Task, model: torch.nn.Module, folder: Path, text: str) -> Picture:
    """What each token of a question attends to, for every head of every layer.

    Read a row from left to right: where the token that is named at its left takes from, in
    shares of 1. The first row is the operation's, where the answer is read; its entropy in bits
    and its pattern stand above.
    """
    tokens_BL, mask_BL = encode(question(text, task.data.max_value))
    words, count = [word(token) for token in tokens_BL[0].tolist()], tokens_BL.shape[1]
    with torch.no_grad():
        layers = [weights[0].numpy() for weights in model.attention(tokens_BL, mask_BL)]
    heads, figures = len(layers[0]), count <= 8
    figure = Figure(figsize=(WIDTH, 2.75 * len(layers)))
    grid = figure.subplots(len(layers), heads, squeeze=False)
    figure.subplots_adjust(
        0.05, 0.01, 0.99, 1 - 0.65 / figure.get_figheight(), wspace=0.3, hspace=0.4
    )
    lines = [f"Attention of {text}: each row adds up to 1 and says where its token takes from."]
    for layer, weights_HLL in enumerate(layers):
        for head, weights_LL in enumerate(weights_HLL):
            bits = float(entropy(torch.from_numpy(weights_LL[0])))
            most = math.log2(count)
            what = f"{pattern(bits / most)}, {bits:.2f} of {most:.2f} bits"
            axes = grid[layer][head]
            axes.imshow(weights_LL, cmap="Blues", vmin=0, vmax=1)
            axes.set_xticks(range(count), words, fontsize=8, rotation=0 if figures else 90)
            axes.set_yticks(range(count), words, fontsize=8)
            axes.tick_params(length=0, labelcolor=INK, labeltop=True, labelbottom=False)
            axes.spines[:].set_color(PALE)
            axes.set_title(
                f"layer {layer + 1}, head {head + 1}\n{what}", fontsize=8.5, color=INK, pad=4
            )
            if figures:
                for (row, column), weight in np.ndenumerate(weights_LL):
                    colour = "white" if weight > 0.55 else INK
                    label = _hundredths(weight)
                    axes.text(
                        column, row, label, ha="center", va="center", fontsize=7, color=colour
                    )
            lines += ["", f"layer {layer + 1}, head {head + 1}: {what}", _matrix(weights_LL, words)]
    alt = f"Attention of {len(layers)} layers with {heads} heads each in {text}"
    return picture(figure, folder / "attention.png", alt, "\n".join(lines))


def patterns(task: Task, model: torch.nn.Module, folder: Path) -> Picture:
    """How the operation's token attends, by head and operation: the pattern and its entropy.

    Means over test inputs (up to 200 of each operation), as a share of the most possible.
    """
    test, columns = task.data.parts["test"], []
    for k in range(len(OPERATIONS)):
        tokens_BL, mask_BL = encode(test[np.flatnonzero(test.operation_N == k)[:200]])
        most_B1 = mask_BL.sum(1).float().log2()[:, None]
        with torch.no_grad():
            layers = model.attention(tokens_BL, mask_BL)
        shares = [(entropy(weights_BHLL[:, :, 0]) / most_B1).mean(0) for weights_BHLL in layers]
        columns.append(torch.cat(shares))
    shares = torch.stack(columns, 1).tolist()  # heads by operations
    heads = len(shares) // len(layers)
    names = [f"layer {k // heads + 1}, head {k % heads + 1}" for k in range(len(shares))]
    figure = Figure(figsize=(WIDTH, 0.5 + 0.32 * len(shares)))
    axes = figure.subplots()
    figure.subplots_adjust(0.14, 0.02, 0.99, 1 - 0.35 / figure.get_figheight())
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.4, aspect="auto")
    axes.set_xticks(range(len(OPERATIONS)), OPERATIONS)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.tick_params(length=0, labelcolor=INK, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    lines = [" " * 16 + "".join(f"{name:<13}" for name in OPERATIONS)]
    for row, (name, values) in enumerate(zip(names, shares, strict=True)):
        for column, share in enumerate(values):
            words = f"{pattern(share)} {_hundredths(share)}"
            axes.text(column, row, words, ha="center", va="center", fontsize=9, color=INK)
        cells = (
            f"{_hundredths(v)} {pattern(v).replace('distributed', 'distrib.')}" for v in values
        )
        lines.append(f"{name:<16}" + "".join(f"{cell:<13}" for cell in cells))
    alt = "Entropy of the operation's attention, as a share of the most possible"
    text = "\n".join([alt, "(distrib. is short for distributed)", "", *lines])
    return picture(figure, folder / "patterns.png", alt, text)


# --- parts ------------------------------------------------------------------------------------


def _matrix(weights_LL: np.ndarray, words: list[str]) -> str:
    """In characters: a shade and the weight in hundredths, or the shade alone in a long list."""
    width = max(map(len, words))
    cell = 6 if len(words) <= 10 else 3
    head = " " * (width + 1) + "".join(f"{w[: cell - 1]:>{cell}}" for w in words)
    lines = [head]
    for name, row in zip(words, weights_LL, strict=True):
        shades = [SHADES[min(4, int(5 * weight))] for weight in row]
        cells = [
            f"  {shade}{_hundredths(weight)}"[:cell] if cell == 6 else f" {2 * shade}"
            for shade, weight in zip(shades, row, strict=True)
        ]
        lines.append(f"{name:>{width}} " + "".join(cells))
    return "\n".join(line.rstrip() for line in lines)


def _test(folder: Path) -> list[dict]:
    with suppress(OSError, ValueError):
        return read_json(folder / "eval_predictions.json")["test"]
    return []


def _judged(task: Task, folder: Path) -> tuple[Inputs, np.ndarray]:
    """The test inputs, and whether the predictions in `folder` are right."""
    test = task.data.parts["test"]
    given = [entry["answer"] for entry in _test(folder)] or [-1] * len(test)
    return test, np.array(given) == answers(test)


def _short(inputs: Inputs) -> Inputs:
    """`inputs` with the shortest lists first: those can be read at a glance."""
    return inputs[np.argsort(inputs.length_N, kind="stable")]


def _of_each(inputs: Inputs) -> Inputs:
    """The first input of each operation."""
    return inputs[[int(np.argmax(inputs.operation_N == k)) for k in range(len(OPERATIONS))]]


def _hundredths(share: float) -> str:
    return f"{share:.2f}".removeprefix("0")


def _ends(values: np.ndarray) -> tuple[int, int]:
    return int(values.min()), int(values.max())


def _percent(share: float) -> str:
    return "100%" if share == 1 else f"{share:.1%}"


def _height(rows: int) -> float:
    """Inches of a picture of so many bars, at least those of one for each operation."""
    return 0.6 + BAR * max(rows, len(OPERATIONS))


def _panels(height: float, columns: int, above: float = 0.5) -> tuple[Figure, list]:
    """Panels for bars, side by side; `height` and the room `above` them in inches."""
    figure, grid = panels(height, columns, WIDTH if columns > 1 else 0.6 * WIDTH)
    left, room = {1: (0.13, 0), 2: (0.08, 0.25)}.get(columns, (0.035, 0.3))
    figure.subplots_adjust(left=left, right=0.99, bottom=0.03, top=1 - above / height, wspace=room)
    return figure, grid


def _bars(axes, rows: dict[str, float], shown, most: float = 0.0, right: str = "") -> None:
    """Horizontal bars, the first on top; the row called `right` stands out."""
    names, values = list(rows), list(rows.values())
    most = most or max(values, default=1.0)
    colours = [GREEN if name == right else BLUE for name in names]
    places = range(len(names))
    axes.barh(places, values, color=colours, height=0.7)
    axes.barh(places, [most - v for v in values], left=values, color=PALE, height=0.7, alpha=0.5)
    for place, value in zip(places, values, strict=True):
        axes.text(most * 1.02, place, shown(value), va="center", fontsize=8.5, color=INK)
    # Bars are equally high in all panels, and the first one is on top.
    room = axes.get_position().height * axes.figure.get_figheight() / BAR
    axes.set(xlim=(0, most * 1.28), ylim=(max(room, len(names)) - 0.5, -0.5))
    axes.set_yticks(list(places), names, fontsize=9, color=INK)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
