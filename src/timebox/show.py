"""Pictures and tables that every task shares: a notebook shows them, the run's folder keeps them.

A picture is drawn once, for the screen and for the file, and without pyplot: in a short run the
seconds after training are counted too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from timebox import optim
from timebox.clock import Costs
from timebox.picture import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    PURPLE,
    RED,
    Picture,
    metrics,
    panels,
    picture,
    title,
)
from timebox.plan import Plan, Position
from timebox.record import PHASES, read
from timebox.session import Session
from timebox.text import bars, plot

WHAT = {
    "submission.json": "the submission",
    "eval_predictions.json": "the evaluation answers and their verdicts",
    "run.json": "status, scores, settings, seconds, history",
    "metrics.jsonl": "what was measured while it trained",
    "notebook.ipynb": "this notebook, executed",
    "last.pt": "where training continues",
    "previous.pt": "the one before, in case of damage",
    "best.pt": "the best weights by validation",
}


def parts(model: torch.nn.Module) -> pd.DataFrame:
    """Parameters by part of `model`: their number and its share of all."""
    counts = {name: _count(child) for name, child in model.named_children()}
    counts["other"] = _count(model) - sum(counts.values())
    counts = {name: count for name, count in counts.items() if count}
    total = max(1, _count(model))
    rows = [(f"{count:,}", f"{count / total:.1%}") for count in [*counts.values(), total]]
    return pd.DataFrame(rows, [*counts, "all"], ["parameters", "share"]).rename_axis("part")


def schedule(session: Session) -> Picture:
    """The learning rate that is planned for this session, against its minutes."""
    settings, clock = session.settings, session.clock
    plan = Plan(settings, clock, Costs(), session.task.data.steps, session.tail)
    position = Position(**session.state["position"]) if session.state else Position()
    begin, deadline = clock.elapsed(), clock.seconds
    end = max(begin, deadline - plan.reserve(position))
    share = (end - begin) / max(end - begin + plan.later(position), 1e-9)
    last = position.progress + (1 - position.progress) * share

    figure, (axes,) = panels(2.6)
    seconds = np.linspace(begin, end, 400)
    progress = np.linspace(position.progress, last, 400)
    rate = [optim.rate(p, settings.warmup, settings.cooldown) for p in progress]
    unit, name = (60, "minutes") if deadline < 7200 else (3600, "hours")
    axes.plot(seconds / unit, rate, color=BLUE, linewidth=2)
    axes.fill_between(seconds / unit, rate, color=BLUE, alpha=0.12, linewidth=0)
    for left, right, text in ((0, begin, "start"), (end, deadline, "last score, export")):
        axes.axvspan(left / unit, right / unit, color=PALE, linewidth=0)
        if right - left > 0.13 * deadline:
            axes.text((left + right) / 2 / unit, 0.5, text, ha="center", color=GREY)
    axes.axvline(deadline / unit, color=RED, linewidth=2)
    axes.text(deadline / unit, 1.04, "deadline", color=RED, ha="right", va="bottom")
    axes.set(xlim=(0, deadline / unit * 1.002), ylim=(0, 1.02), xlabel=f"{name} of this session")
    axes.set_yticks([0, 0.5, 1], ["0", "half", "peak"])
    limits = {"epochs": settings.epochs, "steps": settings.max_steps}
    most = " and ".join(f"{count:,} {name}" for name, count in limits.items() if count)
    text = f"trains from {_time(begin)} to {_time(end)} of {_time(deadline)}"
    text += f", at most {most}" if most else ""
    title(axes, "Learning rate: " + text)
    points = [(0.0, 0.0), *zip(seconds / unit, rate, strict=True), (deadline / unit, 0.0)]
    alt = f"Learning rate, {text}"
    drawn = plot({"share of the peak rate": points}, f"{name} of this session", height=6)
    return picture(figure, session.folder / "schedule.png", alt, f"{alt}\n{drawn}")


def curves(run: Session | Path, floor: float | None = None) -> Picture:
    """Loss and validation score against the minutes, over all sessions of the run.

    `run`: a session, or the folder of any run, finished or not: its files are enough. `floor`:
    the validation score of the floor submission, as a dotted line.
    """
    folder, record = _files(run)
    metric, better = str(record["metric"]), record["better"]
    lines = list(metrics(folder))
    figure, (left, right) = panels(3.3, columns=2)
    sessions = [line["from"] for line in lines if line["from"] > 0]
    last = max((line["at"] for line in lines), default=1.0)
    unit, name = (1, "minutes") if last < 120 else (60, "hours")
    across = name + " of the run"

    kinds = {line["kind"] for line in lines}
    kind = "train" if "train" in kinds else "epoch"  # a short run may have no line of progress
    losses = {
        "training": _points(lines, kind, "loss", unit),
        "validation": _points(lines, "evaluation", "loss", unit),
    }
    if metric == "loss" or not losses["validation"]:
        del losses["validation"]
    _line(left, losses["training"], BLUE, "No training step was reported")
    if "validation" in losses:
        _line(left, losses["validation"], PURPLE, "")
        left.legend([*losses], frameon=False, labelcolor=INK)
    words = "Training and validation loss" if "validation" in losses else "Training loss"
    title(left, words)

    scored = _points(lines, "evaluation", metric, unit)
    _line(right, scored, ORANGE, "No evaluation was made")
    values = [score for _, score in scored] + ([floor] if floor is not None else [])
    percent = bool(values) and all(0 <= value <= 1 for value in values)
    if percent:
        right.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    if floor is not None:
        right.axhline(floor, color=INK, linestyle=":", linewidth=1.5)
        right.annotate(
            f"floor {_number(floor, percent)}", (1, floor), (-4, 3), color=INK, ha="right",
            xycoords=("axes fraction", "data"), textcoords="offset points",
        )  # fmt: skip
    marks = {}
    if scored:
        best = _best(lines, scored, unit, better, metric)
        marks[f"best {_number(best[1], percent)}"] = best
        right.plot(*best, "o", markersize=11, markerfacecolor="none", color=RED, markeredgewidth=2)
        early = best[0] < 0.4 * last / unit  # its label stays inside the picture
        right.annotate(
            *marks, best, (9 if early else -9, 7 * better),
            textcoords="offset points", ha="left" if early else "right",
            va="bottom" if better > 0 else "top", color=RED,
        )  # fmt: skip
        low, high = min(values), max(values)
        room = 0.15 * (high - low or abs(high) or 1)
        right.set_ylim(low - room, high + room)
    judged = f"Validation: {_words(metric)}" + (" (lower is better)" if better < 0 else "")
    title(right, judged)
    for axes in (left, right):
        axes.set(xlim=(0, 1.02 * last / unit), xlabel=across)
        for begin in sessions:
            axes.axvline(begin / unit, color=PALE, linewidth=1.5, zorder=0)
    alt = f"{words} and validation {_words(metric)} against {name}"
    level = None if floor is None else (f"floor {_number(floor, percent)}", floor)
    drawn = f"{words}\n{plot(losses, across, begin=0)}\n\n{judged}\n" + plot(
        {"": scored}, across, marks, level, lambda v: _number(float(v), percent), begin=0
    )
    return picture(figure, folder / "curves.png", alt, drawn)


def minutes(run: Session | Path) -> Picture:
    """Where the time of the latest session went: one bar from its start to its deadline.

    `run`: as in `curves`.
    """
    folder, record = _files(run)
    spent, budget = record["seconds"], record["budget_seconds"]
    colours = dict(zip(PHASES, (GREY, BLUE, ORANGE, GREEN, PURPLE), strict=True))
    figure, (axes,) = panels(1.45)
    begin, shares = 0.0, {}
    for phase in PHASES:
        seconds = spent.get(phase, 0.0)
        label = f"{phase} {_time(seconds)} ({seconds / budget:.1%})"
        axes.barh(0, seconds, left=begin, color=colours[phase], height=0.8, label=label)
        begin += seconds
        shares[f"{phase} {_time(seconds)}"] = seconds / budget
    rest = max(0.0, budget - begin)
    label = f"left {_time(rest)} ({rest / budget:.1%})"
    shares[f"left {_time(rest)}"] = rest / budget
    axes.barh(0, rest, left=begin, color="white", edgecolor=PALE, height=0.8, label=label)
    axes.set(xlim=(0, max(budget, begin)), ylim=(-0.5, 0.5))
    axes.set_yticks([])
    axes.set_xticks([])
    for side in ("bottom", "left"):
        axes.spines[side].set_visible(False)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, 0), ncols=6, frameon=False, fontsize=8.5,
        handlelength=1, handletextpad=0.4, columnspacing=1.2,
    )  # fmt: skip
    text = f"{_time(spent.get('train', 0.0))} of {_time(budget)} went into training steps"
    title(axes, text[0].upper() + text[1:])
    drawn = f"{text[0].upper()}{text[1:]}\n{bars(shares, most=1)}"
    return picture(figure, folder / "minutes.png", text, drawn)


def results(session: Session) -> pd.DataFrame:
    """The scores of this run on the evaluation set beside those of the trivial baselines."""
    record = session.record.data
    scores = record["scores"].get("evaluation") or {}
    if not scores:
        return pd.DataFrame({"this run": ["nothing was scored"]}, index=[record["status"]])
    # Where no weights beat the floor on validation it is the floor that was submitted.
    own = "this run (the floor)" if record["submission"].get("floor") else "this run"
    rows = {own: scores, **record["baselines"].get("evaluation", {})}
    shown = {n: {k: v for k, v in row.items() if isinstance(v, float)} for n, row in rows.items()}
    items = f"{scores.get('items', 0):,} of {scores.get('items_total', 0):,} items"
    return table(shown).T.rename_axis(items)


def table(rows: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Scores by name and row as text; a column whose numbers are shares of one, in percent.

    Scores by class, which are dicts, and what is no number are left out.
    """
    rows = {
        name: {n: v for n, v in row.items() if isinstance(v, (int, float)) and n != "tie_break"}
        for name, row in rows.items()
    }
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows.values()]
        shares = [v for v in values if isinstance(v, float)]
        percent = bool(shares) and all(0 <= v <= 1 for v in shares)
        columns[_words(name)] = ["" if v is None else _number(v, percent) for v in values]
    return pd.DataFrame(columns, index=list(rows))


