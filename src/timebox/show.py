"""Pictures and tables that every task shares: a notebook shows them, the run's folder keeps them.

A picture is drawn once, for the screen and for the file, and without pyplot: in a short run the
seconds after training are counted too.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from IPython.display import Image
from matplotlib.figure import Figure

from timebox import files, optim
from timebox.clock import Costs
from timebox.plan import Plan, Position
from timebox.record import PHASES
from timebox.session import Session

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED, PURPLE, YELLOW = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#F0E442"
)  # fmt: skip
INK, GREY, PALE = "#333333", "#8A8A8A", "#E6E6E6"
WIDTH = 10.0  # inches of a picture, all text is sized for it
SHOWN, KEPT = 90, 180  # pixels per inch on the screen and in the file

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


def picture(figure: Figure, path: Path, alt: str) -> Image:
    """`figure` saved as the PNG `path` and ready to be shown; a full disk only costs the file."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=KEPT, facecolor="white")
    with suppress(OSError):
        files.write_whole(path, lambda beside: beside.write_bytes(drawn.getvalue()))
    width = round(figure.get_figwidth() * SHOWN)
    # As metadata, because an older IPython has no argument for it.
    return Image(drawn.getvalue(), format="png", width=width, metadata={"alt": alt})


def parts(model: torch.nn.Module) -> pd.DataFrame:
    """Parameters by part of `model`: their number and its share of all."""
    counts = {name: _count(child) for name, child in model.named_children()}
    counts["other"] = _count(model) - sum(counts.values())
    counts = {name: count for name, count in counts.items() if count}
    total = max(1, _count(model))
    rows = [(f"{count:,}", f"{count / total:.1%}") for count in [*counts.values(), total]]
    return pd.DataFrame(rows, [*counts, "all"], ["parameters", "share"]).rename_axis("part")


def schedule(session: Session) -> Image:
    """The learning rate that is planned for this session, against its minutes."""
    settings, clock = session.settings, session.clock
    plan = Plan(settings, clock, Costs(), session.task.data.steps, session.tail)
    position = Position(**session.state["position"]) if session.state else Position()
    begin, deadline = clock.elapsed(), clock.seconds
    end = max(begin, deadline - plan.reserve(position))
    share = (end - begin) / max(end - begin + plan.later(position), 1e-9)
    last = position.progress + (1 - position.progress) * share

    figure, (axes,) = _figure(2.6)
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
    text = f"trains from {_time(begin)} to {_time(end)} of {_time(deadline)}"
    _title(axes, "Learning rate: " + text)
    return picture(figure, session.folder / "schedule.png", f"Learning rate, {text}")


def curves(session: Session, floor: float | None = None) -> Image:
    """Loss and validation score against the minutes, over all sessions of the run.

    `floor`: the validation score of the floor submission, as a dotted line.
    """
    record, better = session.record.data, session.task.better
    lines = list(_metrics(session.folder))
    figure, (left, right) = _figure(3.3, columns=2)
    sessions = [line["from"] for line in lines if line["from"] > 0]
    last = max((line["at"] for line in lines), default=1.0)
    unit, name = (1, "minutes") if last < 120 else (60, "hours")

    kinds = {line["kind"] for line in lines}
    kind = "train" if "train" in kinds else "epoch"  # a short run may have no line of progress
    trained = [(line["at"] / unit, line["loss"]) for line in lines if line["kind"] == kind]
    _line(left, [p for p in trained if p[1] is not None], BLUE, "No training step was reported")
    _title(left, "Training loss")

    metric = str(record.get("metric") or session.task.metric)
    scored = [
        (line["at"] / unit, line[metric])
        for line in lines
        if line["kind"] == "evaluation" and line.get(metric) is not None
    ]
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
    if scored:
        best = max(scored, key=lambda point: better * point[1])
        right.plot(*best, "o", markersize=11, markerfacecolor="none", color=RED, markeredgewidth=2)
        early = best[0] < 0.4 * last / unit  # its label stays inside the picture
        right.annotate(
            f"best {_number(best[1], percent)}", best, (9 if early else -9, 7 * better),
            textcoords="offset points", ha="left" if early else "right",
            va="bottom" if better > 0 else "top", color=RED,
        )  # fmt: skip
        low, high = min(values), max(values)
        room = 0.15 * (high - low or abs(high) or 1)
        right.set_ylim(low - room, high + room)
    _title(right, f"Validation: {_words(metric)}" + (" (lower is better)" if better < 0 else ""))
    for axes in (left, right):
        axes.set(xlim=(0, 1.02 * last / unit), xlabel=name + " of the run")
        for begin in sessions:
            axes.axvline(begin / unit, color=PALE, linewidth=1.5, zorder=0)
    alt = f"Training loss and validation {_words(metric)} against {name}"
    return picture(figure, session.folder / "curves.png", alt)


