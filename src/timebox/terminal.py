"""What a terminal shows of a notebook: prose, code, values and pictures, as text.

Colours only on a terminal that wants them; everything else is plain text that a file can hold.
"""

from __future__ import annotations

import base64
import io
import itertools
import os
import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

PROSE = 88  # characters: longer lines are hard to read
CODE_LINES = 16  # of a cell that are shown
TABLE_ROWS = 60
PICTURE_COLUMNS = 120  # more are slow to draw and no easier to see

BOLD, DIM, ITALIC, UNDERLINED, CYAN, BLUE = "1", "2", "3", "4", "36", "34"
_ENDS = {BOLD: "22", DIM: "22", ITALIC: "23", UNDERLINED: "24", CYAN: "39", BLUE: "39"}
_CODES = re.compile(r"\x1b\[[0-9;]*m")

# Of one line of markdown, the first that begins soonest: code, picture, link, strong, emphasis.
_INLINE = re.compile(
    r"(?P<tick>`+)(?P<code>.+?)(?P=tick)"
    r"|!\[(?P<alt>[^\]]*)\]\([^)]*\)"
    r"|\[(?P<link>[^\]]+)\]\((?P<target>[^)\s]+)[^)]*\)"
    r"|<(?P<address>https?://[^>\s]+)>"
    r"|\*\*(?P<strong>\S(?:.*?\S)?)\*\*|(?<!\w)__(?P<strong2>\S(?:.*?\S)?)__(?!\w)"
    r"|\*(?P<weak>\S(?:[^*]*?\S)?)\*|(?<!\w)_(?P<weak2>\S(?:[^_]*?\S)?)_(?!\w)"
    r"|(?<![\w$])\$(?P<formula>\S(?:[^$]*?\S)?)\$(?![\w$])"
    r"|\\(?P<escaped>[\\`*_{}\[\]()#+.!|$-])"
)
_SIGNS = {
    "times": "×", "cdot": "·", "to": "→", "rightarrow": "→", "mapsto": "↦", "le": "≤", "leq": "≤",
    "ge": "≥", "geq": "≥", "neq": "≠", "approx": "≈", "equiv": "≡", "log": "log", "ldots": "...",
    "dots": "...", "infty": "∞", "sum": "∑", "in": "∈", "alpha": "α", "beta": "β", "pi": "π",
    "mod": "mod", "bmod": "mod", "quad": " ",
}  # fmt: skip
_ITEM = re.compile(r"(?P<indent>\s*)(?P<mark>[-*+]|\d+[.)])\s+(?P<text>.*)")