def kept(session: Session) -> pd.DataFrame:
    """The files that this run leaves behind: size, and what each is for."""
    rows = []
    for folder in (session.folder, session.checkpoints):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if (
                path.is_file()
                and path.name[0] != "."
                and path.name not in ("stop", "manifest.json")
            ):
                picture = "a picture of this notebook" if path.suffix == ".png" else ""
                weights = {"top": "among the best weights", "epoch": "the end of this epoch"}
                other = weights.get(path.name.partition("-")[0], "")
                what = WHAT.get(path.name, picture or other)
                name = f"{folder.parent.name}/{folder.name}/{path.name}"
                rows.append((name, _size(path.stat().st_size), what))
    return pd.DataFrame(rows, columns=["file", "size", "what it is"]).set_index("file")


# ----------------------------------------------------------------------------------------- parts


def _line(axes, points: list[tuple[float, float]], colour: str, without: str) -> None:
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    if not points:
        axes.text(0.5, 0.5, without, transform=axes.transAxes, ha="center", color=GREY)
        axes.set_yticks([])
        return
    marker = "o" if len(points) < 40 else ""
    axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.8, marker=marker, markersize=4)


def _files(run: Session | Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a run, and what its run.json says or is going to say."""
    if not isinstance(run, Path):
        return run.folder, run.record.data
    if (found := read(run)) is None:
        raise ValueError(f"{run} holds no run.json of a run")
    return run, found


def _points(
    lines: list[dict[str, Any]], kind: str, name: str, unit: float
) -> list[tuple[float, float]]:
    """The numbers called `name` in the lines of a kind, each with its time in units of minutes."""
    return [
        (line["at"] / unit, float(line[name]))
        for line in lines
        if line["kind"] == kind and isinstance(line.get(name), (int, float))
    ]


def _best(lines, scored, unit: float, better: int, metric: str) -> tuple[float, float]:
    """The evaluation whose weights were kept; in files that do not say it, the best score."""
    best = [line for line in lines if line.get("best") is True]
    kept = _points(best, "evaluation", metric, unit)
    return kept[-1] if kept else max(scored, key=lambda point: better * point[1])


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(value: Any, percent: bool) -> str:
    if isinstance(value, float):
        return f"{100 * value:.2f}%" if percent else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(count: int) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
