"""A picture that is shown in a notebook, kept as a file, and said in characters in a terminal.

And what all pictures share: colours, panels, and the measurements of a run that are drawn.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from timebox import files

SHOWN, KEPT = 90, 180  # pixels per inch on the screen and in the file
WIDTH = 10.0  # inches of a picture, all text is sized for it
# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED, PURPLE, YELLOW, SKY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#F0E442", "#56B4E9"
)  # fmt: skip
GOOD, BAD = "#007A5A", "#C44E00"  # green and red, dark enough for small words
INK, GREY, PALE = "#333333", "#8A8A8A", "#E6E6E6"


class Picture(Image):
    """A PNG for a notebook, with what a terminal can show of it: `text`, else `alt` and `path`."""

    def __init__(self, data: bytes, width: int, path: Path | None, alt: str, text: str = ""):
        # As metadata, because an older IPython has no argument for it.
        super().__init__(data, format="png", width=width, metadata={"alt": alt})
        self.path, self.alt, self.text = path, alt, text


def picture(figure: Figure, path: Path, alt: str, text: str = "") -> Picture:
    """`figure` saved as the PNG `path` and ready to be shown; a full disk only costs the file.

    `alt` says in a line what is to be seen. `text` shows the same in plain characters (see
    `timebox.text`) where there is no place for pictures; without it a terminal draws the PNG.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=KEPT, facecolor="white")
    return keep(drawn.getvalue(), round(figure.get_figwidth() * SHOWN), path, alt, text)


def panels(height: float, columns: int = 1, width: float = WIDTH) -> tuple[Figure, list[Axes]]:
    """A figure of `columns` plain axes side by side; `height` and `width` in inches."""
    figure = Figure(figsize=(width, height))
    grid = figure.subplots(1, columns, squeeze=False)[0]
    figure.subplots_adjust(0.075, 0.55 / height, 0.985, 1 - 0.42 / height, wspace=0.2)
    for axes in grid:
        plain(axes)
    return figure, list(grid)


def plain(axes: Axes) -> None:
    """Nothing around what is drawn but a grey line at the left and one below."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(color=GREY, labelcolor=INK)
    axes.xaxis.label.set_color(INK)


def title(axes: Axes, text: str, size: float = 11) -> None:
    """`text` over the left end of `axes`."""
    axes.set_title(text, loc="left", fontsize=size, color=INK, fontweight="bold")


def metrics(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's metrics.jsonl with "at", the minutes since its first session began.

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


def keep(png: bytes, width: int, path: Path | None, alt: str, text: str = "") -> Picture:
    """The same of a PNG that is drawn already and shown `width` pixels wide."""
    if path is not None:
        with suppress(OSError):
            files.write_whole(path, lambda beside: beside.write_bytes(png))
    return Picture(png, width, path, alt, text)
