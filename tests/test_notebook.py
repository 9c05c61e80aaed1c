"""Notebooks are run to their end, their error or their deadline; and the pairs agree.

Real kernels and real signals. A kernel costs two seconds, so each test asks several questions.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from timebox import notebook
from timebox.notebook import Outcome, check, execute, find, main, parameters, read, sync
from timebox.settings import SettingError

HEADER = """\
# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
"""
PARAMETERS = '# %% tags=["parameters"]\nword: str = "default"  # printed\ncount: int = 1\n'


def write(folder: Path, *cells: str, name: str = "small.py", first: str = PARAMETERS) -> Path:
    """A percent-format notebook of a parameters cell and `cells`."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("\n".join([HEADER, first, *(f"# %%\n{cell}\n" for cell in cells)]))
    return path


class Heard:
    """A stream that remembers when it heard what, and does something at the first `cue`."""

    def __init__(self, cue: str = "", then=None):
        self.said: list[tuple[float, str]] = []
        self.waiting = ""
        self.cue, self.then = cue, then

    def write(self, text: str) -> None:
        self.waiting += text

    def flush(self) -> None:
        text, self.waiting = self.waiting, ""
        self.said += [(time.monotonic(), line) for line in text.splitlines()]
        if self.then and self.cue in text:
            then, self.then = self.then, None
            then()

    @property
    def lines(self) -> list[str]:
        return [line for _, line in self.said]


def run(source: Path, tmp_path: Path, seconds=60.0, stream=None, request_stop=None, **values):
    """Execute `source`; its Outcome, the saved notebook and what was heard."""
    heard = stream or Heard()
    output = tmp_path / "run" / "notebook.ipynb"
    outcome = execute(
        source,
        output,
        values,
        deadline=time.time() + seconds,
        request_stop=request_stop or (lambda why: None),
        stream=heard,
    )
    return outcome, nbformat.read(output, as_version=4) if output.is_file() else None, heard


def outputs(saved) -> str:
    return "".join(o.get("text", "") for c in saved.cells for o in c.get("outputs", ()))


@pytest.fixture
def signals():
    """Handlers of our own for SIGTERM and SIGINT, which must be back in place at the end."""
    stray: list[int] = []

    def note(number, frame):
        stray.append(number)

    before = {n: signal.signal(n, note) for n in (signal.SIGTERM, signal.SIGINT)}
    yield
    assert all(signal.getsignal(n) is note for n in before), "the handlers were not restored"
    for number, handler in before.items():
        signal.signal(number, handler)
    assert not stray, "a signal arrived while nobody supervised the notebook"


