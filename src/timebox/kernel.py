"""One Jupyter kernel of this interpreter, and papermill's talk with it.

Papermill runs a notebook cell by cell but leaves much to its caller: the kernel is whatever
kernelspec the user has under the name, a chatty cell ends the run, a dead kernel leaves its
children behind, and a file that is being saved is for a moment half a file. This module closes
those gaps; `timebox.notebook.execute` supervises it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sysconfig
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import nbformat
import papermill
import psutil
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines

from timebox import files

STARTS = 3  # two of some hundred kernels die while starting: ports are taken by somebody else
IOPUB_SECONDS = 60  # how long to wait for the last words of a cell that printed a lot

# What nbclient and papermill report is said by the outcome, in one sentence.
_log = logging.getLogger("timebox.kernel")
_log.setLevel(logging.CRITICAL)


class OwnKernel(AsyncKernelManager):
    """A kernel of `sys.executable`, whatever kernelspecs and IPython profiles the user has."""

    home = ""  # a folder of its own, for the connection file and IPython

    @property
    def kernel_spec(self) -> KernelSpec:
        package = str(Path(__file__).parents[1])
        path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if package not in (*path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
            path = [package, *path]
        environment = {
            "PYTHONPATH": os.pathsep.join(p for p in path if p),
            "IPYTHONDIR": self.home,
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        escaped = {name: value.replace("$", "$$") for name, value in environment.items()}
        spec = get_kernel_dict(extra_arguments=["--log-level=50"])
        return KernelSpec(**{**spec, "env": escaped})


class Lines:
    """Passes on text as plain whole lines; the rewritten line of a progress bar only once."""

    def __init__(self, stream: TextIO):
        self.stream: TextIO | None = stream
        self.rest = ""

    def write(self, text: str) -> None:
        *lines, self.rest = (self.rest + text).replace("\r\n", "\n").split("\n")
        self._pass_on("".join(line.rsplit("\r", 1)[-1] + "\n" for line in lines))

    def flush(self) -> None:
        """Lines are passed on when they are whole, so there is nothing to do."""

    def close(self) -> None:
        """Pass on the last line, which may have no end."""
        rest, self.rest = self.rest.rsplit("\r", 1)[-1], ""
        self._pass_on(rest + "\n" if rest else "")

    def _pass_on(self, text: str) -> None:
        if not text or self.stream is None:
            return
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError):
            self.stream = None  # a reader that went away (`| head`) must not end the run


class Run:
    """One execution of a notebook in a thread; `done` is set at its end.

    The executed notebook is saved to `output` before and after each cell and every 30 seconds
    in between, whole each time. Then `ran_all` says whether every cell ran, `error` why not.
    """

    def __init__(self, notebook: Any, output: Path, parameters: dict[str, Any], stream: TextIO):
        self.notebook, self.output, self.parameters = notebook, output, parameters
        self.lines = Lines(stream)
        self.done = threading.Event()
        self.ran_all = False
        self.error: str | None = None
        self.killed: str | None = None
        self.executed: Any = None  # the notebook with its outputs, as far as it is
        self.current = 0  # index of the cell that runs
        self.client: PapermillNotebookClient | None = None
        self._home = tempfile.TemporaryDirectory(prefix="timebox-", ignore_cleanup_errors=True)
        self._group: int | None = None  # process id of the kernel, which leads its own group
        self._process: Any = None
        self._disk_full = False
        self._saving = threading.Lock()

    def start(self) -> None:
        """Begin, in a thread of its own, so that the main thread is free for signals and time."""
        papermill_engines.register("timebox", _Engine)
        threading.Thread(target=self._run, name="notebook", daemon=True).start()

    def kill(self, why: str) -> None:
        """End the kernel and all its children now; safe to call again until `done`."""
        self.killed = self.killed or why
        self._kill_processes()
        task = self.client.task_poll_for_reply if self.client else None
        if task is not None and not task.done():
            # The client would notice the death only within a second.
            with suppress(RuntimeError):
                task.get_loop().call_soon_threadsafe(task.cancel)

    def close(self) -> None:
        """Leave no process and no temporary file behind."""
        self._kill_processes()
        self.lines.close()
        self._home.cleanup()

    def save(self, note: str = "") -> None:
        """Write the notebook as far as it is, with `note` under the cell that was running."""
        if self.executed is None:
            return
        with self._saving:
            if note:
                cell = self.executed.cells[self.current]
                if cell.cell_type == "code":
                    text = f"The notebook was ended here: {note}\n"
                    out = nbformat.v4.new_output("stream", name="stderr", text=text)
                    cell.outputs.append(out)
            try:
                files.write_text(self.output, nbformat.writes(_clean(self.executed)))
                self._disk_full = False
            except OSError as error:
                if not self._disk_full:
                    self.lines.write(f"WARNING: {self.output.name} could not be written: {error}\n")
                self._disk_full = True

    def _run(self) -> None:
        try:
            for attempt in range(1, STARTS + 1):
                self.error, self.client = None, None
                try:
                    self._execute()
                except Exception as error:  # a dead kernel is a bare RuntimeError of nbclient
                    self.error = f"{self._why_dead(error)}{self._where()}"
                    self._end_tasks()
                    if self.client is None or not self.client.code_cells_executed:
                        self.error = f"the notebook's kernel did not start: {_first_line(error)}"
                        if attempt < STARTS and not self.killed:
                            self.lines.write("The kernel died while starting; trying again\n")
                            self._kill_processes()
                            continue
                    self.save(self.killed or self.error)
                break
        except BaseException as error:  # the thread must never end without a word
            self.error = f"{type(error).__name__}: {_first_line(error)}"
        finally:
            self.done.set()

    def _execute(self) -> None:
        try:
            papermill.execute_notebook(
                self.notebook,
                None,  # saved by us: papermill's own file is for a moment half a file
                parameters=self.parameters,
                engine_name="timebox",
                progress_bar=False,
                run=self,
            )
        except papermill.PapermillExecutionError:
            self.save()  # with papermill's mark above the cell that failed
        for index, cell in enumerate(self.executed.cells):
            for output in cell.get("outputs", ()):
                if output.output_type == "error":  # papermill takes sys.exit(0) for success
                    self.ran_all, self.current = False, index
                    self.error = f"{output.ename}: {_message(output)}{self._where()}"
                    return

    def _where(self) -> str:
        if self.executed is None:
            return ""
        cells = self.executed.cells[: self.current + 1]
        number = sum(cell.cell_type == "code" for cell in cells)
        lines = [line.strip() for line in cells[-1].source.splitlines() if line.strip()] or [""]
        return f" (cell [{number}]: {lines[0][:80]})"

    def _why_dead(self, error: Exception) -> str:
        code = self._process.poll() if self._process else None
        how = _first_line(error) if code is None else f"exit code {code}"
        if code is not None and code < 0:
            how = f"signal {-code}" + (", perhaps for want of memory" if code == -9 else "")
        return f"the notebook's kernel died: {how}"

    def _end_tasks(self) -> None:
        # nbclient leaves its watch over a dead kernel to the garbage collector, which complains.
        task = self.client.task_poll_for_reply if self.client else None
        if task is not None:
            loop = task.get_loop()
            left = asyncio.all_tasks(loop)
            for other in left:
                other.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))

    def _kill_processes(self) -> None:
        """End the kernel's group; of a dead kernel also the children that had left the group."""
        if self._group is None:
            return
        if not self.ran_all:
            for process in psutil.process_iter():
                with suppress(psutil.Error, OSError):
                    if process.environ().get("IPYTHONDIR") == self._home.name:
                        process.kill()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._group, signal.SIGKILL)

    def _kernel(self) -> OwnKernel:
        folder = Path(self._home.name)
        kernel = OwnKernel(connection_file=str(folder / "kernel.json"), shutdown_wait_time=2.0)
        kernel.home = str(folder)
        return kernel

    def _started(self, kernel: OwnKernel) -> None:
        self._group = kernel.provisioner.pid
        self._process = kernel.provisioner.process
        if self.killed:  # while it was being started
            self._kill_processes()


