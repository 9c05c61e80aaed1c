"""A notebook is gone through in a terminal: real processes, real terminals, real keys."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imsave

from timebox import cli, clock, notebook, tasks, walk
from timebox.picture import picture
from timebox.settings import SettingError
from timebox.terminal import Terminal, half_blocks

HEADER = """\
# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The title
#
# Some *slanted* and **strong** words, see [the site](https://example.org).
#
# * first item
# * second item

# %% tags=["parameters"]
minutes: float = 3.5  # the whole budget
run: str = ""
root: str = "."
word: str = "default"  # what is said
more: dict = {}

"""
# The command with a notebook of the test's own in the place of the task's.
DRIVER = """\
import sys
from pathlib import Path

from timebox import cli, notebook

notebook.find = lambda task: Path(sys.argv[1])
sys.exit(cli.main(sys.argv[2:]))
"""


def write(folder: Path, *cells: str) -> Path:
    """A notebook of a title, a parameters cell and `cells`; one that begins with # is prose."""
    path = folder / "small.py"
    parts = [f"# %%{' [markdown]' if cell.startswith('# ') else ''}\n{cell}\n" for cell in cells]
    path.write_text(HEADER + "\n".join(parts))
    return path


def command(source: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-c", DRIVER, str(source), "walk", "arc", *arguments]


def walked(source: Path, *arguments: str, **how) -> subprocess.CompletedProcess:
    """A walk without a terminal, from its first line to its last."""
    return subprocess.run(
        command(source, *arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        **how,
    )


def _at_a_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C comes by it
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which tests in the background inherit ignored


class Reader:
    """Somebody at a terminal of `columns`: reads what appears there and presses keys."""

    def __init__(self, arguments: list[str], columns: int = 90, **environment: str):
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        known = {n: v for n, v in os.environ.items() if n not in ("NO_COLOR", "TMUX", "COLUMNS")}
        self.process = subprocess.Popen(
            arguments,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_at_a_terminal,
            env={**known, "TERM": "xterm-256color", **environment},
        )
        os.close(theirs)
        self.seen = ""

    def until(self, words: str, seconds: float = 30.0) -> str:
        """Everything from the last key on, as soon as `words` are there."""
        end = time.monotonic() + seconds
        while words not in self.seen:
            assert time.monotonic() < end, f"{words!r} did not come: {self.seen}"
            assert self._read(0.2), f"it ended without {words!r}: {self.seen}"
        return self.seen

    def listen(self, seconds: float) -> str:
        """Everything from the last key on, after so many seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._read(0.1):
            pass
        return self.seen

    def press(self, keys: str) -> None:
        self.seen = ""
        os.write(self.ours, keys.encode())

    def rest(self, seconds: float = 60.0) -> tuple[int, str]:
        """Exit status and what is still said."""
        end = time.monotonic() + seconds
        while self._read(0.2):
            assert time.monotonic() < end, f"it goes on and on: {self.seen}"
        os.close(self.ours)
        return self.process.wait(20), self.seen

    def _read(self, seconds: float) -> bool:
        if not select.select([self.ours], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.ours, 65536)
        except OSError:  # the other end is closed
            return False
        self.seen += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)


ENTER = "Enter to go on, q to end: "


# ------------------------------------------------------------------------------ without a terminal


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What is said of a notebook with all kinds of values; nobody is there to press Enter."""
    folder = tmp_path_factory.mktemp("plain")
    source = write(
        folder,
        "# ## What is there\n#\n# Prose of the cell.",
        'print("said", word, minutes, more)\n"a string"',
        "None",
        "silent = 41 + 1\nsilent;  # no value is shown",
        "silent",
        'import pandas as pd\npd.DataFrame({"number": [1, 2], "words": ["short", "far longer"]})',
        'display("as it is", [1, 2])\nfrom IPython.display import display as same\nsame("it")',
        "import dataclasses, pickle\n\n@dataclasses.dataclass\nclass Own:\n    x: int = 1",
        "pickle.loads(pickle.dumps(Own()))",
        "# ## Only prose",
        "# The last words.",
    )
    done = walked(source, "--root", str(folder))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_prose_and_code_and_values_follow_each_other(plain):
    assert "The title\n=========\n\nSome slanted and strong words" in plain
    assert "the site (https://example.org)" in plain
    assert "  • first item\n  • second item\n" in plain
    assert "\nWhat is there\n-------------\n\nProse of the cell.\n\n    print(" in plain
    assert "\nsaid default 3.5 {}\n'a string'\n" in plain
    assert plain.index("Only prose") < plain.index("The last words.")
    assert "\x1b" not in plain, "no colours in a file"
    assert ENTER not in plain, "nobody is there to press it"
    assert plain.startswith("small: 11 steps, 3.5 minutes of work.\n")


def test_values_are_shown_as_in_a_notebook(plain):
    after = {cell: plain.split(f"    {cell}\n")[1] for cell in ("None", "silent")}
    assert after["None"].startswith("\n\n    silent = "), "None is nothing to see"
    assert "42" not in plain.split("silent;")[1].split("    silent\n")[0]
    assert after["silent"].startswith("\n42\n")
    assert "\nOwn(x=1)\n" in plain, "what the cells define is found in __main__"
    assert "   number  words\n0       1  short\n1       2  far longer\n" in plain
    assert "\n'as it is'\n[1, 2]\n'it'\n" in plain


def test_the_parameters_are_shown_with_what_they_are_here(tmp_path):
    source = write(tmp_path, "word, more, minutes, run")
    done = walked(source, "--minutes", "0.5", "--run", "mine", "-p", "lr=0.5", "--root", ".")
    assert done.returncode == 0, done.stderr
    assert "    minutes = 0.5" in done.stdout and "# the whole budget" in done.stdout
    assert "('default', {'lr': 0.5}, 0.5, 'mine')" in done.stdout


@pytest.mark.parametrize(("arguments", "words"), [
    (["-p", "lrr=1"], "there is no parameter 'lrr'; did you mean 'lr'?"),
    (["-p", "lr=fast"], "lr must be a number, not 'fast'"),
    (["-p", "lr"], "-p takes name=value, not 'lr'"),
    (["--minutes", "0"], "a budget is a positive number of minutes, not 0"),
    (["--run", "../up"], "a run name is"),
])  # fmt: skip
def test_what_is_impossible_is_refused_before_anything_runs(
    tmp_path, monkeypatch, capsys, arguments, words
):
    source = write(tmp_path, "print('it runs')")
    monkeypatch.setattr("timebox.notebook.find", lambda task: source)
    assert cli.main(["walk", "arc", *arguments]) == cli.USAGE
    out, err = capsys.readouterr()
    assert out == "" and words in err


def test_an_error_points_into_its_cell_and_exits_1(tmp_path):
    source = write(tmp_path, "def f(x):\n    return 1 / x", "y = 0\nf(y)", "print('not here')")
    done = walked(source)
    assert done.returncode == 1
    assert "not here')" not in done.stdout
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].startswith('  File "<cell 3>", line 2, in <module>'), "not a line of ours"
    assert lines[2] == "    f(y)"
    assert '  File "<cell 2>", line 2, in f' in lines
    assert lines[-1] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(("cell", "words"), [
    ("x = (", "SyntaxError"),
    ("import sys\nsys.exit(3)", "SystemExit: 3"),
])  # fmt: skip
def test_a_cell_that_cannot_run_or_leaves_exits_1(tmp_path, cell, words):
    done = walked(write(tmp_path, cell))
    assert done.returncode == 1 and words in done.stderr and "<cell 2>" in done.stderr


def test_a_setting_that_the_notebook_refuses_is_one_line_and_exits_2(tmp_path):
    cell = "from timebox import SettingError\nraise SettingError('size must be small')"
    done = walked(write(tmp_path, cell))
    assert done.returncode == 2
    assert done.stderr == "timebox: size must be small\n"


SESSION = """\
import timebox
from timebox import show
session = timebox.start("arc", minutes=minutes, run=run, root=root, **more)
"""


def test_a_session_that_an_error_cut_short_is_written_down_as_failed(tmp_path):
    source = write(tmp_path, SESSION, "1 / 0")
    done = walked(source, "--run", "r", "--root", str(tmp_path), "--minutes", "1")
    assert done.returncode == 1
    data = json.loads((tmp_path / "submissions" / "r" / "run.json").read_text())
    assert (data["status"], data["error"]) == ("failed", "a cell of the notebook failed")
    assert "submission.json" in data["files"]
    assert f"Results: {tmp_path / 'submissions' / 'r'}" in done.stdout


# --------------------------------------------------------------------------------- at a terminal


def test_enter_goes_on_and_reading_does_not_count(tmp_path):
    """Somebody reads for a second before the clock is made, and for a second after."""
    source = write(
        tmp_path,
        "# ## Wait",
        "# ## More",
        "from timebox.clock import Clock, session_start\n"
        "it = Clock(60, start=session_start())\nprint('begin', it.elapsed())",
        "import time; time.sleep(0.3)\nprint('end', it.elapsed(), it.spent()['total'])",
    )
    began = time.monotonic()
    reader = Reader(command(source))
    assert "time spent reading does not count" in reader.until("[1/4] " + ENTER)
    time.sleep(2.5)
    for number in (2, 3):
        reader.press("\n")
        reader.until(f"[{number}/4] {ENTER}")
        time.sleep(0.3)
    begin = float(re.search(r"begin ([\d.]+)", reader.seen)[1])
    time.sleep(1.2)
    reader.press("\n")
    status, seen = reader.rest()
    wall = time.monotonic() - began
    end, total = map(float, re.search(r"end ([\d.]+) ([\d.]+)", seen).groups())
    assert status == 0 and "[4/4]" not in seen, "nothing is asked after the last cell"
    assert 0.3 <= end - begin < 1.2, "the second that somebody read is not in it"
    assert end < wall - 2.5, "the start of a process is only known to a second"
    assert total == pytest.approx(end, abs=0.05)


@pytest.mark.parametrize("keys", ["q\n", "\x04", "\x03"])
def test_q_or_the_end_of_input_or_an_interrupt_ends_the_walk(tmp_path, keys):
    source = write(tmp_path, "print('not yet')", "print('never')")
    reader = Reader(command(source))
    reader.until(ENTER)
    reader.press("\n")
    assert "not yet" in reader.until("[2/3] " + ENTER)
    reader.press(keys)
    status, seen = reader.rest()
    assert status == 0 and "The walk ends here." in seen
    assert "never" not in seen and "Traceback" not in seen


def test_what_was_typed_while_a_cell_ran_does_not_answer(tmp_path):
    source = write(tmp_path, "import time\nprint('run' + 'ning')\ntime.sleep(1)", "print('next')")
    reader = Reader(command(source))
    reader.until(ENTER)
    reader.press("\n")
    reader.until("running")
    reader.press("\n\n\nq\n")
    reader.until("[2/3] " + ENTER)
    assert "\nnext\n" not in reader.listen(1.0)
    reader.press("\n")
    status, seen = reader.rest()
    assert status == 0 and "\nnext\n" in seen


def test_colours_are_for_terminals_that_want_them(tmp_path):
    source = write(tmp_path, "3")
    reader = Reader([*command(source), "--no-pause"])
    status, seen = reader.rest()
    assert status == 0 and ENTER not in seen
    assert "\x1b[1mstrong\x1b[22m" in seen and "\x1b[2m    3\x1b[22m" in seen
    status, seen = Reader([*command(source), "--no-pause"], NO_COLOR="1").rest()
    assert status == 0 and "\x1b" not in seen
    assert not terminal(TERM="dumb").colour and not Terminal(io.StringIO(), {}).colour


def test_a_walk_that_is_ended_leaves_a_run_that_was_stopped(tmp_path):
    source = write(tmp_path, SESSION + "show.schedule(session)", "timebox.fit(session)['status']")
    place = ["--run", "r", "--root", str(tmp_path), "--minutes", "1"]
    reader = Reader(command(source, *place))
    reader.until(ENTER)
    reader.press("\n")
    seen = reader.until("[2/3] " + ENTER, 60)
    assert "Learning rate, trains from" in seen and "share of the peak rate" in seen
    reader.press("q\n")
    status, seen = reader.rest()
    folder = tmp_path / "submissions" / "r"
    assert status == 0 and f"Results: {folder}" in seen
    assert "schedule.png" in seen and "submission.json" in seen
    data = json.loads((folder / "run.json").read_text())
    assert (data["status"], data["reason"], data["error"]) == ("stopped", "signal", None)


def test_an_interrupt_while_it_trains_ends_the_training_and_the_walk_goes_on(tmp_path):
    source = write(tmp_path, SESSION, "result = timebox.fit(session)", "print('reason', result)")
    place = ["--run", "r", "--root", str(tmp_path), "--minutes", "2", "--no-pause"]
    reader = Reader(command(source, *place, "-p", "grace_seconds=2", "-p", "log_every_seconds=0.1"))
    reader.until("deadline in", 60)
    reader.press("\x03")
    status, seen = reader.rest()
    assert status == 0 and "'status': 'stopped', 'reason': 'signal'" in seen
    assert "To continue:\n  timebox run arc" in seen


# ------------------------------------------------------------------------------ in this process


def test_the_clock_stands_still_in_a_pause_and_only_there():
    it = clock.Clock(100)
    before, wall = it.elapsed(), time.monotonic()
    with clock.paused():
        time.sleep(0.2)
        within = it.elapsed()
        with clock.paused():  # a pause in a pause is the same one
            time.sleep(0.1)
    after, wall = it.elapsed(), time.monotonic() - wall
    assert wall >= 0.3
    assert within - before < 0.1 and after - before < wall - 0.25
    time.sleep(0.05)
    assert it.elapsed() - after >= 0.05


def test_a_start_before_the_pause_lies_later_by_it(monkeypatch):
    monkeypatch.setenv("TIMEBOX_START", repr(time.time() - 20 - clock.paused_seconds()))
    start = clock.session_start()
    with clock.paused():
        time.sleep(0.2)
    assert clock.session_start() - start == pytest.approx(0.2, abs=0.1)
    it = clock.Clock(100, start=clock.session_start())
    assert it.elapsed() == pytest.approx(20, abs=0.15)


def test_every_notebook_can_be_walked_through():
    for source in sorted(notebook.folder().glob("*.py")):
        steps = walk.Walk(source, {}, Terminal(io.StringIO())).steps
        assert len(steps) > 5 and all(prose or cell for prose, cell in steps)


def test_an_unknown_parameter_is_refused(tmp_path):
    with pytest.raises(SettingError, match="parameter of small.py 'worrd'; did you mean 'word'"):
        walk.Walk(write(tmp_path, "1"), {"worrd": "x"}, Terminal(io.StringIO()))


class Tty(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def terminal(**environment: str) -> Terminal:
    return Terminal(Tty(), {"TERM": "xterm", **environment})


def drawn(path: Path, text: str = ""):
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2])
    return picture(figure, path, "two points", text)