def processes_with(word: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        alive = process.info["status"] != psutil.STATUS_ZOMBIE
        if alive and word in " ".join(process.info["cmdline"] or ()):
            found.append(process)
    return found


# ---------------------------------------------------------------------------------------- running


def test_a_notebook_runs_with_its_parameters_and_says_live_what_it_prints(
    tmp_path, monkeypatch, signals
):
    """Under this interpreter, though the user has a broken kernelspec of the same name, though
    the first kernel dies while starting, and though a cell prints thousands of lines."""
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    argv = {"argv": ["/bin/false"], "display_name": "broken", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(argv))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, pathlib, sys\n"
        f"mark = pathlib.Path({str(tmp_path / 'mark')!r})\n"
        "if 'ipykernel_launcher' in sys.orig_argv and not mark.exists():\n"
        "    mark.touch()\n"
        "    os._exit(1)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(site))
    source = write(
        tmp_path / "notebooks",
        "import sys, time\nprint(word, count, sys.executable)\ntime.sleep(0.6)\nprint('later')",
        "import timebox\nfor i in range(101):\n    print(f'{i}%', end='\\r')\nprint()",
        "for i in range(3000):\n    print('chatty', i, flush=True)\ncount + 1",
    )
    before = source.read_bytes()
    outcome, saved, heard = run(source, tmp_path, word="given")

    assert outcome == Outcome("completed")
    assert heard.lines[0] == "The kernel died while starting; trying again"
    assert heard.lines[1:4] == [f"given 1 {sys.executable}", "later", "100%"]
    assert heard.lines[-1] == "chatty 2999" and len(heard.lines) == 3004
    assert heard.said[2][0] - heard.said[1][0] > 0.3, "the first line came only with the second"
    assert saved.metadata.kernelspec == notebook.KERNELSPEC
    assert set(saved.metadata) == {"kernelspec", "language_info"}
    assert str(tmp_path) not in json.dumps([saved.metadata, [c.metadata for c in saved.cells]])
    assert saved.cells[-1].outputs[-1].data["text/plain"] == "2"
    assert sum(len(c.get("outputs", ())) for c in saved.cells) == 4, "streams are not merged"
    assert source.read_bytes() == before
    assert [p.name for p in source.parent.iterdir()] == ["small.py"]


def test_an_error_in_a_cell_is_said_in_one_line_and_the_notebook_is_saved(tmp_path, signals):
    source = write(tmp_path / "notebooks", "raise ValueError('not\\nlike this')", "print('after')")
    outcome, saved, heard = run(source, tmp_path)
    assert (outcome.status, outcome.reason) == ("failed", "error")
    assert outcome.error.startswith("ValueError: not ... (cell [2]: raise ValueError(")
    assert heard.lines == [], "a traceback is for the notebook alone"
    assert any(o.output_type == "error" for c in saved.cells for o in c.get("outputs", ()))
    assert "after" not in outputs(saved)


def test_leaving_with_sys_exit_is_no_success_and_a_bad_place_to_save_no_failure(tmp_path):
    """Papermill skips the other cells and reports success. And whoever reads our lines may go
    away, and the notebook may be impossible to save: neither must end a run of hours."""

    class Gone(Heard):
        def flush(self):
            super().flush()
            raise BrokenPipeError

    source = write(tmp_path / "notebooks", "import sys\nsys.exit(0)", "print('after')")
    (tmp_path / "run" / "notebook.ipynb" / "in the way").mkdir(parents=True)
    outcome, saved, heard = run(source, tmp_path, stream=Gone())
    assert outcome == Outcome("failed", "error", "SystemExit: 0 (cell [2]: import sys)")
    assert saved is None and "notebook.ipynb could not be written" in heard.lines[0]


def test_the_children_of_a_dead_kernel_die_too(tmp_path, signals):
    """Also a child that left the kernel's process group, as the workers of several GPUs do."""
    source = write(
        tmp_path / "notebooks",
        "import os, subprocess, sys\n"
        "sleep = [sys.executable, '-c', 'import time; time.sleep(600)', word]\n"
        "subprocess.Popen(sleep)\nsubprocess.Popen(sleep, start_new_session=True)\n"
        "print('as far as it came', flush=True)",
        "os._exit(3)",
    )
    outcome, saved, _ = run(source, tmp_path, word=str(tmp_path))
    assert outcome == Outcome(
        "failed", "error", "the notebook's kernel died: exit code 3 (cell [4]: os._exit(3))"
    )
    assert "as far as it came" in outputs(saved) and "ended here: the noteb" in outputs(saved)
    time.sleep(0.2)
    assert processes_with(str(tmp_path)) == []


def test_a_kernel_that_never_starts_is_given_up_after_three_tries(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'ipykernel_launcher' in sys.orig_argv:\n    os._exit(1)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    source = write(tmp_path / "notebooks", "print('never')")
    outcome, _, heard = run(source, tmp_path)
    assert outcome.status == "failed" and "kernel did not start" in outcome.error
    assert heard.lines == 2 * ["The kernel died while starting; trying again"]


def test_a_notebook_that_runs_past_its_deadline_is_ended_before_it(tmp_path, signals):
    source = write(
        tmp_path / "notebooks",
        "import os, signal, subprocess, sys, time\n"
        "for number in (2, 15):\n    signal.signal(number, signal.SIG_IGN)  # deaf\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', word])\n"
        "print('seen', flush=True)\ntime.sleep(600)",
        "print('after')",
    )
    began = time.monotonic()
    outcome, saved, _ = run(source, tmp_path, seconds=5, word=str(tmp_path))
    assert 3.9 < time.monotonic() - began < 5
    assert outcome == Outcome("killed", "deadline", notebook.DEADLINE)
    assert "seen\n" in outputs(saved) and notebook.DEADLINE in outputs(saved)
    assert saved.cells[-1].execution_count is None
    time.sleep(0.2)
    assert processes_with(str(tmp_path)) == []


def test_the_first_signal_asks_the_run_to_stop_and_lets_the_notebook_end(tmp_path, signals):
    stop = tmp_path / "stop"
    source = write(
        tmp_path / "notebooks",
        "import pathlib, time\nprint('training', flush=True)\n"
        "while not pathlib.Path(word).exists():\n    time.sleep(0.02)\n"
        "time.sleep(0.5)\nprint('saved and exported')",
        "print('the last cell')",
    )

    def twice():  # schedulers repeat themselves; that is not a second Ctrl-C
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    asked = []
    outcome, saved, heard = run(
        source,
        tmp_path,
        stream=Heard("training", twice),
        request_stop=lambda why: (asked.append(why), stop.touch()),
        word=str(stop),
    )
    assert outcome == Outcome("completed", "signal")
    assert asked == ["signal"]
    assert heard.lines[1].startswith("Stopping: ")
    assert heard.lines[2:] == ["saved and exported", "the last cell"]
    assert "the last cell" in outputs(saved)


def test_the_second_interrupt_ends_the_kernel_at_once(tmp_path, signals):
    source = write(
        tmp_path / "notebooks", "import time\nprint('deaf', flush=True)\ntime.sleep(600)"
    )
    heard = Heard("deaf", lambda: os.kill(os.getpid(), signal.SIGINT))
    asked = []

    def again(why):
        asked.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    outcome, saved, _ = run(source, tmp_path, stream=heard, request_stop=again)
    assert outcome == Outcome("killed", "signal", notebook.SECOND_SIGINT)
    assert time.monotonic() - asked[0] < 3
    assert "deaf\n" in outputs(saved)


def test_an_unknown_parameter_is_refused_before_anything_is_started(tmp_path):
    source = write(tmp_path / "notebooks", "print(word)")
    with pytest.raises(SettingError, match=r"parameter of small.py 'wrod'; did you mean 'word'"):
        run(source, tmp_path, wrod="x")
    assert not (tmp_path / "run").exists()


def test_the_output_is_never_written_beside_the_source(tmp_path):
    source = write(tmp_path / "notebooks", "print(word)")
    with pytest.raises(SettingError, match="beside its source"):
        execute(
            source, source.with_suffix(".ipynb"), {}, deadline=time.time() + 9, request_stop=print
        )


def test_importing_the_runner_does_not_import_torch():
    """`timebox run` answers a wrong name at once, and leaves the time to the kernel's import."""
    code = "import sys, timebox.notebook, timebox.kernel; sys.exit('torch' in sys.modules)"
    path = str(Path(notebook.__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})


# ---------------------------------------------------------------------------- finding and reading


def test_a_notebook_is_found_by_the_name_of_its_task():
    tasks = sorted(path.stem for path in notebook.folder().glob("*.py"))
    assert tasks and find(tasks[0]) == notebook.folder() / f"{tasks[0]}.py"
    with pytest.raises(SettingError, match="did you mean"):
        find(tasks[0] + "x")


def test_reading_gives_tags_kernelspec_and_the_same_ids_every_time(tmp_path):
    source = write(tmp_path, "1 + 1", "1 + 1")
    first, second = read(source), read(source)
    nbformat.validate(first)
    assert first == second
    assert first.metadata.kernelspec == notebook.KERNELSPEC
    assert first.cells[0].metadata == {"tags": ["parameters"]}
    assert len({cell.id for cell in first.cells}) == 3


def cell(text: str, tmp_path: Path):
    return read(write(tmp_path, first=f'# %% tags=["parameters"]\n{text}\n'))


def test_parameters_are_read_with_type_default_and_help(tmp_path):
    text = (
        "# the budget\nminutes: float = 5  # the whole budget; it counts everything\n"
        'run: str = ""\nmore: dict = {"lr": 0.1}  # any other\nlimit: int | None = None\n'
        "negative: int = -1"
    )
    assert parameters(cell(text, tmp_path)) == {
        "minutes": (float, 5, "the whole budget; it counts everything"),
        "run": (str, "", ""),
        "more": (dict, {"lr": 0.1}, "any other"),
        "limit": (int | None, None, ""),
        "negative": (int, -1, ""),
    }


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("steps: int = 60 * 10", "line 1 .* 'steps: int = 60 \\* 10', is not a literal"),
        ("a: int = 1\nimport os", "line 2 .* 'import os', is not of the form"),
        ("steps = 600", "is not of the form"),
        ("steps: int = 0.5", "default that is not of its type"),
        ("steps: int = True", "default that is not of its type"),
        ("steps: Steps = 1", "something else than a plain type"),
        ("a: int = 1\na: int = 2", "line 2 .* a second time"),
    ],
)
def test_a_parameters_cell_with_anything_else_in_it_is_refused(text, complaint, tmp_path):
    with pytest.raises(ValueError, match=complaint):
        parameters(cell(text, tmp_path))


