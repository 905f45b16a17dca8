"""Nested arguments: settings given as a dataclass or pydantic model, and components.

They may also be inside lists and dicts.
"""

import typing
from collections.abc import Callable, Mapping
from inspect import Parameter
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from utils.arguments import DICTS, LISTS, is_component, is_settings, is_tensor, parameters
from utils.registry import Registry, registry_inside
from utils.schema import KeyPath, name_and_args
from utils.schema_fields import alternatives

Build = Callable[[type, Any, KeyPath], Any]
"""Creates an object (settings, a module, a tensor) from its class and the config value at a path."""


def built(known: Mapping[str, Parameter], args: Mapping[str, Any], build: Build, path: KeyPath) -> dict[str, Any]:
    """Checked arguments, with settings and components replaced by the objects they describe."""
    return {
        name: _built(known[name].annotation, value, build, (*path, name)) if name in known else value
        for name, value in args.items()
    }


def with_defaults(registry: Registry, name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a component with the defaults of those not given, also within settings and components."""
    inner = registry_inside(registry)

    def complete(kind: type, value: Any, path: KeyPath) -> Any:
        if is_settings(kind):
            return filled(parameters(kind), value)
        component = name_and_args(value) if is_component(kind) else None
        if component is None or inner.get(component[0]) is None:
            return value
        return {"type": component[0], "args": with_defaults(inner, *component)}

    def filled(known: Mapping[str, Parameter], args: Mapping[str, Any]) -> dict[str, Any]:
        defaults = {key: plain(item.default) for key, item in known.items() if item.default is not Parameter.empty}
        return defaults | built(known, args, complete, ())

    return filled(registry.parameters(name), args)


def plain(value: Any) -> Any:
    """A default as a checkpoint can hold it: as a config would give it, or else a text that names it."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (list, tuple):
        return [*map(plain, value)]
    if type(value) is dict:
        return {plain(key): plain(item) for key, item in value.items()}
    if is_settings(type(value)):
        return to_jsonable_python(value, fallback=plain)
    if isinstance(value, Path):
        return str(value)
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _built(annotation: Any, value: Any, build: Build, path: KeyPath) -> Any:
    if kind := _object_of(annotation, value):
        return build(kind, value, path)
    for one in alternatives(annotation):
        origin, kinds = typing.get_origin(one), [kind for kind in typing.get_args(one) if kind is not Ellipsis]
        if isinstance(value, list) and origin in LISTS and kinds:
            last = len(kinds) - 1  # one kind for all elements, or one for each
            return [_built(kinds[min(i, last)], item, build, (*path, i)) for i, item in enumerate(value)]
        if isinstance(value, dict) and origin in DICTS and kinds:
            return {_as_key(key, kinds[0]): _built(kinds[1], item, build, (*path, key)) for key, item in value.items()}
    return value


def _object_of(annotation: Any, value: Any) -> type | None:
    """The class of the object that a value describes; None if it describes none."""
    kinds: list[type] = list(alternatives(annotation))
    if isinstance(value, list) and is_tensor(annotation):
        return next(filter(is_tensor, kinds))
    if not isinstance(value, (dict, str)):
        return None
    if isinstance(value, str) and str in kinds:
        return None
    if isinstance(value, str) and Path in kinds:
        return Path
    return next((kind for kind in kinds if is_component(kind) or (is_settings(kind) and isinstance(value, dict))), None)


def _as_key(key: Any, kind: Any) -> Any:
    """A key of an object, which is a string in JSON, as an argument takes it. One of another kind is left as it is."""
    try:
        return kind(key) if kind in (int, float) else str(key)
    except ValueError:
        return key
