"""Problems with the keys, types and components of a config, in terms of the file rather than of pydantic."""

import json
from collections.abc import Iterator, Mapping
from inspect import Parameter
from typing import Any

from pydantic import BaseModel, ValidationError

from utils import arguments
from utils.arguments import either, in_json_words, inside, is_component, is_settings, shortened
from utils.config.schedulers import FROM_RUN_LENGTH
from utils.errors import Problem
from utils.extras import find_extra
from utils.nested_arguments import built
from utils.registry import REGISTRIES, TRAINERS, WRITERS, Registry, registry_inside
from utils.schema import (
    ONE,
    PATTERNS,
    SEVERAL,
    SEVERAL_BY_NAME,
    Component,
    KeyPath,
    are_several,
    is_below,
    name_and_args,
)
from utils.schema_fields import keys_of, section_at
from utils.text import closest, dotted, hint
from utils.user_code import where

COMPONENT = 'should be a component: {"type": NAME, "args": {...}}, or just its name'


def schema_problems(value: Any, error: ValidationError, *, below: KeyPath = ()) -> Iterator[Problem]:
    """pydantic's errors about the value at a path. A key that is missing because it is misspelt counts once."""
    config = {} if below else value
    errors: list[tuple[KeyPath, Mapping[str, Any]]] = [
        (tuple(part for part in item["loc"] if part not in (ONE, SEVERAL, "[key]")), item)
        for item in error.errors(include_url=False)
    ]
    misplaced = [(kind, key) for kind in SEVERAL_BY_NAME if are_several(config.get(kind)) for key in _known((kind,))]
    for kind, key in misplaced:
        if any(is_below(path, (kind, key)) for path, _ in errors):
            each = " and ".join(dotted((kind, name, key)) for name in config[kind] if name not in _known((kind,)))
            yield Problem((kind, key), f"belongs in each component: {each}")
    errors = [(path, item) for path, item in errors if not is_below(path, *misplaced)]
    unknown = [path for path, item in errors if item["type"] == "extra_forbidden"]
    misspelt = {(*path[:-1], _meant(str(path[-1]), _known((*below, *path[:-1])))) for path in unknown}
    wrong: dict[KeyPath, list[str]] = {}  # a union has a reason for each member
    for inner, item in errors:
        path = (*below, *inner)
        if item["type"] == "extra_forbidden":
            yield Problem(path, _unknown_key(str(path[-1]), path[:-1], config))
        elif item["loc"][-1:] == ("[key]",):
            yield Problem(path, f"{_reason(path, item)}, got {shortened(path[-1])}")
        elif item["type"] != "missing":
            place, _ = inside(value, inner)
            wrong.setdefault(place, []).append(_reason((*below, *place), item))
        elif inner not in misspelt:
            yield Problem(path[:-1], f'the key "{path[-1]}" is missing')
    for place, reasons in wrong.items():
        yield Problem((*below, *place), f"{either(reasons)}, got {shortened(inside(value, place)[1])}")


def _reason(path: KeyPath, item: Mapping[str, Any]) -> str:
    if item["type"] == "string_pattern_mismatch":
        return f"should be {PATTERNS[item['ctx']['pattern']]}"
    if item["type"] == "model_type":
        section = section_at(path) or Component
        return COMPONENT if issubclass(section, Component) else f"should be an object, such as {_example(section)}"
    return in_json_words(item["msg"])


def _unknown_key(key: str, parent: KeyPath, config: Any) -> str:
    known = _known(parent)
    hints = find_extra("hints")
    meant = hints.key_hint(key, parent, known, config) if hints else hint(key, known)
    return f'unknown key "{key}"; {meant}'


def _known(path: KeyPath) -> list[str]:
    """The keys allowed in the object at a path."""
    return list(keys_of(section_at(path) or Component))


def _meant(key: str, known: list[str]) -> str | None:
    hints = find_extra("hints")
    return (hints and hints.key_meant(key, known)) or closest(key, known)


def components(config: dict[str, Any]) -> Iterator[tuple[str, KeyPath, Any]]:
    """Each component in a config: its kind, path and value."""
    for kind in REGISTRIES:
        value = config.get(kind)
        if isinstance(value, list):
            yield from ((kind, (kind, index), item) for index, item in enumerate(value))
        elif kind in SEVERAL_BY_NAME and are_several(value):
            yield from ((kind, (kind, name), item) for name, item in value.items())
        elif value is not None and kind != "metrics":  # which must be a list
            yield kind, (kind,), value