class _Client(PapermillNotebookClient):
    run: Run

    def start_new_kernel(self, **kwargs):
        super().start_new_kernel(**kwargs)
        self.run._started(self.km)

    def papermill_execute_cells(self):
        super().papermill_execute_cells()
        self.run.ran_all = True


class _Manager(NotebookExecutionManager):
    run: Run

    def cell_start(self, cell, cell_index=None, **kwargs):
        self.run.current = cell_index
        super().cell_start(cell, cell_index, **kwargs)

    def save(self, **kwargs):
        self.run.executed = self.nb
        self.run.save()
        self.last_save_time = self.now()


class _Engine(NBClientEngine):
    @classmethod
    def execute_notebook(cls, nb, kernel_name, *, run: Run, **_):
        manager = _Manager(nb, progress_bar=False)
        manager.run = run
        manager.notebook_start()
        try:
            client = run.client = _Client(
                manager,
                km=run._kernel(),
                raise_on_iopub_timeout=False,
                iopub_timeout=IOPUB_SECONDS,
                coalesce_streams=True,
                record_timing=False,
                stdout_file=run.lines,
                stderr_file=run.lines,
                log=_log,
            )
            client.run = run
            client.execute(cleanup_kc=True)
        finally:
            manager.notebook_complete()
        return nb


def _clean(notebook: Any) -> Any:
    """`notebook` without papermill's notes: they hold paths, and call every cell completed."""

    def metadata(node: Any, *names: str) -> Any:
        kept = {n: node.metadata[n] for n in names if node.metadata.get(n)}
        return nbformat.from_dict({**node, "metadata": kept})

    clean = metadata(notebook, "kernelspec", "language_info", "widgets")
    clean.cells = [metadata(cell, "tags") for cell in notebook.cells]
    return clean


def _first_line(text: Any) -> str:
    lines = str(text).strip().splitlines() or [""]
    return lines[0][:300] + (" ..." if len(lines) > 1 or len(lines[0]) > 300 else "")


def _message(output: Any) -> str:
    # What a SettingError says is meant for the user, every line of it.
    return output.evalue if output.ename == "SettingError" else _first_line(output.evalue)
