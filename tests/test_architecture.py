"""The shape of the code: who may import whom, and how large things are."""

import ast
from pathlib import Path

import pytest

from tests.helpers import ROOT

# rooms only look and report: whatever a run goes through must not import them
FLOORS = ["utils", "logger", "base", "component", "extras", "root"]
COMPONENTS = ("data_loader", "model", "trainer")
FLOOR_OF = dict.fromkeys(COMPONENTS, "component")
SOURCES = [
    path
    for path in sorted(ROOT.rglob("*.py"))
    if path.relative_to(ROOT).parts[0] in {*FLOORS, *FLOOR_OF} or path.parent == ROOT
]


def folder_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else "root"


def imported(path: Path) -> set[str]:
    """The first name of every module that a file imports, in functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_to_the_left(path: Path) -> None:
    folder = folder_of(path)
    floor = FLOORS.index(FLOOR_OF.get(folder, folder))
    scripts = {script.stem for script in ROOT.glob("*.py")} - {"test"}  # "test" is Python's own package
    for name in imported(path):
        assert name not in scripts, f"{path.name} imports the script {name}.py"
        if name in FLOOR_OF or name in FLOORS:
            other = FLOORS.index(FLOOR_OF.get(name, name))
            assert other < floor or name == folder, f"{folder} may not import {name}"


@pytest.mark.parametrize("path", [*SOURCES, *ROOT.glob("dev/**/*.py")], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 50, f"{node.name} has more than 50 lines"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_report_draws(path: Path) -> None:
    """matplotlib takes a quarter of a second to import, which a run that draws nothing must not wait for."""
    assert path.parent.name in ("extras", "report", "compare") or "matplotlib" not in imported(path)