def test_a_picture_is_shown_by_the_best_that_a_terminal_has(tmp_path):
    path = tmp_path / "p.png"
    with_text, without = drawn(path, "1 to 2"), drawn(path)
    file = Terminal(io.StringIO(), {})
    assert file.value(with_text) == "1 to 2"
    assert file.value(without) == f"[picture] two points: {path}"
    assert terminal().value(with_text) == "1 to 2"
    assert "▀" in terminal().value(without) and "38;2;" in terminal().value(without)
    for value in (with_text, without):
        kitty = terminal(TERM="xterm-kitty").value(value)
        assert kitty.startswith("\x1b_Ga=T,f=100,q=2,c=") and kitty.endswith("\x1b\\")
        assert all(len(part) < 4200 for part in kitty.split("\x1b_G"))
        assert terminal(TERM_PROGRAM="iTerm.app").value(value).startswith("\x1b]1337;File=inline=1")
    assert terminal(TERM="xterm-kitty", TMUX="x").value(with_text) == "1 to 2"
    assert terminal(TERM="xterm-kitty", NO_COLOR="1").value(with_text) == "1 to 2"
    figure = Figure(figsize=(1, 1))
    assert file.value(figure) == "[picture]"


def test_half_blocks_have_the_colours_of_the_pixels():
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20], pixels[20:] = (255, 0, 0), (0, 0, 255)  # red above blue
    png = io.BytesIO()
    imsave(png, pixels, format="png")
    lines = half_blocks(png.getvalue(), 3).splitlines()
    assert lines == ["\x1b[38;2;255;0;0;48;2;0;0;255m▀▀▀\x1b[0m"]
    assert len(half_blocks(png.getvalue(), 60).splitlines()) == 20


