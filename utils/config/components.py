"""What is wrong with the components of a config: their names, and their arguments by the signatures."""

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from utils import arguments
from utils.arguments import shortened
from utils.config.located_json import KeyPath
from utils.config.problem import Problem
from utils.config.schema_problems import schema_problems
from utils.registry import REGISTRIES, SCHEDULERS, Registry
from utils.schema import FORMER_NAMES, Component

# arguments that a scheduler takes from the length of the run where the config leaves them out
FROM_RUN_LENGTH = {"OneCycleLR": "total_steps", "CosineAnnealingLR": "T_max"}
# schedulers made of others, which stand in the config as components
COMPOUND_SCHEDULERS = {"SequentialLR", "ChainedScheduler"}


def component_problems(config: dict[str, Any]) -> list[Problem]:
    """What is wrong with the names and arguments of a config's components."""
    return [problem for kind, path, entry in components(config) for problem in _one(REGISTRIES[kind], entry, path)]


def components(config: dict[str, Any]) -> Iterator[tuple[str, KeyPath, Any]]:
    """Each component of a config that is there: its kind, where it stands, and what stands there."""
    for kind in REGISTRIES:
        value = config.get(kind)
        if isinstance(value, list):
            yield from ((kind, (kind, index), item) for index, item in enumerate(value))
        elif value is not None:
            yield kind, (kind,), value


def name_and_args(entry: Any, *, default: str | None = None) -> tuple[str, dict[str, Any]] | None:
    """A component's name and arguments; None if it is not made like a component, as the schema then has said."""
    name, args = (entry.get("type", default), entry.get("args", {})) if isinstance(entry, dict) else (entry, {})
    return (name, args) if isinstance(name, str) and isinstance(args, dict) else None


def _one(registry: Registry, entry: Any, path: KeyPath) -> Iterator[Problem]:
    found = name_and_args(entry, default=registry.default)
    if found is None:
        return
    name, args = found
    component = registry.get(name)
    if component is None:
        hint = f"here it is {FORMER_NAMES[name]}" if name in FORMER_NAMES else registry.suggest(name)
        at = (*path, "type") if isinstance(entry, dict) else path
        yield Problem(at, f'there is no {registry.kind} "{name}"; {hint}')
        return
    known = registry.parameters(name)
    if registry is SCHEDULERS and name in COMPOUND_SCHEDULERS:
        known.pop("schedulers", None)
        yield from _inner(name, args.get("schedulers"), (*path, "args", "schedulers"))
        args = {key: value for key, value in args.items() if key != "schedulers"}
    filled, takes_any = FROM_RUN_LENGTH.get(name), registry.takes_any(name)
    for where, message in arguments.problems(name, known, args, filled=filled, takes_any=takes_any):
        yield Problem((*path, "args", *where), message, at_key=where != () and where[0] not in known)


def _inner(name: str, schedulers: Any, path: KeyPath) -> Iterator[Problem]:
    """What is wrong with the schedulers that a compound one is made of."""
    if not isinstance(schedulers, list) or not schedulers:
        example = '"schedulers": [{"type": "LinearLR", "args": {...}}, "CosineAnnealingLR"]'
        got = "" if schedulers is None else f", got {shortened(schedulers)}"
        yield Problem(path, f"{name} needs a list of schedulers, as in {example}{got}")
        return
    for index, entry in enumerate(schedulers):
        try:
            Component.model_validate(entry)
        except ValidationError as error:
            yield from schema_problems(entry, error, below=(*path, index))
        yield from _one(SCHEDULERS, entry, (*path, index))