def test_a_notebook_without_a_parameters_cell_is_refused(tmp_path):
    source = write(tmp_path / "notebooks", "1", first="# %%\n2\n")
    with pytest.raises(ValueError, match="small.py: .* has 0"):
        run(source, tmp_path)


# ------------------------------------------------------------------------------------------ pairs


def edit(path: Path, change) -> None:
    pair = nbformat.read(path, as_version=4)
    change(pair)
    nbformat.write(pair, path)


def test_a_written_pair_agrees_and_is_the_same_bytes_every_time(tmp_path, capsys):
    write(tmp_path, "print(word)")
    sync(tmp_path)
    pair = tmp_path / "small.ipynb"
    first = pair.read_bytes()
    assert check(tmp_path) == []
    pair.unlink()
    sync(tmp_path)
    assert pair.read_bytes() == first
    assert "wrote" in capsys.readouterr().out
    sync(tmp_path)
    assert capsys.readouterr().out == "", "nothing changed, so nothing is written"


def test_check_says_which_cell_of_which_pair_differs(tmp_path, capsys):
    write(tmp_path, "print(word)", "2")
    pair = tmp_path / "small.ipynb"

    def complaints(change) -> str:
        sync(tmp_path)
        edit(pair, change)
        found = "\n".join(check(tmp_path))
        pair.unlink()
        return found

    assert "cell 2 ('print(count)') differs from small.py ('print(word)')" in complaints(
        lambda nb: nb.cells[1].update(source="print(count)")
    )
    assert "cell 3 ('2') is markdown, in small.py it is code" in complaints(
        lambda nb: nb.cells.__setitem__(2, nbformat.v4.new_markdown_cell("2", id=nb.cells[2].id))
    )
    assert "cell 1 ('word: str" in complaints(lambda nb: nb.cells[0].metadata.clear())
    assert "kernelspec" in complaints(lambda nb: nb.metadata.clear())
    assert "has 2 cells, small.py has 3" in complaints(lambda nb: nb.cells.pop())
    assert "cell 2 ('print(word)') holds outputs" in complaints(
        lambda nb: nb.cells[1].update(execution_count=4)
    )
    assert "has the id 'other'" in complaints(lambda nb: nb.cells[1].update(id="other"))
    assert "holds more" in complaints(lambda nb: nb.metadata.update(papermill={"path": "x"}))
    assert check(tmp_path) == ["small.py has no small.ipynb"]
    assert main(["check", str(tmp_path)]) == 1
    assert "make notebooks" in capsys.readouterr().err