def minutes(session: Session) -> Image:
    """Where the time went: one bar from the session's start to its deadline."""
    record = session.record.data
    spent, budget = record["seconds"], record["budget_seconds"]
    colours = dict(zip(PHASES, (GREY, BLUE, ORANGE, GREEN, PURPLE), strict=True))
    figure, (axes,) = _figure(1.45)
    begin = 0.0
    for phase in PHASES:
        seconds = spent.get(phase, 0.0)
        label = f"{phase} {_time(seconds)} ({seconds / budget:.1%})"
        axes.barh(0, seconds, left=begin, color=colours[phase], height=0.8, label=label)
        begin += seconds
    rest = max(0.0, budget - begin)
    label = f"left {_time(rest)} ({rest / budget:.1%})"
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
    _title(axes, text[0].upper() + text[1:])
    return picture(figure, session.folder / "minutes.png", text)


def results(session: Session) -> pd.DataFrame:
    """The scores of this run on the evaluation set beside those of the trivial baselines."""
    record = session.record.data
    scores = record["scores"].get("evaluation") or {}
    if not scores:
        return pd.DataFrame({"this run": ["nothing was scored"]}, index=[record["status"]])
    rows = {"this run": scores, **record["baselines"].get("evaluation", {})}
    shown = {n: {k: v for k, v in row.items() if isinstance(v, float)} for n, row in rows.items()}
    items = f"{scores.get('items', 0):,} of {scores.get('items_total', 0):,} items"
    return table(shown).T.rename_axis(items)


def table(rows: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Scores by name and row as text; a column whose numbers are shares of one, in percent."""
    names = list(dict.fromkeys(n for row in rows.values() for n in row if n != "tie_break"))
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
                top = "among the best weights" if path.name.startswith("top-") else ""
                what = WHAT.get(path.name, picture or top)
                name = f"{folder.parent.name}/{folder.name}/{path.name}"
                rows.append((name, _size(path.stat().st_size), what))
    return pd.DataFrame(rows, columns=["file", "size", "what it is"]).set_index("file")


# ----------------------------------------------------------------------------------------- parts


def _figure(height: float, columns: int = 1) -> tuple[Figure, list]:
    figure = Figure(figsize=(WIDTH, height))
    margin = {"left": 0.075, "right": 0.985, "top": 1 - 0.42 / height, "bottom": 0.55 / height}
    grid = figure.subplots(1, columns, squeeze=False, gridspec_kw={**margin, "wspace": 0.2})
    for axes in grid[0]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        axes.tick_params(color=GREY, labelcolor=INK)
        axes.xaxis.label.set_color(INK)
    return figure, list(grid[0])


def _title(axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=11, color=INK, fontweight="bold")


def _line(axes, points: list[tuple[float, float]], colour: str, without: str) -> None:
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    if not points:
        axes.text(0.5, 0.5, without, transform=axes.transAxes, ha="center", color=GREY)
        axes.set_yticks([])
        return
    marker = "o" if len(points) < 40 else ""
    axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.8, marker=marker, markersize=4)


def _metrics(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of metrics.jsonl with "at", the minutes since the run's first session began.

    "from" is where the line's own session began; each session counts its minutes from 0.
    """
    begin = last = 0.0
    with suppress(OSError):
        for text in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
                minutes = float(line["minutes"])
            except (ValueError, KeyError, TypeError):  # a line cut short by a crash
                continue
            if begin + minutes < last:
                begin = last
            last = begin + minutes
            yield {**line, "at": last, "from": begin}


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
