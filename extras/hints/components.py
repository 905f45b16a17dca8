"""Unknown names of components: of a single task, of another project, not registered, of another kind, or left out."""

import contextlib
import importlib
import inspect
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from extras.hints.former_names import FORMER_NAMES
from utils.arguments import parameters
from utils.paths import PROJECT
from utils.registry import FOLDERS, METRICS, REGISTRIES, Registry
from utils.user_code import in_project, where

# torchmetrics' class for a single task, as MulticlassAccuracy, which Accuracy creates for its argument "task"
_OF_TASK = re.compile(r"(Binary|Multiclass|Multilabel)(\w+)")
_CLASSES = {"binary": {}, "multiclass": {"num_classes": "..."}, "multilabel": {"num_labels": "..."}}

UNLOADED = ("clustering", "segmentation", "shape")  # packages of torchmetrics that it does not import itself


def component_hint(registry: Registry, name: str, args: Mapping[str, Any]) -> str:
    """Advice about a name that the registry does not have; "" if there is none. args: those given in the config."""
    if name in FORMER_NAMES:
        return f"use {FORMER_NAMES[name]}"
    single_task = single_task_hint(name, args) if registry is METRICS else ""
    return single_task or _unregistered(registry, name) or _other_kind(registry, name) or _left_out(registry, name)


def _left_out(registry: Registry, name: str) -> str:
    """Why a config cannot use the library's component of this name; empty if there is none, or another reason."""
    library = registry.import_library() if registry.library else None
    found = getattr(library, name, None)
    if found is None and registry is METRICS and (package := _package_of(library, name)):
        return (
            f"it is in {package}: register a subclass of it in model/metric.py, with an update that takes (outputs, "
            "targets) and a compute that returns a single number"
        )
    if not inspect.isclass(found) or not registry.base or not issubclass(found, getattr(library, registry.base)):
        return ""
    if registry.kind == "scheduler" and not registry.accepts(found):
        reason = "it needs a function, which JSON cannot express; register a subclass that creates it"
    elif not registry.called_with or (registry.kind == "loss" and not name.endswith("Loss")):
        return ""
    else:
        reason = (
            f"it does not take just two tensors, (outputs, targets), as a {registry.kind} does here; call it in a "
            f"{registry.kind} of your own, in model/{registry.kind}.py, or in train_step"
        )
    return f"{registry.library} has it, but {reason}"


def _package_of(library: ModuleType | None, name: str) -> str:
    """The package of torchmetrics with this metric, if the library itself does not have it; else ""."""
    if not library:
        return ""
    for package in UNLOADED:
        with contextlib.suppress(ImportError):  # an older torchmetrics does not have all of them
            importlib.import_module(f"{library.__name__}.{package}")
    packages = [value for value in vars(library).values() if isinstance(value, ModuleType)]
    return next((each.__name__ for each in packages if name in getattr(each, "__all__", ())), "")


def single_task_hint(name: str, args: Mapping[str, Any]) -> str:
    """How to write a metric for a single task, such as MulticlassAccuracy, in a config; empty for any other name.

    An argument whose default differs between the two, such as "average", is named too.
    """
    word = _OF_TASK.fullmatch(name)
    known = METRICS.parameters(word[2]) if word else {}
    if not word or "task" not in known:
        return ""
    task = word[1].lower()
    differing = {}
    of_task = getattr(importlib.import_module(f"{METRICS.library}.classification"), name, None)
    for key, parameter in (parameters(of_task) if of_task else {}).items():
        if key in known and key not in args and parameter.default not in (parameter.empty, known[key].default):
            differing[key] = parameter.default
    entry = {"type": word[2], "args": {"task": task, **_CLASSES[task], **args}}
    written = json.dumps(entry).replace('"..."', "...")
    same = f"; add {json.dumps(differing)[1:-1]} for the same result as {name}" if differing else ""
    return f"use {written}{same}"


def _unregistered(registry: Registry, name: str) -> str:
    """Advice if a file in the users' folders defines this name without registering it; otherwise empty."""
    registered = {id(item) for each in REGISTRIES.values() for item in each.own().values()}
    for key, module in list(sys.modules.items()):
        item = vars(module).get(name) if key.partition(".")[0] in FOLDERS else None
        if callable(item) and item.__module__ == key and id(item) not in registered:
            return f"{where(item)} defines it: put @{registry.plural().replace(' ', '_').upper()}.register above it"
    return _in_subfolder(name)


def _in_subfolder(name: str) -> str:
    """Advice if a file in a subfolder, which is not imported, seems to define this name; otherwise empty."""
    definition = re.compile(rf"^(class|def) {re.escape(name)}\b", re.MULTILINE)
    for path in files_in_subfolders():
        if definition.search(path.read_text(encoding="utf-8", errors="replace")):
            folder = path.relative_to(PROJECT).parts[0]
            return (
                f"{in_project(path)} seems to define it, but only the files directly in {folder}/ are imported: "
                "move it there, or import it in one of them"
            )
    return ""


def files_in_subfolders() -> list[Path]:
    """Python files in folders within the users', which are not imported by themselves."""
    return [path for folder in FOLDERS for path in sorted((PROJECT / folder).glob("*/**/*.py"))]


def _other_kind(registry: Registry, name: str) -> str:
    """Advice if this name is of another kind; otherwise empty. Imports no library for it."""
    for key, other in REGISTRIES.items():
        loaded = other.library in sys.modules
        if other is not registry and (name in other.own() or (loaded and other.from_library(name))):
            return f'it is {"an" if other.kind[0] in "aeiou" else "a"} {other.kind}, for the key "{key}"'
    return ""