def test_markdown_becomes_text_that_fits(tmp_path):
    plain = Terminal(io.StringIO(), {})
    prose = plain.prose
    long = prose("word " * 60)
    assert max(map(len, long.splitlines())) <= 80
    assert (
        prose("a `b_c_d` and snake_case_name 2 * 3 * 4") == "a b_c_d and snake_case_name 2 * 3 * 4"
    )
    assert prose("a_b_ stays, _this_ does not") == "a_b_ stays, this does not"
    assert prose("### Small\ntext") == "Small\n\ntext"
    assert prose("1. one\n2. two\n   goes on") == "  1. one\n  2. two goes on"
    assert prose("```python\nx = 1\n\ny = 2\n```\nafter") == "    x = 1\n\n    y = 2\n\nafter"
    assert prose("| a | b |\n|---|--:|\n| long | 1 |") == "a     b\nlong  1"
    assert prose("> said\n> so") == "│ said so"
    assert prose("![a plot](x.png) and <https://example.org>") == (
        "[picture: a plot] and https://example.org"
    )
    assert prose(r"$(3n+1)/2$ and $2^{40} \le 10$, 5$ or 6$") == (
        "(3n+1)/2 and 2^40 ≤ 10, 5$ or 6$"
    )
    assert prose("see [below](#part) <!-- hidden -->") == "see below"


