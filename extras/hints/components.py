"""Unknown names of components: of a single task, of another project, not registered, of another kind, or left out."""

import inspect
import json
import re
import sys
from collections.abc import Mapping
from typing import Any

from extras.hints.former_names import former_name
from utils.registry import FOLDERS, METRICS, REGISTRIES, Registry
from utils.user_code import where

# torchmetrics' class for a single task, as MulticlassAccuracy, which Accuracy creates for its argument "task"
_OF_TASK = re.compile(r"(Binary|Multiclass|Multilabel)(\w+)")
_CLASSES = {"binary": {}, "multiclass": {"num_classes": "..."}, "multilabel": {"num_labels": "..."}}


def component_hint(registry: Registry, name: str, args: Mapping[str, Any]) -> str:
    """Advice about a name that the registry does not have; "" if there is none. args: those given in the config."""
    if unregistered := _unregistered(registry, name):
        return unregistered
    if instead := former_name(registry.kind, name):
        return f"use {instead}"
    single_task = single_task_hint(name, args) if registry is METRICS else ""
    return single_task or _other_kind(registry, name) or _left_out(registry, name)


def _left_out(registry: Registry, name: str) -> str:
    """Why a config cannot use the library's component of this name; empty if there is none, or another reason."""
    library = registry.import_library() if registry.library else None
    found = getattr(library, name, None)
    if not inspect.isclass(found) or not registry.base or not issubclass(found, getattr(library, registry.base)):
        return ""
    if registry.kind == "loss" and not name.endswith("Loss"):
        return ""
    needs = "call it with just (outputs, targets)" if registry.called_with else "pass the function that it needs"
    instead = f"register a {registry.kind} of your own that does"
    if registry.kind == "loss":
        instead += ', or set "loss" to null and call it in your own train_step and eval_step'
    return f"{registry.library} has it, but a config cannot {needs}; {instead}"


def single_task_hint(name: str, args: Mapping[str, Any]) -> str:
    """How to write a metric for a single task, such as MulticlassAccuracy, in a config; empty for any other name."""
    word = _OF_TASK.fullmatch(name)
    known = METRICS.parameters(word[2]) if word else {}
    if not word or "task" not in known:
        return ""
    task = word[1].lower()
    entry = {"type": word[2], "args": {"task": task, **_CLASSES[task], **args}}
    return f"use {json.dumps(entry)}, whose defaults may differ".replace('"..."', "...")


def _unregistered(registry: Registry, name: str) -> str:
    """Advice if a file in the users' folders defines this name without registering it; otherwise empty."""
    registered = {id(item) for each in REGISTRIES.values() for item in each.own().values()}
    for key, module in list(sys.modules.items()):
        item = vars(module).get(name) if key.partition(".")[0] in FOLDERS else None
        if callable(item) and item.__module__ == key and id(item) not in registered:
            return f"{where(item)} defines it: put @{registry.plural().replace(' ', '_').upper()}.register above it"
    return ""


def _other_kind(registry: Registry, name: str) -> str:
    """Advice if this name is of another kind; otherwise empty. Imports no library for it."""
    for key, other in REGISTRIES.items():
        loaded = other.library in sys.modules
        if other is not registry and (name in other.own() or (loaded and other.from_library(name))):
            return f'it is {"an" if other.kind[0] in "aeiou" else "a"} {other.kind}, for the key "{key}"'
    return ""
