"""What ARC's puzzles and a model's answers look like.

Grids are painted into one picture as pixels: an axes for each grid would cost seconds.
"""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from timebox.files import read_json
from timebox.picture import BAD, GOOD, GREY, INK, SHOWN, WIDTH, Picture, keep
from timebox.task import Task
from timebox.tasks.arc.data import SETS, ArcData, Grid, Puzzle

# The ten colours of the official viewer, 0 to 9.
PALETTE = np.array(
    [
        (0, 0, 0), (30, 147, 255), (249, 60, 49), (79, 204, 48), (255, 220, 0),
        (153, 153, 153), (229, 58, 163), (255, 133, 27), (135, 216, 241), (146, 18, 49),
    ],
    dtype=np.uint8,
)  # fmt: skip
LINE = np.array((85, 85, 85), dtype=np.uint8)
SCALE = 2  # pixels painted per pixel shown
ACROSS = round(WIDTH * SHOWN)  # pixels shown


class Canvas:
    """A white picture of `width` by `height` shown pixels; grids and words are put on it."""

    def __init__(self, height: int, width: int = ACROSS):
        self.width, self.height = width, height
        self.pixels = np.full((height * SCALE, width * SCALE, 3), 255, dtype=np.uint8)
        self.words: list[tuple] = []

    def grid(self, grid: Grid, x: float, y: float, box: float, wrong: np.ndarray | None = None):
        """`grid` in the middle of a square of side `box` at (x, y); cells in `wrong` get a mark."""
        rows, columns = grid.shape
        cell = max(2, int(box * SCALE) // max(rows, columns))
        line = 1 if cell < 12 else 2
        painted = np.kron(PALETTE[grid], np.ones((cell, cell, 1), dtype=np.uint8))
        if wrong is not None:
            self._mark(painted, wrong, cell)
        painted[::cell], painted[:, ::cell] = LINE, LINE
        if line == 2:
            painted[1::cell], painted[:, 1::cell] = LINE, LINE
        painted = np.pad(painted, ((0, line), (0, line), (0, 0)))
        painted[-line:], painted[:, -line:] = LINE, LINE
        top = int(y * SCALE + (box * SCALE - painted.shape[0]) / 2)
        left = int(x * SCALE + (box * SCALE - painted.shape[1]) / 2)
        self.pixels[top : top + painted.shape[0], left : left + painted.shape[1]] = painted

    @staticmethod
    def _mark(painted: np.ndarray, wrong: np.ndarray, cell: int) -> None:
        # A white square in a black one can be seen on every colour.
        for share, colour in ((0.27, 0), (0.36, 255)):
            a = round(share * cell)
            for row, column in zip(*np.nonzero(wrong), strict=True):
                r, c = row * cell, column * cell
                painted[r + a : r + cell - a + 1, c + a : c + cell - a + 1] = colour

    def shade(self, x: float, y: float, width: float, height: float) -> None:
        """A pale area, for what is put on it next."""
        left, top, right, bottom = (round(v * SCALE) for v in (x, y, x + width, y + height))
        self.pixels[top:bottom, left:right] = 238

    def word(self, text: str, x: float, y: float, size: float = 9, colour: str = INK, **how):
        """`text` at (x, y); `size` in points, `how` as in matplotlib."""
        self.words.append((text, x, y, {"fontsize": size, "color": colour, **how}))

    def picture(self, path: Path | None, alt: str) -> Picture:
        """The picture, saved as the PNG `path` too; a disk that is full only costs the file."""
        inch = SHOWN * SCALE
        figure = Figure(figsize=(self.width * SCALE / inch, self.height * SCALE / inch), dpi=inch)
        figure.figimage(self.pixels)
        for text, x, y, how in self.words:
            figure.text(x / self.width, 1 - y / self.height, text, **how)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=inch)
        return keep(drawn.getvalue(), self.width, path, alt)


