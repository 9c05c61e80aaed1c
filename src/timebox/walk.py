"""A notebook in a terminal, cell by cell: prose, code, what comes of it, and Enter to go on.

The cells run in this process, one after the other, as they would in Jupyter. The time a reader
takes between them is taken out of the clock, so a budget of minutes remains one of work.
"""

from __future__ import annotations

import ast
import io
import linecache
import os
import sys
import textwrap
import tokenize
import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from timebox import clock, notebook
from timebox.settings import SettingError, check_names
from timebox.terminal import BOLD, DIM, Terminal

ENDED, QUIT, FAILED = "ended", "quit", "failed"
PROMPT = "Enter to go on, q to end: "


class Walk:
    """One walk through a notebook; `run` says how it came to its end."""

    def __init__(
        self, source: Path, parameters: dict[str, Any], terminal: Terminal, pause: bool = True
    ):
        self.notebook = notebook.read(source)
        self.parameters = parameters
        self.known = notebook.parameters(self.notebook)
        check_names(parameters, self.known, f"parameter of {source.name}")
        self.terminal, self.pause = terminal, pause
        self.module = types.ModuleType("__main__")
        self.module.__dict__["display"] = self.display
        self.steps = [*_steps(self.notebook.cells)]
        self.cells = 0  # code cells that ran

    def run(self) -> str:
        """Go through all cells; ``ended``, ``quit`` by the reader, or ``failed`` in a cell.

        A SettingError of a cell is raised: it is meant for the user. Any other error is shown
        as a traceback that points into the cell.
        """
        with self._as_main():
            for number, (prose, cell) in enumerate(self.steps, 1):
                if prose:
                    self.terminal.say("\n" + self.terminal.prose(prose))
                if cell is not None and not self._cell(cell):
                    return FAILED
                if self.pause and number < len(self.steps) and not self._go_on(number):
                    return QUIT
        return ENDED

    def values(self) -> list[Any]:
        """What the cells have named so far."""
        return [v for n, v in vars(self.module).items() if not n.startswith("__")]

    def display(self, *values: Any, **ignored: Any) -> None:
        """Show `values` now; the cells have this under the name that Jupyter gives it."""
        for value in values:
            sys.stdout.flush()
            self.terminal.say(self.terminal.value(value))

    # --- one cell

    def _cell(self, cell: Any) -> bool:
        """Show and run `cell`; False if it failed."""
        if "parameters" in cell.metadata.get("tags", ()):
            self.terminal.say("\n" + self._table())
            given = "\n".join(f"{name} = {value!r}" for name, value in self.parameters.items())
            source = f"{cell.source}\n{given}\n"
        else:
            source = cell.source
            if not source.strip():
                return True
            self.terminal.say("\n" + self.terminal.code(source) + "\n")
        self.cells += 1
        try:
            self._execute(source, f"<cell {self.cells}>")
        except SettingError:
            raise
        except (Exception, SystemExit) as error:
            sys.stdout.flush()
            lines = self._traceback(error)
            print("".join(lines).rstrip(), file=sys.stderr, flush=True)
            return False
        return True

    def _execute(self, source: str, name: str) -> None:
        """Run `source` and show the value of its last expression, as Jupyter does."""
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        tree = ast.parse(source, name)
        last = None
        if tree.body and isinstance(tree.body[-1], ast.Expr):
            last = ast.Expression(tree.body.pop().value)
        space = vars(self.module)
        exec(compile(tree, name, "exec", dont_inherit=True), space)
        if last is not None:
            value = eval(compile(last, name, "eval", dont_inherit=True), space)
            if value is not None and not _silenced(source):
                sys.stdout.flush()
                self.terminal.say(self.terminal.value(value))
        self._open_figures()

    def _open_figures(self) -> None:
        """Show what pyplot has drawn and not shown, as Jupyter's inline pictures are."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is not None:
            for number in pyplot.get_fignums():
                self.display(pyplot.figure(number))
            pyplot.close("all")

    def _table(self) -> str:
        """The parameters, their values here, and what they mean; what was given stands out."""
        rows = [
            (name, repr(self.parameters.get(name, known.default)), known.help)
            for name, known in self.known.items()
        ]
        first, second = max(len(row[0]) for row in rows), 12
        indent = first + second + 11
        lines = []
        for name, value, about in rows:
            line = f"    {name:<{first}} = {value:<{second}}"
            changed = name in self.parameters and self.parameters[name] != self.known[name].default
            lines.append(self.terminal.paint(line.rstrip(), BOLD if changed else DIM))
            if about:
                words = textwrap.wrap(about, max(30, self.terminal.columns - indent))
                hints = [self.terminal.paint(f"# {part}", DIM) for part in words]
                if len(line) + 4 <= indent:
                    lines[-1] += " " * (indent - 2 - len(line.rstrip())) + hints.pop(0)
                lines += [" " * (indent - 2) + hint for hint in hints]
        return "\n".join(lines)

    def _traceback(self, error: BaseException) -> list[str]:
        if isinstance(error, SyntaxError) and str(error.filename).startswith("<cell "):
            return traceback.format_exception_only(error)
        trace = error.__traceback__
        while trace is not None and not trace.tb_frame.f_code.co_filename.startswith("<cell "):
            trace = trace.tb_next
        return traceback.format_exception(type(error), error, trace)

    # --- the reader

    def _go_on(self, number: int) -> bool:
        """Wait for the reader; False if that is where the walk ends. No clock runs meanwhile."""
        terminal, answer = self.terminal, ""
        with clock.paused(), suppress(KeyboardInterrupt):
            _forget_typed()
            terminal.stream.write(terminal.paint(f"\n[{number}/{len(self.steps)}] {PROMPT}", DIM))
            terminal.stream.flush()
            answer = sys.stdin.readline()
        if not answer.endswith("\n"):  # Ctrl-D, Ctrl-C, or a terminal that is gone
            with suppress(OSError):
                terminal.say()
            return False
        if terminal.colour:
            terminal.stream.write("\x1b[A\x1b[2K\x1b[A")  # the question has been answered
        return answer.strip().lower() not in ("q", "quit", "exit")

    @contextmanager
    def _as_main(self) -> Iterator[None]:
        """The cells are ``__main__``, and whoever imports IPython's `display` gets this one."""
        import IPython.display

        before, shown = sys.modules["__main__"], IPython.display.display
        backend = os.environ.get("MPLBACKEND")
        os.environ["MPLBACKEND"] = "Agg"  # no window opens
        sys.modules["__main__"], IPython.display.display = self.module, self.display
        try:
            yield
        finally:
            sys.modules["__main__"], IPython.display.display = before, shown
            if backend is None:
                os.environ.pop("MPLBACKEND", None)
            else:
                os.environ["MPLBACKEND"] = backend


def _steps(cells: list[Any]) -> Iterator[tuple[str, Any]]:
    """Prose with the code cell it leads to; prose alone where more prose follows."""
    prose = ""
    for cell in cells:
        if cell.cell_type == "code":
            yield prose, cell
            prose = ""
        else:
            if prose:
                yield prose, None
            prose = cell.source if cell.cell_type == "markdown" else ""
    if prose:
        yield prose, None


def _silenced(source: str) -> bool:
    """True if the last thing in `source`, comments aside, is a semicolon."""
    kinds = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER, tokenize.DEDENT)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [token.string for token in tokens if token.type not in kinds][-1:] == [";"]


def _forget_typed() -> None:
    """Drop what was typed while a cell ran: it did not answer a question that was not asked."""
    with suppress(Exception):
        import termios

        termios.tcflush(sys.stdin, termios.TCIFLUSH)


def somebody_there() -> bool:
    """True if there is somebody to press Enter."""
    return sys.stdin is not None and sys.stdin.isatty()