def test_a_table_is_whole_and_fits_the_width():
    plain = Terminal(io.StringIO(), {})
    wide = pd.DataFrame(np.arange(60).reshape(2, 30), columns=[f"column {k}" for k in range(30)])
    text = plain.value(wide)
    assert "column 29" in text and max(map(len, text.splitlines())) <= 80
    assert plain.value(pd.DataFrame({"x": range(50)})).count("\n") == 50
    assert plain.value(pd.DataFrame({"x": range(5000)})).count("\n") < 70
    assert plain.value(pd.Series([1, 2], name="y")).startswith("0    1\n1    2")
    assert "Empty DataFrame" in plain.value(pd.DataFrame())
    two = pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", "x"), ("a", "y")]))
    assert "x" in plain.value(two)
    assert plain.value("text") == "'text'" and plain.value({"a": 1}) == "{'a': 1}"
    assert "DataFrame" in plain.value(pd.DataFrame)


def test_words_in_a_table_are_wrapped_and_numbers_are_not():
    frame = pd.DataFrame(
        {"share": ["1.5%", "20.0%"], "count": [7, 1234], "what it is": ["", "long words " * 12]},
        index=pd.Index(["a", "b"], name="file"),
    )
    first, second, third, *more = Terminal(io.StringIO(), {}).value(frame).splitlines()
    assert first == "file  share  count  what it is"
    assert second == "a      1.5%      7"
    assert third.startswith("b     20.0%   1234  long words long words") and len(third) <= 80
    assert more and all(line.startswith(" " * 20) for line in more)
    assert " ".join([third[20:], *more]).split().count("words") == 12
    same = pd.DataFrame([[1, 2.5]], columns=["x", "x"])  # columns of one name
    assert Terminal(io.StringIO(), {}).value(same) == "   x    x\n0  1  2.5"


def test_long_code_is_cut_and_says_so():
    text = Terminal(io.StringIO(), {}).code("\n".join(f"x{k} = {k}" for k in range(40)))
    assert text.splitlines()[-1] == "    ... (25 more lines)" and len(text.splitlines()) == 16


# ------------------------------------------------------------------------------------ real tasks


@pytest.mark.slow
@pytest.mark.parametrize(
    "task", [n for n in tasks.names() if (notebook.folder() / f"{n}.py").exists()]
)
def test_the_notebook_of_a_task_is_walked_to_its_end(tmp_path, task):
    """A budget of seconds and a few steps: everything is shown, nothing is drawn in vain."""
    arguments = ["walk", task, "--no-pause", "--minutes", "0.7", "--run", "r", "-p", "max_steps=4"]
    done = subprocess.run(
        [sys.executable, "-m", "timebox", *arguments, "--root", str(tmp_path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "submissions" / "r"
    data = json.loads((folder / "run.json").read_text())
    assert (data["status"], data["reason"]) == ("finished", "steps")
    for words in ("Learning rate, trains from", "went into training steps", f"Results: {folder}"):
        assert words in done.stdout
    for path in folder.glob("*.png"):
        assert path.name in data["files"], "what was drawn is in the record"