def component_problems(config: dict[str, Any]) -> list[Problem]:
    """Problems with component names, and with arguments that do not fit the signatures."""
    found = [
        problem for kind, path, entry in components(config) for problem in _problems(REGISTRIES[kind], entry, path)
    ]
    return [*found, *_writer_problems(config), *_missing_loss(config)]


def _writer_problems(config: dict[str, Any]) -> Iterator[Problem]:
    path, writers = inside(config, ("trainer", "writers"))
    for index, entry in enumerate(writers if len(path) == 2 and isinstance(writers, list) else ()):
        yield from _problems(WRITERS, entry, (*path, index))


def _example(section: type[BaseModel]) -> str:
    """An object with the first key of a section and its default."""
    name, field = next(iter(keys_of(section).items()))
    return f'{{"{name}": {"..." if field.is_required() else json.dumps(field.default)}}}'


def _missing_loss(config: dict[str, Any]) -> Iterator[Problem]:
    """A missing "loss", unless the trainer sets ``supervised = False``. null is allowed: the trainer has its own."""
    name, _ = name_and_args(config.get("trainer", {}), default=TRAINERS.default) or (None, None)
    if "loss" in config or not getattr(TRAINERS.get(name or ""), "supervised", True):
        return
    known = _known(())
    if "loss" not in {_meant(key, known) for key in config if key not in known}:
        yield Problem((), 'the key "loss" is missing; null if the trainer computes its own')


def _problems(registry: Registry, entry: Any, path: KeyPath) -> Iterator[Problem]:
    named = name_and_args(entry, default=registry.default)
    if named is None:
        return
    name, args = named
    at = (*path, "type") if isinstance(entry, dict) else path
    if registry.get(name) is None:
        yield Problem(at, f'unknown {registry.kind} "{name}"; {registry.suggest(name, args)}')
        return
    if lacks := _lacks(registry, name):
        yield Problem(at, lacks)
        return
    known = registry.parameters(name)
    filled, takes_any = FROM_RUN_LENGTH.get(name), registry.takes_any(name)
    yield from arguments.problems(name, known, args, (*path, "args"), filled=filled, takes_any=takes_any)
    for group_path, group_args in group_arguments(path, entry):
        yield from arguments.problems(name, known, group_args, group_path, takes_any=takes_any, complete=False)
    yield from _nested_problems(registry, known, args, (*path, "args"))


def _lacks(registry: Registry, name: str) -> str:
    """Why a component cannot be built, whatever its arguments: a method is missing; empty if none is."""
    component = registry[name]
    if registry is TRAINERS and (hints := find_extra("hints")) and (hint := hints.hook_hint(component)):
        return str(hint)
    missing = sorted(getattr(component, "__abstractmethods__", ()))
    if not missing or getattr(component, "__new__", None) is not object.__new__:  # it may return a subclass
        return ""
    first = getattr(component, missing[0])
    return f"{name} does not define {', '.join(missing)}; see {where(getattr(first, 'fget', first))}"


def _nested_problems(
    registry: Registry, known: Mapping[str, Parameter], args: Mapping[str, Any], path: KeyPath
) -> list[Problem]:
    """Problems with the settings and components inside the arguments at a path."""
    found: list[Problem] = []

    def check(kind: type, value: Any, at: KeyPath) -> None:
        if is_component(kind):
            found.extend(_inner_component_problems(registry_inside(registry), value, at))
        elif is_settings(kind):
            fields = arguments.parameters(kind)
            takes_any = getattr(kind, "model_config", {}).get("extra") == "allow"
            found.extend(arguments.problems(kind.__name__, fields, value, at, takes_any=takes_any))
            found.extend(_nested_problems(registry, fields, value, at))

    built(known, args, check, path)
    return found


def group_arguments(path: KeyPath, entry: Any) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    """The arguments of each parameter group of an optimizer, with their paths."""
    groups = entry.get("groups") if isinstance(entry, dict) and path[0] == "optimizer" else None
    for index, group in enumerate(groups if isinstance(groups, list) else ()):
        if isinstance(group, dict) and isinstance(group.get("args"), dict):
            yield (*path, "groups", index, "args"), group["args"]


def _inner_component_problems(registry: Registry, entry: Any, path: KeyPath) -> Iterator[Problem]:
    """Problems with a component that is an argument of another, which the schema does not cover."""
    try:
        Component.model_validate_json(json.dumps(entry))
    except ValidationError as error:
        yield from schema_problems(entry, error, below=path)
    yield from _problems(registry, entry, path)
