"""Small plots and bars in plain characters, for terminals and log files.

They stand beside the pictures of a notebook, so they must cost next to nothing and need no
colour: a line is made of braille dots, a bar of eighths of a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

Point = tuple[float, float]

WIDTH = 76  # characters of a plot or of rows of bars: fits a terminal of 80
EIGHTHS = " ▏▎▍▌▋▊▉█"
MARKS = "oxv*"  # of the second series and those after it
# Bit of each of the 2 by 4 dots in a braille character, by row and column.
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def bar(share: float, width: int = 30) -> str:
    """`share` of 1 as a bar of `width` characters, padded with spaces; what is beyond is cut."""
    share = min(max(share, 0.0), 1.0) if share == share else 0.0
    eighths = round(8 * width * share)
    if share > 0:
        eighths = max(1, eighths)  # a little is not nothing
    full, rest = divmod(eighths, 8)
    return (EIGHTHS[8] * full + (EIGHTHS[rest] if rest else "")).ljust(width)


def bars(
    rows: Mapping[str, float],
    shown: Callable[[float], str] = "{:.1%}".format,
    most: float | None = None,
    width: int = WIDTH,
) -> str:
    """One line a row: its name, a bar, and its value as `shown` says it.

    The longest bar is `most` long: 1 for shares, by default the largest value.
    """
    if not rows:
        return ""
    most = most or max(rows.values()) or 1.0
    names, values = max(map(len, rows)), [shown(value) for value in rows.values()]
    room = max(8, width - names - max(map(len, values)) - 4)
    return "\n".join(
        f"{name:<{names}}  {bar(value / most, room)}  {text}"
        for (name, value), text in zip(rows.items(), values, strict=True)
    )


def plot(
    series: Mapping[str, Iterable[Point]],
    across: str = "",
    marks: Mapping[str, Point] | None = None,
    level: tuple[str, float] | None = None,
    shown: Callable[[float], str] = "{:.4g}".format,
    begin: float | None = None,
    width: int = WIDTH,
    height: int = 10,
) -> str:
    """A plot of `height` lines of characters with its axes and, below it, what is what.

    The first of `series` is a line, the points of the others are characters; `marks` are single
    points with a name (●), `level` is a named horizontal line. `across` names the horizontal axis,
    which starts at `begin` (default: at the first point); `shown` writes a value of the vertical
    one. Points that are not finite are left out.
    """
    drawn = {name: sorted(filter(_finite, points)) for name, points in series.items()}
    marks = {name: point for name, point in (marks or {}).items() if _finite(point)}
    everything = [p for points in drawn.values() for p in points] + list(marks.values())
    if not everything:
        return "(nothing to plot yet)"
    xs, ys = [x for x, _ in everything], [y for _, y in everything]
    ys += [level[1]] if level else []
    left, right = min(xs) if begin is None else begin, max(xs)
    low, high = min(ys), max(ys)
    labels = [shown(high), shown((low + high) / 2), shown(low)]
    if high == low:
        low, high, labels = low - 1, high + 1, ["", shown(low), ""]
    margin = max(map(len, labels))
    canvas = _Canvas(max(10, width - margin - 2), height, (left, right), (low, high))
    if level:
        canvas.level(level[1])
    for number, points in enumerate(drawn.values()):
        if number:
            canvas.points(points, MARKS[(number - 1) % len(MARKS)])
        elif len(points) > 1:
            canvas.line(points)
        else:
            canvas.points(points, "•")
    canvas.points(list(marks.values()), "●")
    named = dict(zip((0, (height - 1) // 2, height - 1), labels, strict=True))
    lines = [
        f"{named.get(row, ''):>{margin}} {'┤' if named.get(row) else '│'}{text}"
        for row, text in enumerate(canvas.rows())
    ]
    ends = f"{left:.4g}", f"{right:.4g}"
    room = canvas.width - len(ends[0]) - len(ends[1])
    middle = (across if len(across) + 2 <= room else "").center(room)
    lines.append(" " * margin + " └" + "─" * canvas.width)
    lines.append(" " * (margin + 2) + ends[0] + middle + ends[1])
    signs = ["⠒", *(MARKS[k % len(MARKS)] for k in range(len(drawn)))]
    legend = [f"{sign} {name}" for sign, name in zip(signs, drawn, strict=False) if name]
    legend += [f"● {name}" for name in marks] + ([f"┄ {level[0]}"] if level else [])
    if legend:
        lines.append(" " * (margin + 2) + "   ".join(legend))
    return "\n".join(line.rstrip() for line in lines)


def _finite(point: Point) -> bool:
    return all(value is not None and math.isfinite(value) for value in point)


class _Canvas:
    """`width` by `height` characters over the ranges `across` and `up`."""

    def __init__(self, width: int, height: int, across: Point, up: Point):
        self.width, self.height, self.across, self.up = width, height, across, up
        self.bits = [[0] * width for _ in range(height)]
        self.over: dict[tuple[int, int], str] = {}  # characters on top of the dots
        self.under: dict[tuple[int, int], str] = {}

    def _place(self, point: Point, per_column: int, per_row: int) -> tuple[int, int]:
        """Column and row of `point` on a raster of so many dots a character."""
        (left, right), (low, high) = self.across, self.up
        columns, rows = self.width * per_column - 1, self.height * per_row - 1
        x = (point[0] - left) / (right - left) if right > left else 0.5
        y = (point[1] - low) / (high - low)
        return round(min(max(x, 0), 1) * columns), round((1 - min(max(y, 0), 1)) * rows)

    def line(self, points: list[Point]) -> None:
        places = [self._place(point, 2, 4) for point in points]
        for (x0, y0), (x1, y1) in zip(places, places[1:] or places, strict=False):
            steps = max(abs(x1 - x0), abs(y1 - y0), 1)
            for k in range(steps + 1):
                x, y = round(x0 + (x1 - x0) * k / steps), round(y0 + (y1 - y0) * k / steps)
                self.bits[y // 4][x // 2] |= DOTS[y % 4][x % 2]

    def points(self, points: list[Point], mark: str) -> None:
        for point in points:
            self.over[self._place(point, 1, 1)] = mark

    def level(self, value: float) -> None:
        _, row = self._place((self.across[0], value), 1, 1)
        self.under.update({(column, row): "┄" for column in range(self.width)})

    def rows(self) -> Iterable[str]:
        for row in range(self.height):
            dots = [chr(0x2800 + bits) if bits else "" for bits in self.bits[row]]
            places = [(column, row) for column in range(self.width)]
            yield "".join(
                self.over.get(place) or dot or self.under.get(place, " ")
                for place, dot in zip(places, dots, strict=True)
            )
