"""The shape of the code: who may import whom, what users import, and how large things are."""

import ast
import importlib
import re
from collections.abc import Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers import ROOT

# each imports only what is left of it; the users' folders never import one another, and nothing imports dev, but for
# new_project.py, which is left out of a project together with it
FLOORS = ["utils", "logger", "base", "component", "extras", "root", "dev"]
FLOOR_OF = dict.fromkeys(("data_loader", "model", "trainer"), "component")
FOLDERS = [*FLOORS[:3], *FLOOR_OF, "extras", "dev"]
SOURCES = sorted([*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/*.py"))])
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES}
# what a project adds, in its folders or beside train.py, may be longer, and draw
OUR_SCRIPTS = {"train.py", "test.py", "sweep.py", "predict.py", "export.py", "recipe.py", "new_project.py"}
OWN = [
    path
    for path in SOURCES
    if path.relative_to(ROOT).parts[0] not in FLOOR_OF and (path.parent != ROOT or path.name in OUR_SCRIPTS)
]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SCRIPTS = {path.stem for path in ROOT.glob("*.py")} - {"test"}  # "test" is Python's own package

# what projects made from this one import; renaming one of these breaks them
USER_IMPORTS = [
    "base.array_file.ArrayFile",
    "base.base_data_loader.BaseDataLoader",
    "base.base_model.BaseModel",
    "base.base_trainer.BaseTrainer",
    "base.data.TensorSource",
    "base.experiment.Experiment",
    "base.metric.StepResult",
    "base.metric.with_count",
    "trainer.trainer.Trainer",
    "utils.registry.DATA_LOADERS",
    "utils.registry.LOSSES",
    "utils.registry.METRICS",
    "utils.registry.MODELS",
    "utils.registry.TRAINERS",
    "utils.schema.TrainerConfig",
]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def folder_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else "root"


def imports(text: str, package: str) -> set[tuple[str, str]]:
    """Every (module, name) that a file imports, in functions and under TYPE_CHECKING too; name: "" for ``import a``.

    package: what a relative import starts from.
    """
    found: set[tuple[str, str]] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: 1 - node.level or None] if node.level else []
            module = ".".join([*parents, *filter(None, [node.module])])
            found |= {(module, alias.name) for alias in node.names}
    return found


def package_of(module: str, path: Path) -> str:
    return module if path.name == "__init__.py" else module.rpartition(".")[0]


def import_graph(modules: Mapping[str, Path]) -> dict[str, set[str]]:
    """The modules of this project that each of them imports.

    ``from package import name`` counts as an import of package.name where that is a module, and of the package's
    ``__init__`` otherwise. Whoever imports a module of a package from outside it runs its ``__init__`` too.
    """
    graph = {}
    for module, path in modules.items():
        found = imports(path.read_text(), package_of(module, path))
        named = {f"{source}.{name}" if f"{source}.{name}" in modules else source for source, name in found}
        packages = {package for name in named & modules.keys() for package in parents(name)} - {
            module,
            *parents(module),
        }
        graph[module] = ((named | packages) & modules.keys()) - {module}
    return graph


def parents(module: str) -> set[str]:
    """The packages that a module is in."""
    parts = module.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts))}


def first_names(path: Path) -> set[str]:
    """The first part of every module that a file imports from elsewhere."""
    return {
        module.split(".")[0] for module, _ in imports(path.read_text(), ".".join(path.relative_to(ROOT).parts[:-1]))
    }


def test_imports_point_to_the_left() -> None:
    wrong = []
    for path in SOURCES:
        folder = folder_of(path)
        floor = FLOORS.index(FLOOR_OF.get(folder, folder))
        for name in sorted(first_names(path)):
            if name in SCRIPTS:
                # a script beside train.py may call it: train.main([...]) is what scripts and notebooks use
                allowed = folder in ("dev", "root")
            elif name_of(path) == "new_project.py" and name == "dev":
                allowed = True
            elif name in FLOOR_OF or name in FLOORS:
                allowed = FLOORS.index(FLOOR_OF.get(name, name)) < floor or name == folder
            else:
                continue
            if not allowed:
                wrong.append(f"{name_of(path)} may not import {name}")
    assert not wrong, "\n".join(wrong)


def test_an_import_is_found_anywhere_in_a_file(tmp_path: Path) -> None:
    texts = {
        "top": "import base.first\n",
        "inner": "def f():\n    from base import first\n",
        "typing": "if TYPE_CHECKING:\n    from base.first import Name\n",
        "relative": "from . import first\nfrom .second import Name\n",
        "exported": "from base import Name\n",
    }
    modules = {"base": tmp_path / "__init__.py"}
    for name, text in {"first": "", "second": "", **texts}.items():
        modules[f"base.{name}"] = tmp_path / f"{name}.py"
        modules[f"base.{name}"].write_text(text)
    modules["base"].write_text("")
    graph = import_graph(modules)
    assert all(graph[f"base.{name}"] == {"base.first"} for name in ("top", "inner", "typing"))
    assert graph["base.relative"] == {"base.first", "base.second"}
    assert graph["base.exported"] == {"base"}


@pytest.mark.slow
def test_no_files_import_each_other_in_a_circle() -> None:
    TopologicalSorter(import_graph(MODULES)).prepare()  # raises a CycleError that names a circle


@pytest.mark.parametrize("name", USER_IMPORTS)
def test_what_users_import_is_there(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert hasattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("package", sorted(path.parent for path in SOURCES if path.name == "__init__.py"), ids=name_of)
def test_a_package_says_what_is_in_it(package: Path) -> None:
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    assert text
    if package.name in (*FLOOR_OF, "writers"):
        return  # a project adds files of its own there
    inside = {path.stem for path in SOURCES if path.parent == package} - {"__init__", "__main__"}
    inside |= {path.parent.name for path in SOURCES if path.name == "__init__.py" and path.parent.parent == package}
    assert {name for name in inside if not re.search(rf"\b{name}\b", text)} == set()


def test_files_and_functions_are_small() -> None:
    large = []
    for path in OWN:
        text = path.read_text()
        if len(text.splitlines()) > 400:
            large.append(f"{name_of(path)} has more than 400 lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, FUNCTIONS) and (node.end_lineno or 0) - node.lineno >= 50:
                large.append(f"{name_of(path)}: {node.name} has more than 50 lines")
    assert not large, "\n".join(large)


def test_only_the_report_draws() -> None:
    """matplotlib takes a quarter of a second to import, which a run that draws nothing must not wait for."""
    drawing = [
        name_of(path)
        for path in OWN
        if folder_of(path) != "dev"
        and path.parent.name not in ("extras", "report", "compare", "sweep", "predict")
        and "matplotlib" in first_names(path)
    ]
    assert not drawing, "\n".join(drawing)