def test_an_edited_source_replaces_its_pair_even_if_that_is_newer(tmp_path):
    """Jupytext goes by the time of change: after a checkout it reverts the edited .py."""
    source = write(tmp_path, "print(word)", "print('old')")
    sync(tmp_path)
    text = source.read_text().replace("'old'", "'new'")
    source.write_text(text)
    os.utime(source, (0, 0))
    sync(tmp_path)
    assert source.read_text() == text and "'new'" in (tmp_path / "small.ipynb").read_text()


def test_an_edit_made_in_jupyter_is_kept_until_somebody_decides(tmp_path, capsys):
    source = write(tmp_path, "print(word)", "print('old')")
    sync(tmp_path)
    pair = tmp_path / "small.ipynb"
    edit(pair, lambda nb: nb.cells[2].update(source="print('edited')"))
    edit(pair, lambda nb: nb.cells.append(nbformat.v4.new_markdown_cell("# Added\ntext")))
    edited, before = pair.read_bytes(), source.read_bytes()

    assert main(["sync", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert """cell 3 ("print('edited')"), cell 4 ('# Added')""" in error and "--from-ipynb" in error
    assert pair.read_bytes() == edited and source.read_bytes() == before

    assert main(["sync", str(tmp_path), "--from-ipynb"]) == 0
    assert [c.source for c in read(source).cells][1:] == [
        "print(word)", "print('edited')", "# Added\ntext"
    ]  # fmt: skip
    assert source.read_text().startswith(HEADER) and "tags=" in source.read_text()
    assert check(tmp_path) == []


def test_a_pair_that_was_run_and_saved_in_jupyter_loses_only_its_outputs(tmp_path):
    write(tmp_path, "print(word)")
    sync(tmp_path)
    pair = tmp_path / "small.ipynb"
    clean = pair.read_bytes()
    out = nbformat.v4.new_output("stream", text="default\n")
    edit(pair, lambda nb: nb.cells[1].update(outputs=[out], execution_count=1))
    sync(tmp_path)
    assert pair.read_bytes() == clean


def test_a_pair_without_source_and_a_damaged_pair_are_named(tmp_path):
    write(tmp_path, "1")
    sync(tmp_path)
    (tmp_path / "other.ipynb").write_bytes((tmp_path / "small.ipynb").read_bytes())
    assert check(tmp_path) == ["other.ipynb has no other.py"]
    (tmp_path / "small.ipynb").write_text("{}")
    assert any("small.ipynb is not a notebook" in problem for problem in check(tmp_path))
