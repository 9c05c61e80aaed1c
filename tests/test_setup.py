"""The project is set up from a clean checkout, and its parts stay where they belong."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import fields
from pathlib import Path

import pytest

from timebox.settings import Settings

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "timebox"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# A module imports from its own layer and from those above it in this list, never from below.
LAYERS = (
    {"clock", "device", "files", "nn", "optim", "picture", "settings", "sinks", "stop", "text"}
    | {"world"},
    {"checkpoint", "plan", "progress", "record", "step", "submission", "task", "tasks"},
    {"loop", "run", "session"},
    {"__main__", "cli", "kernel", "launch", "notebook", "show", "terminal", "walk"},
)
FOR_TASKS = {"clock", "files", "nn", "optim", "picture", "settings", "task", "text"}
TASKS = sorted(p.parent.name for p in PACKAGE.glob("tasks/*/__init__.py"))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> set[str]:
    """The modules of timebox that `path` imports: "files", "tasks.arc.data"; lazy ones too."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports by a relative name"
            if node.module == "timebox" or node.module == "timebox.tasks":
                found |= {f"{node.module}.{name.name}" for name in node.names}
            else:
                found.add(node.module)
    found = {name.removeprefix("timebox.") for name in found if name.startswith("timebox.")}
    home = {"fit": "loop", "start": "session", "Session": "session", "Clock": "clock"}
    return {home.get(name, name) for name in found if name != "__version__"}


def layer(module: str) -> int:
    for number, names in enumerate(LAYERS):
        if module.split(".")[0] in names:
            return number
    raise AssertionError(f"src/timebox/{module}.py has no layer: put it into LAYERS")


# -------------------------------------------------------------------------------- the package


def test_imports_point_one_way():
    graph = {}
    for path in PACKAGE.glob("*.py"):
        if path.stem != "__init__":
            graph[path.stem] = imports(path)
            for other in graph[path.stem]:
                assert layer(other) <= layer(path.stem), f"{path.name} imports {other}"
    for module, others in graph.items():
        seen, ahead = set(), {name.split(".")[0] for name in others}
        while ahead:
            seen |= ahead
            ahead = {n.split(".")[0] for name in ahead for n in graph.get(name, ())} - seen
        assert module not in seen, f"{module}.py imports itself by way of others"


@pytest.mark.parametrize("task", TASKS)
def test_a_task_imports_the_lower_layers_and_nothing_of_another_task(task):
    for path in (PACKAGE / "tasks" / task).rglob("*.py"):
        for module in imports(path):
            own = module == f"tasks.{task}" or module.startswith(f"tasks.{task}.")
            assert own or module in FOR_TASKS, f"{path.relative_to(PACKAGE)} imports {module}"


def test_what_trains_never_names_a_task():
    for name in ("loop", "run", "plan", "step", "session", "submission", "progress"):
        words = set(re.findall(r"\w+", (PACKAGE / f"{name}.py").read_text(encoding="utf-8")))
        assert not words & set(TASKS), f"{name}.py names {words & set(TASKS)}"


def test_every_setting_is_read_somewhere():
    """A setting that nobody reads is a knob that lies."""
    read = {
        node.attr
        for path in SOURCES
        if path.name != "settings.py"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    assert {f.name for f in fields(Settings)} <= read


def test_settings_have_their_defaults_in_one_place_and_the_loop_stays_small():
    for path in SOURCES:
        assert "getattr(args" not in path.read_text(encoding="utf-8"), path.name
    lines = len((PACKAGE / "loop.py").read_text(encoding="utf-8").splitlines())
    assert lines <= 220, "the loop is one story that fits on a few screens"


# ------------------------------------------------------------------------------- the packaging


def test_the_pinned_versions_cover_the_dependencies_and_satisfy_them():
    from packaging.requirements import Requirement

    pins = {}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[name] = version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pins.pop(requirement.name)), requirement
    assert not pins, f"{sorted(pins)} are pinned but no direct dependencies"


def test_an_installed_wheel_finds_its_notebooks(tmp_path):
    pytest.importorskip("hatchling")
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("src", "notebooks"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("timebox-*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "from timebox import notebook; print(notebook.find('arc'))"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        check=True,
        capture_output=True,
        text=True,
    )
    assert Path(found.stdout.strip()) == tmp_path / "site" / "timebox" / "notebooks" / "arc.py"


# -------------------------------------------------------------------------------- the Makefile


@pytest.fixture
def checkout(tmp_path):
    """The files that setting up .venv needs, alone."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(checkout: Path, *arguments: str, **environment: str) -> tuple[int, list[str], list[str]]:
    """Exit status, lines of output and lines of error (make's own last line left out)."""
    done = subprocess.run(
        ["make", *arguments],
        cwd=checkout,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    errors = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    return done.returncode, done.stdout.splitlines(), errors


def test_make_alone_lists_the_targets(checkout):
    status, lines, errors = make(checkout)
    assert (status, errors) == (0, [])
    for target in ("run", "test", "bench", "lint", "notebooks", "install"):
        assert any(line.startswith(f"make {target} ") for line in lines), target
    assert not (checkout / ".venv").exists()


def test_a_python_that_is_too_old_gets_one_sentence(checkout):
    old = checkout / "bin" / "python3"
    old.parent.mkdir()
    old.write_text(
        "#!/bin/sh\n"  # this Python, which says that it is an older one
        f'exec "{sys.executable}" -c "import sys; sys.version_info = (3, 9, 2); $2"\n'
    )
    old.chmod(0o755)
    path = f"{old.parent}{os.pathsep}{os.environ['PATH']}"
    status, lines, errors = make(checkout, "run", PATH=path)
    assert status != 0 and lines == []
    assert errors == [
        "'python3' is Python 3.9.2, and 3.11 or newer is needed: "
        "name another with PYTHON=/path/to/python3."
    ]


def test_a_python_that_is_not_there_gets_one_sentence(checkout):
    status, lines, errors = make(checkout, "test", "PYTHON=no-such-python")
    assert status != 0 and lines == []
    assert len(errors) == 1 and errors[0].startswith("There is no 'no-such-python' here: install")


def test_a_python_without_venv_gets_one_sentence(checkout):
    bare = checkout / "bare"
    bare.write_text(
        "#!/bin/sh\n"
        'case "$2" in *venv*) exit 1;; esac\n'
        f'exec "{sys.executable}" "$@"\n'
    )  # fmt: skip
    bare.chmod(0o755)
    status, lines, errors = make(checkout, "test", f"PYTHON={bare}")
    assert status != 0 and lines == []
    assert len(errors) == 1 and "without its venv module: install it" in errors[0]


def test_a_set_up_that_fails_says_what_to_do_and_is_tried_again(checkout):
    missing = checkout / "missing.whl"
    (checkout / "requirements.txt").write_text(f"{missing}\n")
    for _ in range(2):
        status, lines, errors = make(checkout, "install", f"PYTHON={sys.executable}")
        assert status != 0
        assert len(lines) == 1 and lines[0].startswith("Setting up .venv (once, about ")
        assert "missing.whl" in errors[0], "pip's own last lines"
        assert errors[-1].startswith(".venv could not be set up, see the lines above")
        assert "Traceback" not in "\n".join(errors)
        assert not (checkout / ".venv" / ".installed").exists()
