"""What a long step, its digits, the learning of its classes and a model's errors look like.

Pictures have a form in plain characters, for a terminal. What is shown of a run comes from the
files in its folder.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure

from timebox import text
from timebox.files import read_json
from timebox.picture import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    PURPLE,
    RED,
    SKY,
    WIDTH,
    YELLOW,
    Picture,
    metrics,
    panels,
    picture,
    plain,
    title,
)
from timebox.task import Task
from timebox.tasks.collatz import score
from timebox.tasks.collatz.data import CollatzData, eos, long_step, pad

PLACES = (SKY, ORANGE, GREEN, YELLOW, PURPLE, BLUE, RED)  # units, base, base^2, ...
SHADES = LinearSegmentedColormap.from_list("right", ["#FFFFFF", BLUE])
BLOCKS = " ░▒▓█"
EXAMPLES = (27, 95)  # k = 2, k' = 1; and k = 5, k' = 3
STEPS = 60  # evaluations shown in characters


# --- the task ---------------------------------------------------------------------------------


def orbit(n: int) -> list[int]:
    """n, the numbers after each up-step (3n + 1) / 2 and each halving, to the long step's end."""
    _, k, k_prime = (int(v[0]) for v in long_step(np.array([n])))
    numbers = [n]
    for step in range(k + k_prime):
        last = numbers[-1]
        numbers.append((3 * last + 1) // 2 if step < k else last // 2)
    return numbers


def steps(folder: Path, numbers: tuple[int, ...] = EXAMPLES) -> Picture:
    """The long steps of some numbers, up and down, on a logarithmic scale."""
    figure, grid = panels(3.2, len(numbers))
    lines = []
    for axes, n in zip(grid, numbers, strict=True):
        values = orbit(n)
        k = int(long_step(np.array([n]))[1][0])
        name = f"{n} → {values[-1]}: k = {k} up, k' = {len(values) - 1 - k} down"
        axes.plot(range(k + 1), values[: k + 1], "-o", color=BLUE, linewidth=2)
        axes.plot(range(k, len(values)), values[k:], "-o", color=ORANGE, linewidth=2)
        for place, value in enumerate(values):
            axes.annotate(
                f"{value}", (place, value), (0, 9), color=INK, fontsize=9, ha="center",
                textcoords="offset points",
            )  # fmt: skip
        axes.set_yscale("log", base=2)
        axes.set(xlabel="short steps", ylim=(min(values) / 1.3, max(values) * 1.5))
        axes.set_xlim(-0.4, len(values) - 0.6)
        axes.set_xticks(range(len(values)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        title(axes, name)
        arrows = ["", *["↑"] * k, *["↓"] * (len(values) - 1 - k)]
        chain = " ".join(arrow + str(value) for arrow, value in zip(arrows, values, strict=True))
        lines += [f"{name}", f"  {chain}"]
    grid[0].plot([], [], color=BLUE, label="odd: (3n + 1) / 2")
    grid[0].plot([], [], color=ORANGE, label="even: n / 2")
    grid[0].legend(frameon=False, loc="lower center", fontsize=9)
    lines.append("↑ odd: (3n + 1) / 2    ↓ even: n / 2")
    alt = "The long Collatz steps of " + " and ".join(map(str, numbers))
    return picture(figure, folder / "steps.png", alt, "\n".join(lines))


def digits(task: Task, folder: Path, count: int = 6) -> Picture:
    """What the model is given and what it shall write: the tokens of a few numbers and results.

    Digits of the same place have the same colour; grey is padding, a bar the end of an answer.
    """
    data: CollatzData = task.data
    if data.input_length > 20:  # a digit more is a text more to be drawn
        count = min(count, 4)
    numbers = np.concatenate([[n for n in EXAMPLES if data.least <= n <= data.most], data.test])
    numbers = numbers.astype(np.int64)[:count]
    results = long_step(numbers)[0]
    given, written = data.inputs(numbers), data.answers(results)
    written = written[:, : int((written != pad(data.base)).sum(1).max())]
    between = np.full((len(numbers), 2), pad(data.base))
    tokens = np.concatenate([given, between, written], 1)
    columns, middle = tokens.shape[1], given.shape[1]
    colours = np.concatenate(
        [_colours(given, data), np.ones((len(numbers), 2, 3)), _colours(written, data)], 1
    )
    figure, (axes,) = panels(max(1.2, 0.5 + 0.31 * len(numbers)))
    figure.subplots_adjust(bottom=0.02)
    axes.imshow(colours, aspect="auto", interpolation="nearest")
    for edge in range(columns + 1):
        axes.axvline(edge - 0.5, color="white", linewidth=1)
    for edge in range(len(numbers)):
        axes.axhline(edge - 0.5, color="white", linewidth=3)
    size = max(4.0, min(9.0, 400 / columns / max(2, len(str(data.base - 1)))))
    centred = {"ha": "center", "va": "center"}
    lines, space = [], " " if data.base > 10 else ""
    for row, (n, result) in enumerate(zip(numbers.tolist(), results.tolist(), strict=True)):
        for column in np.flatnonzero(tokens[row] != pad(data.base)):
            word = _word(int(tokens[row, column]), data.base).strip()
            axes.text(column, row, word, fontsize=size, color=INK, **centred)
        axes.text(middle + 0.5, row, "→", color=GREY, **centred)
        axes.text(-0.5 - 0.01 * columns, row, f"{n:,}", ha="right", va="center", fontsize=9)
        axes.text(columns - 0.2, row, f"{result:,}", va="center", fontsize=9)
        written_out = (
            space.join(_word(token, data.base) for token in part[row].tolist())
            for part in (given, written)
        )
        lines.append(f"{n:>15,}  {'  →  '.join(written_out)}  {result:,}")
    axes.set(xlim=(-0.15 * columns, columns * 1.15), ylim=(len(numbers) - 0.4, -0.6))
    axes.set_axis_off()
    first = "most" if data.order == "most" else "least"
    words = f"Digits in base {data.base}, {first} significant first"
    title(axes, words)
    signs = "· padding    | end of the answer"
    return picture(figure, folder / "digits.png", words, "\n".join([words, *lines, signs]))


def _word(token: int, base: int) -> str:
    wide = len(str(base - 1))
    return {pad(base): "·", eos(base): "|"}.get(token, str(token)).rjust(wide)


def _colours(tokens: np.ndarray, data: CollatzData) -> np.ndarray:
    """The colour of each token (N, L, 3): by its place in the number, grey without one."""
    is_digit = tokens < data.base
    ahead = np.cumsum(is_digit, 1) - 1
    power = ahead if data.order == "least" else is_digit.sum(1, keepdims=True) - 1 - ahead
    palette = 0.45 * np.array([to_rgb(c) for c in PLACES]) + 0.55  # pale: digits are read on it
    shown = palette[power % len(PLACES)]
    return np.where(is_digit[..., None], shown, to_rgb("#F2F2F2"))


def sets(task: Task) -> pd.DataFrame:
    """How many numbers there are to train on and to be judged by."""
    data: CollatzData = task.data
    held = len(data.validation), len(data.test)
    trained = len(data.training) if data.finite else data.count
    rows = {
        "training": (f"{trained:,}" if data.finite else f"about {trained * 62 // 64:,}"),
        "validation": f"{held[0]:,}",
        "test": f"{held[1]:,}",
    }
    return pd.DataFrame({"different numbers": rows}).rename_axis("part")


# --- a run ------------------------------------------------------------------------------------


def read(folder: Path) -> score.Judged:
    """The verdict on a run's test answers; of no number where it has left none."""
    entries: list = []
    with suppress(OSError, ValueError):
        entries = read_json(folder / "eval_predictions.json")
    n, answer = (np.array([e[name] for e in entries], np.int64) for name in ("n", "answer"))
    return score.judge(n, answer)


def levels(folder: Path) -> Picture:
    """Accuracy on the test numbers by k + k', and how many of the numbers each level has."""
    judged = read(folder)
    accuracy = score.by_level(judged)
    level = np.minimum(judged.level, score.TOP_LEVEL)
    share = {score.level_name(s): float((level == s).mean()) for s in np.unique(level)}
    figure, (left, right) = panels(2.9, 2)
    for axes, values, colour, words in (
        (left, accuracy, BLUE, "Right answers by k + k'"),
        (right, share, GREY, "Share of the numbers with this k + k'"),
    ):
        bars = axes.bar(list(values), list(values.values()), color=colour)
        axes.bar_label(bars, [f"{100 * v:.3g}" for v in values.values()], fontsize=8, color=INK)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
        axes.set_xlabel("k + k'")
        title(axes, words)
    left.set_ylim(0, 1.1)
    rows = {f"{s:>3} ({share[s]:6.2%} of all)": value for s, value in accuracy.items()}
    words = "Right answers by k + k'\n" + text.bars(rows, most=1.0)
    return picture(figure, folder / "levels.png", "Accuracy by k + k'", words)


def learning(folder: Path) -> Picture:
    """Accuracy of each class of numbers at each evaluation of a run, easiest classes above.

    A class has the same last binary digits; the steps of the ladder are the accuracies of whoever
    has learned every class up to k + k' = s and nothing else.
    """
    seen = evaluations(folder)
    figure = Figure(figsize=(WIDTH, 5.6))
    top, map_ = figure.subplots(
        2, 1, sharex=True, gridspec_kw={
            "left": 0.09, "right": 0.93, "top": 0.94, "bottom": 0.09, "hspace": 0.22,
            "height_ratios": (1, 1.45),
        },
    )  # fmt: skip
    plain(top), plain(map_)
    alt = "Accuracy by class and minute"
    if not seen:
        for axes in (top, map_):
            axes.set_axis_off()
        top.text(0.5, 0.5, "No evaluation was made", ha="center", color=GREY)
        return picture(figure, folder / "learning.png", alt, "No evaluation was made.")
    minutes = np.array([line["at"] for line in seen])
    exact = [line["exact"] for line in seen]
    for s in range(2, 7):  # those after it lie too close to each other
        top.axhline(score.ladder(s), color=PALE, linewidth=1, zorder=0)
        top.annotate(
            f"k + k' ≤ {s}", (1, score.ladder(s)), (4, -3), fontsize=8, color=GREY,
            xycoords=("axes fraction", "data"), textcoords="offset points", annotation_clip=False,
        )  # fmt: skip
    top.plot(minutes, exact, "-o", color=ORANGE, markersize=3)
    top.set_ylim(-0.02, 1.03)
    top.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    title(top, "Right answers on validation, and the steps of the ladder")

    bits = max(len(name) for line in seen for name in line["by_class"])
    names = [f"{r:0{bits}b}" for r in score.classes(bits)]
    grid = np.array([[line["by_class"].get(name, np.nan) for line in seen] for name in names])
    edges = _edges(minutes)
    drawn = map_.pcolormesh(edges, np.arange(len(names) + 1), grid, cmap=SHADES, vmin=0, vmax=1)
    map_.set_ylim(len(names), 0)
    level = score.class_level(np.array(score.classes(bits)), bits)
    for place in np.flatnonzero(np.diff(level)) + 1:
        map_.axhline(place, color=INK, linewidth=0.6)
    if len(names) <= 32:
        map_.set_yticks(np.arange(len(names)) + 0.5, [f"…{n}" for n in names], fontsize=7)
    for s in np.unique(level):
        middle = (np.flatnonzero(level == s).mean() + 0.5) / len(names)
        map_.text(
            1.01, 1 - middle, f"{s}" if s < bits else f"{s} or more", fontsize=8, color=GREY,
            transform=map_.transAxes, va="center",
        )  # fmt: skip
    map_.set(xlabel="minutes of the run", xlim=(edges[0], edges[-1]))
    title(map_, f"Right answers by the last {bits} binary digits of n (right: k + k')")
    figure.colorbar(
        drawn, cax=map_.inset_axes([0.8, 1.03, 0.2, 0.04]), orientation="horizontal", ticks=[]
    )
    map_.text(
        0.79,
        1.05,
        "0 to 100%",
        fontsize=8,
        color=GREY,
        ha="right",
        va="center",
        transform=map_.transAxes,
    )
    return picture(figure, folder / "learning.png", alt, _learning_text(names, level, grid, seen))


def _learning_text(names: list[str], level: np.ndarray, grid: np.ndarray, seen: list) -> str:
    shown = np.unique(np.linspace(0, len(seen) - 1, min(STEPS, len(seen))).round().astype(int))
    lines = ["Right answers by the last binary digits of n, one column an evaluation"]
    for name, s, row in zip(names, level, grid, strict=True):
        shades = [" " if v != v else BLOCKS[min(4, int(v * 5))] for v in row[shown]]
        last = "" if row[-1] != row[-1] else f"{row[-1]:7.1%}"
        sum_ = f"{s}+" if s == len(name) else f"{s} "
        lines.append(f"k + k' {sum_:>3} …{name} │{''.join(shades)}│{last}")
    begin, end = (seen[i]["at"] for i in (0, -1))
    lines.append(f"minutes {begin:.1f} to {end:.1f}; ' ' under 20%, ░ 40%, ▒ 60%, ▓ 80%, █ above")
    return "\n".join(lines)


def evaluations(folder: Path) -> list[dict]:
    """The evaluations of a run, with "at" as in `metrics`."""
    lines = metrics(folder)
    return [line for line in lines if line.get("kind") == "evaluation" and line.get("by_class")]


def errors(folder: Path) -> pd.DataFrame:
    """The wrong test answers by what is wrong with them: how many, and one of each.

    "taken for" are the loop lengths that would have given the answer.
    """
    judged = read(folder)
    wrong = max(1, int((~judged.right).sum()))
    rows = {}
    for place, (name, what) in enumerate(score.KINDS.items()):
        which = np.flatnonzero(judged.kind == place)
        if name == score.RIGHT or not len(which):
            continue
        # A typical one: of the lowest k + k' among them.
        i = which[np.argmin(judged.level[which])]
        told = judged.implied_k[i] != score.NONE
        rows[what] = {
            "answers": f"{len(which):,}",
            "share": f"{len(which) / wrong:.1%}",
            "n": f"{judged.n[i]}",
            "k, k'": f"{judged.k[i]}, {judged.k_prime[i]}",
            "truth": f"{judged.truth[i]}",
            "answer": f"{judged.answer[i]}" if judged.answer[i] else "",
            "ratio": f"{judged.answer[i] / judged.truth[i]:.4g}" if judged.answer[i] else "",
            "taken for": f"{judged.implied_k[i]}, {judged.implied_k_prime[i]}" if told else "",
        }
    if not rows:
        return pd.DataFrame({"answers": ["no wrong answer"]}, index=["errors"])
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("what is wrong")


def lengths(folder: Path) -> pd.DataFrame:
    """How the loop lengths that the test answers imply compare with the numbers' own.

    Of the answers that imply any: right, too few, too many, and the mean absolute difference.
    """
    judged = read(folder)
    told = judged.implied_k != score.NONE
    rows = {}
    for name, true, implied in (
        ("k, ups", judged.k, judged.implied_k),
        ("k', halvings", judged.k_prime, judged.implied_k_prime),
    ):
        off = (implied - true)[told]
        shares = {"right": off == 0, "too few": off < 0, "too many": off > 0}
        rows[name] = {
            **{what: f"{which.mean():.2%}" for what, which in shares.items() if len(off)},
            "mean difference": f"{np.abs(off).mean():.3f}" if len(off) else "",
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.rename_axis(f"{told.sum():,} of {len(told):,} answers tell")


def loops(folder: Path, most: int = 6) -> pd.DataFrame:
    """Accuracy on the test numbers by k (rows) and k' (columns), and how many there are."""
    counts, right = score.table_by_k(read(folder), most)
    names = [str(i) for i in range(1, most)] + [f"{most}+"]
    cells = [
        [f"{r / c:.0%} of {c:,}" if c else "" for r, c in zip(*row, strict=True)]
        for row in zip(right, counts, strict=True)
    ]
    table = pd.DataFrame(cells, [f"k = {n}" for n in names], [f"k' = {n}" for n in names])
    return table


def rungs(folder: Path) -> pd.DataFrame:
    """The ladder: each level k + k', what it would score to know all up to it, what was scored."""
    judged = read(folder)
    reached, accuracy = score.rung(judged), score.by_level(judged)
    rows = {
        f"k + k' = {s}": {
            "all up to here": f"{score.ladder(s):.2%}",
            "share of these numbers": f"{float((judged.level <= s).mean()):.2%}",
            "accuracy here": f"{accuracy[str(s)]:.1%}" if str(s) in accuracy else "",
            "learned": "yes" if s <= reached else "",
        }
        for s in range(2, score.TOP_LEVEL)
        if len(judged.n)
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("level")


# --- parts ------------------------------------------------------------------------------------


def _edges(centres: np.ndarray) -> np.ndarray:
    """Where cells around increasing `centres` begin and end."""
    if len(centres) == 1:
        return np.array([0.0, max(2 * centres[0], 1e-3)])
    middle = (centres[1:] + centres[:-1]) / 2
    ends = 2 * centres[0] - middle[0], 2 * centres[-1] - middle[-1]
    return np.concatenate([[max(0.0, ends[0])], middle, [ends[1]]])
