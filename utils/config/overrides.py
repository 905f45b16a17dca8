"""KEY=VALUE of the command line, set in a config before it is checked, so that it is checked exactly like the file."""

import json
import re
from typing import Any

from utils.config.located_json import Document, KeyPath, SourceLocation, parse
from utils.config.problem import dotted
from utils.errors import ConfigError
from utils.registry import REGISTRIES

OVERRIDE = re.compile(r"[\w$]+(\.[\w$]+)*=")


def apply_override(document: Document, override: str) -> None:
    """Set one key of a document; VALUE is JSON, or else a plain string. Raises ConfigError.

    A component's name alone becomes an object first: ``loss.args.reduction=sum`` may follow ``"loss": "mse_loss"``.
    """
    if not OVERRIDE.match(override):
        raise ConfigError(f"{override!r} is no override; they look like trainer.epochs=5")
    if not override.isprintable():
        raise ConfigError(f"override {override!r}: holds a character that is none")
    key, _, text = override.partition("=")
    source = f"override {override}"
    parent, path = _parent(document.value, key.split("."), source)
    parent[path[-1]] = _value(text, source)
    for length in range(1, len(path)):
        if path[:length] not in document.values:  # an object that the file does not have
            document.replace(path[:length], SourceLocation(source))
    document.replace(path, SourceLocation(source))


def _value(text: str, source: str) -> Any:
    try:
        return parse(text, source).value
    except ConfigError as error:
        if text[:1] in ("{", "[", '"'):  # meant as JSON
            taken = "" if '"' in text else "\nDid the shell take the quotes? Put KEY=VALUE between single ones."
            raise ConfigError(f"{error}{taken}") from error
        return text


def _parent(root: Any, path: list[str], source: str) -> tuple[Any, KeyPath]:
    """The object or list that holds a path's last key, and the path as keys and places in lists."""
    value, way = root, KeyPath()
    for part in path[:-1]:
        key = _key(value, part, way, source)
        way = (*way, key)
        inner = value[key] if isinstance(value, list) else value.get(key)
        if isinstance(inner, str) and path[0] in REGISTRIES:
            inner = {"type": inner}
        elif inner is None:
            inner = {}
        elif not isinstance(inner, (dict, list)):
            raise ConfigError(f"{source}: {dotted(way)} has no keys; it is {json.dumps(inner)[:60]}")
        value[key] = inner
        value = inner
    return value, (*way, _key(value, path[-1], way, source))


def _key(value: Any, part: str, way: KeyPath, source: str) -> Any:
    """A part of a path, of what is found on the way so far: a key of an object, or a place in a list."""
    if not isinstance(value, list):
        return part
    if part.isdecimal() and int(part) < len(value):
        return int(part)
    raise ConfigError(f'{source}: {dotted(way)} has {len(value)} elements, numbered from 0; "{part}" is none of them')