class Terminal:
    """Where the output goes: its width, whether it takes colours, how it takes pictures."""

    def __init__(self, stream: TextIO, environment: dict[str, str] | None = None):
        env = dict(os.environ) if environment is None else environment
        self.stream = stream
        self.is_tty = stream.isatty()
        self.colour = self.is_tty and not env.get("NO_COLOR") and env.get("TERM") != "dumb"
        self.pictures = _protocol(env) if self.colour else None

    @property
    def columns(self) -> int:
        """The width in characters, as it is now."""
        return max(20, shutil.get_terminal_size((80, 24)).columns if self.is_tty else 80)

    def say(self, text: str = "") -> None:
        """`text` and a line end, at once."""
        self.stream.write(text + "\n")
        self.stream.flush()

    def paint(self, text: str, *codes: str) -> str:
        """`text` in the style of `codes`, where there are colours."""
        if not self.colour or not text:
            return text
        return f"\x1b[{';'.join(codes)}m{text}\x1b[{';'.join(_ENDS[c] for c in codes)}m"

    # --- prose and code

    def prose(self, markdown: str) -> str:
        """`markdown` (headings, emphasis, lists, code, quotes, tables, links) as plain text."""
        blocks = [*self._blocks(markdown.splitlines())]
        return "\n\n".join(block for block in blocks if block)

    def _blocks(self, lines: list[str]) -> Iterator[str]:
        waiting: list[str] = []  # lines of a paragraph

        def paragraph() -> Iterator[str]:
            if waiting:
                yield self._wrap(" ".join(line.strip() for line in waiting))
                waiting.clear()

        lines = _without_comments(lines)
        while lines:
            line = lines.pop(0)
            fence = re.match(r"\s*(```+|~~~+|\$\$)", line)
            heading = re.match(r"(#{1,6})\s+(.*?)\s*#*$", line)
            if fence:
                yield from paragraph()
                inside = []
                while lines and not lines[0].strip().startswith(fence[1]):
                    inside.append(lines.pop(0))
                lines[:1] = []
                yield self.code("\n".join(inside), len(inside))
            elif heading:
                yield from paragraph()
                yield self._heading(heading[2], len(heading[1]))
            elif _ITEM.fullmatch(line) and not waiting:
                items = [line]
                while lines and (_ITEM.fullmatch(lines[0]) or lines[0].startswith((" ", "\t"))):
                    items.append(lines.pop(0))
                yield self._list(items)
            elif line.lstrip().startswith("|"):
                yield from paragraph()
                rows = [line]
                while lines and lines[0].lstrip().startswith("|"):
                    rows.append(lines.pop(0))
                yield self._table(rows)
            elif line.startswith(">"):
                yield from paragraph()
                quoted = [line]
                while lines and lines[0].startswith(">"):
                    quoted.append(lines.pop(0))
                inner = self.prose("\n".join(q[1:].removeprefix(" ") for q in quoted))
                yield "\n".join(self.paint("│ ", DIM) + text for text in inner.splitlines())
            elif re.fullmatch(r"\s*([-*_])(\s*\1){2,}\s*", line):
                yield from paragraph()
                yield self.paint("─" * min(PROSE, self.columns), DIM)
            elif not line.strip():
                yield from paragraph()
            else:
                waiting.append(line)
        yield from paragraph()

    def _heading(self, text: str, depth: int) -> str:
        plain = self._inline(text)
        if self.colour:
            return self.paint(plain, BOLD, UNDERLINED) if depth < 3 else self.paint(plain, BOLD)
        return f"{plain}\n{('=' if depth == 1 else '-') * len(plain)}" if depth < 3 else plain

    def _list(self, lines: list[str]) -> str:
        items: list[list[str]] = []  # of each: indent, mark, text
        for line in lines:
            found = _ITEM.fullmatch(line)
            if found:
                mark = "•" if found["mark"] in "-*+" else found["mark"]
                items.append([found["indent"], mark, found["text"]])
            elif line.strip():
                items[-1][2] += " " + line.strip()
        return "\n".join(
            self._wrap(text, f"  {indent}{mark} ", " " * (3 + len(indent + mark)))
            for indent, mark, text in items
        )

    def _table(self, lines: list[str]) -> str:
        rows = [
            [self._inline(cell.strip()) for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
            for line in lines
            if not re.fullmatch(r"[\s|:-]+", line)
        ]
        columns = max(map(len, rows), default=0)
        rows = [row + [""] * (columns - len(row)) for row in rows]
        widths = [max(_length(row[k]) for row in rows) for k in range(columns)]
        return "\n".join(
            "  ".join(
                cell + " " * (width - _length(cell))
                for cell, width in zip(row, widths, strict=True)
            ).rstrip()
            for row in rows
        )

    def _inline(self, text: str) -> str:
        """One line of markdown with its marks carried out."""

        def replaced(found: re.Match) -> str:
            kind = found.lastgroup
            if found["code"]:
                return self.paint(found["code"].strip() or found["code"], CYAN)
            if found["alt"] is not None:
                return f"[picture: {found['alt']}]" if found["alt"] else "[picture]"
            if found["link"]:
                link, target = self._inline(found["link"]), found["target"]
                shown = target if re.match(r"https?://", target) else ""
                return f"{link} ({self.paint(shown, BLUE)})" if shown else link
            if found["address"]:
                return self.paint(found["address"], BLUE)
            if kind in ("strong", "strong2"):
                return self.paint(self._inline(found[kind]), BOLD)
            if kind in ("weak", "weak2"):
                return self.paint(self._inline(found[kind]), ITALIC)
            if found["formula"]:
                return _formula(found["formula"])
            return found["escaped"]

        return re.sub(r"<br\s*/?>", " ", _INLINE.sub(replaced, text))

    def _wrap(self, text: str, first: str = "", then: str = "") -> str:
        width, lines, line = min(PROSE, self.columns), [], first
        empty = True
        for word in self._inline(text).split():
            if not empty and _length(line) + 1 + _length(word) > width:
                lines.append(line)
                line, empty = then, True
            line += word if empty else " " + word
            empty = False
        return "\n".join([*lines, line])

    def code(self, source: str, most: int = CODE_LINES) -> str:
        """`source` indented and dimmed; of a long one the first lines."""
        lines = source.rstrip().splitlines()
        if len(lines) > most:
            lines = [*lines[: most - 1], f"... ({len(lines) - most + 1} more lines)"]
        return "\n".join(self.paint(f"    {line}", DIM) if line.strip() else "" for line in lines)

    # --- values

    def value(self, value: Any) -> str:
        """`value` as a notebook shows the value of a cell: tables whole, pictures drawn."""
        png = _png(value)
        if png is not None:
            return self.picture(png, *_words_of(value))
        if _is_table(value):
            return self._frame(value)
        if (markdown := _represented(value, "_repr_markdown_")) is not None:
            return self.prose(markdown)
        from IPython.lib.pretty import pretty

        return pretty(value, max_width=self.columns)

    def _frame(self, frame: Any) -> str:
        import pandas as pd

        with pd.option_context("display.max_colwidth", None):
            rows = {"max_rows": TABLE_ROWS} if len(frame) > TABLE_ROWS else {}
            if not hasattr(frame, "columns"):
                return _without_trailing(frame.to_string(**rows))
            one_level = frame.columns.nlevels == frame.index.nlevels == 1
            fitted = self._fitted(frame) if one_level and frame.size and not rows else ""
            return fitted or _without_trailing(frame.to_string(line_width=self.columns, **rows))

    def _fitted(self, frame: Any) -> str:
        """A table as wide as the terminal: words are wrapped and begin below each other.

        Empty where it cannot be made to fit.
        """
        series = [frame.iloc[:, k] for k in range(frame.shape[1])]
        heads = [str(frame.index.name or ""), *map(str, frame.columns)]
        columns = [[*map(str, frame.index)]]
        columns += [one.to_string(index=False, header=False).split("\n") for one in series]
        columns = [[cell.strip() for cell in column] for column in columns]
        if any(len(column) != len(frame) for column in columns):
            return ""
        words = [True, *map(_are_words, columns[1:])]
        least, widths = [], []
        for head, column, may_wrap in zip(heads, columns, words, strict=True):
            widths.append(max(map(len, [head, *column])))
            parts = head.split() + (
                [w for cell in column for w in cell.split()] if may_wrap else []
            )
            least.append(max(map(len, [*parts, *([] if may_wrap else column)]), default=0))
        while sum(widths) + 2 * len(widths) - 2 > self.columns:
            wide = [k for k in range(len(widths)) if widths[k] > least[k]]
            if not wide:
                return ""
            widths[max(wide, key=lambda k: widths[k])] -= 1

        def line(cells: list[str]) -> str:
            parts = [textwrap.wrap(c, max(1, w)) for c, w in zip(cells, widths, strict=True)]
            return "\n".join(
                "  ".join(
                    part.ljust(width) if left else part.rjust(width)
                    for part, width, left in zip(row, widths, words, strict=True)
                ).rstrip()
                for row in itertools.zip_longest(*parts, fillvalue="")
            )

        lines = [line([column[k] for column in columns]) for k in range(len(frame))]
        return "\n".join([self.paint(line(heads), BOLD), *lines])

    def picture(self, png: bytes, alt: str, path: Any = None, text: str = "") -> str:
        """The picture itself where the terminal can show one, else what comes nearest."""
        columns = min(self.columns, PICTURE_COLUMNS)
        if self.pictures == "kitty":
            return _kitty(png, columns)
        if self.pictures == "iterm2":
            data = base64.b64encode(png).decode()
            return f"\x1b]1337;File=inline=1;width={columns};size={len(png)}:{data}\x07"
        if text:
            return text
        if self.colour:
            return half_blocks(png, columns)
        where = f": {path}" if path else ""
        return f"[picture] {alt}{where}" if alt else f"[picture]{where}"


def half_blocks(png: bytes, columns: int) -> str:
    """A PNG drawn with the character ▀, two pixels in each, in 24-bit colours."""
    import numpy as np
    from matplotlib.image import imread

    pixels = np.atleast_3d(imread(io.BytesIO(png)))[..., :4].astype(np.float64)
    if pixels.shape[-1] < 3:  # grey
        pixels = np.repeat(pixels[..., :1], 3, axis=-1)
    if pixels.shape[-1] == 4:  # what is transparent is white
        pixels = pixels[..., :3] * pixels[..., 3:] + 1 - pixels[..., 3:]
    height, width = pixels.shape[:2]
    columns = min(columns, width)
    rows = max(2, round(height / width * columns) // 2 * 2)
    small = _shrunk(_shrunk(pixels, rows, 0), columns, 1)
    small = (255 * small.clip(0, 1)).round().astype(int)
    lines = []
    for upper, lower in zip(small[::2], small[1::2], strict=True):
        line, before = "", None
        for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
            colours = (*above, *below)
            if colours != before:
                line += "\x1b[38;2;{};{};{};48;2;{};{};{}m".format(*colours)
                before = colours
            line += "▀"
        lines.append(line + "\x1b[0m")
    return "\n".join(lines)


def _shrunk(pixels, count: int, axis: int):
    """The mean of `count` even stretches along `axis`."""
    import numpy as np

    size = pixels.shape[axis]
    edges = np.arange(count) * size // count
    sums = np.add.reduceat(pixels, edges, axis)
    lengths = np.diff([*edges, size]).clip(1)
    return sums / np.expand_dims(lengths, tuple(i for i in range(pixels.ndim) if i != axis))


def _protocol(env: dict[str, str]) -> str | None:
    """The protocol by which this terminal takes pictures; None also inside tmux and screen."""
    if env.get("TMUX") or env.get("TERM", "").startswith(("screen", "tmux")):
        return None
    if env.get("KITTY_WINDOW_ID") or env.get("TERM") in ("xterm-kitty", "xterm-ghostty"):
        return "kitty"
    known = ("iTerm.app", "WezTerm")
    return "iterm2" if env.get("TERM_PROGRAM") in known else None


def _kitty(png: bytes, columns: int) -> str:
    data = base64.b64encode(png).decode()
    parts = [data[i : i + 4096] for i in range(0, len(data), 4096)]
    return "".join(
        f"\x1b_G{f'a=T,f=100,q=2,c={columns},' if k == 0 else ''}"
        f"m={int(k + 1 < len(parts))};{part}\x1b\\"
        for k, part in enumerate(parts)
    )


def _png(value: Any) -> bytes | None:
    """The PNG that `value` is or can make of itself."""
    if type(value).__module__.startswith("matplotlib.") and hasattr(value, "savefig"):
        drawn = io.BytesIO()
        value.savefig(drawn, format="png", dpi=150, facecolor="white")
        return drawn.getvalue()
    found = _represented(value, "_repr_png_")
    found = found[0] if isinstance(found, tuple) else found  # with its metadata
    if isinstance(found, str):
        return base64.b64decode(found)
    return found


def _words_of(picture: Any) -> tuple[str, Any, str]:
    """What a picture says of itself where it cannot be seen: alt, path and text, if it does."""
    metadata = _attribute(picture, "metadata")
    alt = metadata.get("alt", "") if isinstance(metadata, dict) else ""
    path, text = _attribute(picture, "path"), _attribute(picture, "text")
    return (
        str(alt),
        path if isinstance(path, (str, Path)) else None,
        text if isinstance(text, str) else "",
    )


def _represented(value: Any, method: str) -> Any:
    # A class has the method too, but only its instances can be shown by it.
    if isinstance(value, type) or not callable(_attribute(value, method)):
        return None
    return _attribute(value, method)()


def _attribute(value: Any, name: str) -> Any:
    try:
        return getattr(value, name, None)
    except Exception:  # an object whose attributes are computed and fail is shown by its repr
        return None


def _is_table(value: Any) -> bool:
    pandas = type(value).__module__.partition(".")[0] == "pandas"
    return pandas and not isinstance(value, type) and callable(_attribute(value, "to_string"))


def _are_words(cells: list[str]) -> bool:
    """False for numbers, which stand better under each other's ends; with units and signs too."""
    return not all(re.fullmatch(r"[-+]?\d[\d.,]*(e[-+]?\d+)?\s?\S{0,6}|nan|NaN|", c) for c in cells)


def _without_trailing(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines())


def _formula(text: str) -> str:
    text = re.sub(r"\\(?:text|mathrm|mathbf)\{([^}]*)\}", r"\1", text)
    text = re.sub(r"\\frac\{([^}]*)\}\{([^}]*)\}", r"(\1)/(\2)", text)
    text = re.sub(r"\\([a-z]+)", lambda found: _SIGNS.get(found[1], found[0]), text)
    return re.sub(r"([\^_])\{([^}]*)\}", r"\1\2", text).replace("\\,", " ")


def _length(text: str) -> int:
    return len(_CODES.sub("", text))


def _without_comments(lines: list[str]) -> list[str]:
    return re.sub(r"<!--.*?-->", "", "\n".join(lines), flags=re.DOTALL).splitlines()
