"""Overrides of keys that a command does not read, and would ignore: utils/schema.py says which it reads."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.arguments import inside
from utils.config.sources import read_config
from utils.errors import ConfigError
from utils.registry import markers, setting_at
from utils.schema import Command, KeyPath
from utils.text import dotted


def refuse_unread(config: Path, overrides: Sequence[str], command: Command) -> None:
    """Raise ConfigError for an override, of a config that was checked with it, that has no effect in a command."""
    document = read_config(config, overrides)
    for given, source in document.sources.items():
        for path in () if source.text is not None else _keys(given, inside(document.value, given)[1]):
            component = _component(document.value, path)
            if not all(command in marker for marker in markers(path, component, Command)):
                argument = setting_at(path, component) if component else None
                if path != given and argument and argument.default is argument.empty:
                    continue  # the arguments, given as one object, have to have it
                raise ConfigError(f"{source.name}: this command does not use {dotted(path)}; leave it out")


def _keys(path: KeyPath, value: Any) -> Iterator[KeyPath]:
    """The keys and arguments that are given by the value at a path."""
    if not value or not isinstance(value, Mapping) or "args" in path[:-1]:
        yield path
        return
    for key, item in value.items():
        yield from _keys((*path, key), item)


def _component(config: Any, path: KeyPath) -> str | None:
    """The name of the component to which an argument at a path belongs."""
    if "args" not in path[:-1]:
        return None
    entry = inside(config, path[: path.index("args")])[1]
    return entry.get("type") if isinstance(entry, dict) else None
