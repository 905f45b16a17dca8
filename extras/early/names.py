"""The names a config can give, from the sources of the project and of libraries, without importing them."""

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from utils.paths import PROJECT
from utils.registry import FOLDERS, REGISTRIES, Registry

# the variables of utils/registry.py, by the key of a config
VARIABLES = {"data_loader": "DATA_LOADERS", "validation": "DATA_LOADERS", "model": "MODELS", "loss": "LOSSES",
             "metrics": "METRICS", "optimizer": "OPTIMIZERS", "lr_scheduler": "SCHEDULERS",
             "trainer": "TRAINERS"}  # fmt: skip
# where a library lists all its public names
SOURCES = {"torch.nn": ("torch", "nn/modules/__init__.py"), "torch.optim": ("torch", "optim/__init__.py"),
           "torch.optim.lr_scheduler": ("torch", "optim/lr_scheduler.py"),
           "torchmetrics": ("torchmetrics", "__init__.py")}  # fmt: skip
TEMPLATE = ("base", "dev", "docs", "extras", "logger", "tests", "utils")
_REGISTER = re.compile(r"\.register\b|\bunregister\b|\bREGISTRIES\b")


@dataclass(frozen=True)
class OwnNames:
    """What the users' folders register, by the registry's variable, and everything they define."""

    registered: dict[str, set[str]]
    defined: set[str]


@functools.cache
def own_names() -> OwnNames | None:
    """None if a file registers something other than by decorating a top-level class or function."""
    found = OwnNames({variable: set() for variable in VARIABLES.values()}, set())
    plain = [path for folder in FOLDERS for path in (PROJECT / folder).glob("[!_.]*.py")]
    try:
        if any(_REGISTER.search(path.read_text(encoding="utf-8")) for path in _other_files() if path not in plain):
            return None
        for path in plain:
            if not _add(path.read_text(encoding="utf-8"), found):
                return None
    except (OSError, ValueError, SyntaxError):  # the usual checks report what is wrong
        return None
    return found


def _other_files() -> Iterator[Path]:
    """The Python files that users' files may import from the project."""
    for path in PROJECT.iterdir():
        if path.suffix == ".py":
            yield path
        elif path.name in FOLDERS or (path.name not in TEMPLATE and (path / "__init__.py").is_file()):
            yield from path.rglob("*.py")


def _add(text: str, found: OwnNames) -> bool:
    """Add what a file registers and defines. Returns whether that is everything it registers."""
    tree = ast.parse(text)
    imported: set[str] = set()
    count = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "utils.registry":
            imported |= {alias.name for alias in node.names if alias.asname is None}
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.defined.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found.defined.add(node.name)
        elif isinstance(node, ast.Name):
            found.defined.add(node.id)
    for node in tree.body:
        for decorator in getattr(node, "decorator_list", ()):
            variable = _registry_of(decorator)
            if variable in found.registered and variable in imported:
                found.registered[variable].add(node.name)  # type: ignore[attr-defined]
                count += 1
    return count == len(_REGISTER.findall(text))


def _registry_of(decorator: ast.expr) -> str | None:
    """X in the decorator @X.register."""
    if isinstance(decorator, ast.Attribute) and decorator.attr == "register" and isinstance(decorator.value, ast.Name):
        return decorator.value.id
    return None


@functools.cache
def library_words(library: str) -> frozenset[str]:
    """Every word in the file where a library lists its public names. Raises ImportError without the library."""
    package, file = SOURCES[library]
    spec = PathFinder.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(package)
    return frozenset(re.findall(r"\w+", Path(spec.submodule_search_locations[0], file).read_text(encoding="utf-8")))


def is_known(kind: str, name: str, own: OwnNames) -> bool:
    """Whether a component with this name may exist; if not, there is certainly none."""
    registry: Registry = REGISTRIES[kind]
    if name in own.registered[VARIABLES[kind]]:
        return True
    return bool(registry.library) and name in library_words(str(registry.library))