def examples(task: Task, folder: Path | None = None, count: int = 6) -> Picture:
    """`count` training puzzles: their demonstrations, input above output, and a test input."""
    puzzles = _small(task.data, count)
    across, box, gap = 3, 64, 7
    panel, tall = ACROSS / across, 2 * box + 58
    canvas = Canvas(height=int(max(1, -(-len(puzzles) // across)) * tall))
    for k, puzzle in enumerate(puzzles):
        x, y = (k % across) * panel + 8, (k // across) * tall + 22
        canvas.word(puzzle.id, x, y - 7, 9, weight="bold")
        shown = puzzle.demos[:3]
        for i, (given, output) in enumerate(shown):
            canvas.grid(given, x + i * (box + gap), y, box)
            canvas.word("↓", x + i * (box + gap) + box / 2, y + box + 12, 9, GREY, ha="center")
            canvas.grid(output, x + i * (box + gap), y + box + 16, box)
        x += len(shown) * (box + gap) + 8
        canvas.shade(x - 5, y - 5, box + 10, 2 * box + 26)
        canvas.grid(puzzle.tests[0], x, y, box)
        canvas.word("↓", x + box / 2, y + box + 12, 9, GREY, ha="center")
        canvas.word("?", x + box / 2, y + 1.5 * box + 28, 24, GREY, ha="center")
    if not puzzles:
        canvas.word("There is no training puzzle to show.", 8, 40, colour=GREY)
    path = folder / "examples.png" if folder else None
    return canvas.picture(path, f"{len(puzzles)} ARC puzzles with their demonstrations")


def _small(data: ArcData, count: int) -> list[Puzzle]:
    """The first puzzles in a fixed random order whose grids are small enough to see."""
    puzzles = list(data.tasks["training"].values())
    order = np.random.default_rng(7).permutation(len(puzzles))

    def size(puzzle: Puzzle) -> int:
        grids = [g for pair in puzzle.demos[:3] for g in pair] + [puzzle.tests[0]]
        return max(max(grid.shape) for grid in grids)

    shuffled = [puzzles[i] for i in order]
    return [p for p in shuffled if 5 <= size(p) <= 13][:count] or shuffled[:count]


def sets(task: Task) -> pd.DataFrame:
    """How many tasks, demonstrations and tests each set has."""
    rows = {}
    for name in SETS:
        puzzles = task.data.tasks[name].values()
        rows[name] = {
            "tasks": len(puzzles),
            "demonstration pairs": sum(len(p.demos) for p in puzzles),
            "test inputs": sum(len(p.tests) for p in puzzles),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("set")


def answers(task: Task, folder: Path, count: int = 6) -> Picture:
    """Answers to the evaluation set beside the truth: solved ones first, then the nearest misses.

    In an answer of the right size the wrong cells are marked.
    """
    truth = task.data.source.solutions("evaluation") or {}
    judged = []
    with suppress(OSError, ValueError):
        judged = [p for p in read_json(folder / "eval_predictions.json") if p["exact"] is not None]
    solved = [p for p in judged if p["solved"]]
    failed = sorted(
        (p for p in judged if not p["solved"]), key=lambda p: (p["size_correct"], p["accuracy"])
    )[::-1]
    chosen = solved[: max(count // 2, count - len(failed))]
    chosen += failed[: count - len(chosen)]
    across, box, gap = 2, 128, 14
    panel, tall = ACROSS / across, box + 62
    rows = -(-len(chosen) // across)
    canvas = Canvas(height=int(36 + max(1, rows) * tall))
    words = f"{len(solved):,} of {len(judged):,} evaluation outputs solved by either attempt"
    canvas.word(words if judged else "No answer was judged in this run.", 8, 20, 11, weight="bold")
    for k, entry in enumerate(chosen):
        x, y = (k % across) * panel + 8, (k // across) * tall + 74
        right = truth[entry["task_id"]][entry["test_index"]]
        puzzle = task.data.tasks["evaluation"][entry["task_id"]]
        first, second = (np.array(entry[n], np.uint8) for n in ("prediction", "attempt_2"))
        answer = second if entry["solved"] and not entry["exact"] else first
        same_size = answer.shape == right.shape
        verdict, colour = f"solved by attempt {1 if answer is first else 2}", GOOD
        if not entry["solved"]:
            wrong = int((answer != right).sum()) if same_size else 0
            verdict = f"{wrong} of {right.size} cells wrong" if same_size else "wrong size"
            colour = BAD
        canvas.word(entry["task_id"], x, y - 20, 9, weight="bold")
        canvas.word(verdict, x + 3 * box + 2 * gap, y - 20, 9, colour, ha="right")
        marks = answer != right if same_size else None
        shown = {"input": puzzle.tests[entry["test_index"]], "truth": right, "answer": answer}
        for i, (name, grid) in enumerate(shown.items()):
            left = x + i * (box + gap)
            size = f"{name} {grid.shape[0]}×{grid.shape[1]}"
            canvas.word(size, left + box / 2, y - 5, 8, GREY, ha="center")
            canvas.grid(grid, left, y, box, marks if name == "answer" else None)
    return canvas.picture(folder / "answers.png", words)
