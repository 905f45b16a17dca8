"""The values of a config before any check: the file, merged over the one it extends, with overrides on top."""

import json
import os
import re
from collections.abc import Sequence
from inspect import Parameter
from pathlib import Path
from typing import Any, get_origin

from utils.arguments import inside, json_type, of_field
from utils.config.located_json import Document, Source, parse
from utils.errors import ConfigError
from utils.paths import display_path
from utils.registry import REGISTRIES, registry_inside
from utils.schema import SEVERAL_BY_NAME, Component, KeyPath, are_several, is_below
from utils.schema_fields import alternatives, field_at, section_at
from utils.text import OVERRIDE, closest, dotted

MAX_BYTES = 1_000_000
MAX_EXTENDING = 50
_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
# .001, 1. and +1 are numbers everywhere except in JSON; 007, 2024_01_01 and an integer of 20 digits may be names
_LOOSE_NUMBER = re.compile(r"(?=.*[.+])[+-]?([0-9]+\.?|\.[0-9])[0-9]*([eE][+-]?[0-9]{1,2})?")
_PYTHON = {"None": "null", "True": "true", "False": "false"}


def read_config(path: Path, overrides: Sequence[str] = ()) -> Document:
    """A config file with everything it inherits, and KEY=VALUE overrides applied. Raises ConfigError."""
    document = _read_extended(path, ())
    kinds = [kind for kind in REGISTRIES if kind != "metrics"]
    if not document.value.keys() & {*kinds, "arch"}:
        # another file, such as environment.json: one message, not one per key
        wanted = ", ".join(f'"{kind}"' for kind in kinds)
        raise document.error((), f"a config has {wanted}; this object has none of them. Is this the wrong file?")
    _apply_overrides(document, overrides)
    return document


def _read_extended(path: Path, extending: tuple[Path, ...]) -> Document:
    """A config merged over the one named by "extends", relative to its own folder. extending: the files that led here.

    Objects are merged key by key, lists are replaced, null removes an optional key. A component inherits only from one
    of the same type, since their arguments would mean different things; a trainer of another type loses only "args".
    """
    document = read_object(path, display_path(path))
    if "extends" not in document.value:
        return document
    name = document.value.pop("extends")
    at = KeyPath(("extends",))
    if not isinstance(name, str):
        raise document.error(at, 'should be the path of a config, as in "extends": "base.json"')
    extended = path.parent / name
    if not extended.is_file():
        message = f"file not found: {display_path(extended)}; the path is relative to this file"
        raise document.error(at, message)
    extending = (*extending, path.resolve())
    if extended.resolve() in extending:
        circle = " -> ".join(display_path(file) for file in (*extending, extended))
        raise document.error(at, f"circular inheritance: {circle}")
    if len(extending) > MAX_EXTENDING:
        raise document.error(at, f"more than {MAX_EXTENDING} files, each of which extends the next one; merge some")
    base = _read_extended(extended, extending)
    _merge(base, document.sources[()], base.value, document.value, ())
    return base


def read_object(path: Path, name: str) -> Document:
    """Read a JSON file that holds one object. Raises ConfigError if it cannot be read or holds something else."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        near = closest(f"{path.stem}.json", [other.name for other in path.parent.glob("*.json")])
        hint = f'; did you mean "{near}"?' if isinstance(error, FileNotFoundError) and near else ""
        if (path / "config.json").is_file():
            hint = "; -c takes the config.json in it, and -r resumes this run"
        raise ConfigError(f"{name}: the config cannot be read: {reason}{hint}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{name}:1:1: a config has at most {MAX_BYTES:,} bytes; is this the wrong file?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}:1:1: not valid UTF-8; is this the wrong file?") from error
    document = parse(text, name)
    if not isinstance(document.value, dict):
        raise document.error((), "a config is a JSON object: { ... }; is this the wrong file?")
    return document


def _merge(base: Document, source: Source, below: dict[str, Any], above: dict[str, Any], path: KeyPath) -> None:
    """Merge the object ``above``, from a source, over the object ``below`` at the same path of ``base``."""
    for key, value in above.items():
        here = (*path, key)
        inherited = below.get(key)
        by_name = len(path) == 1 and path[0] in SEVERAL_BY_NAME and are_several(below)
        if not path and key in SEVERAL_BY_NAME and are_several(value) and not are_several(inherited):
            inherited = None  # several by name replace a single one
        elif by_name or (not path and key in REGISTRIES):
            inherited, value = _same_component(str(here[0]), inherited, value)
        elif "args" in path and isinstance(inherited, dict) and isinstance(value, dict) and "type" in value:
            inherited = inherited if inherited.get("type") == value["type"] else None
        if isinstance(inherited, dict) and isinstance(value, dict):
            below[key] = inherited
            _merge(base, source, inherited, value, here)
        elif value is None and key in below and _is_removable(base.value, here):
            del below[key]
        else:
            below[key] = value
            base.set_source(here, source)


def _same_component(kind: str, inherited: Any, value: Any) -> tuple[Any, Any]:
    """Both sides as objects to merge if they have the same type; otherwise nothing is inherited."""
    below, above = ({"type": each} if isinstance(each, str) else each for each in (inherited, value))
    if not isinstance(below, dict) or not isinstance(above, dict):
        return inherited, value
    type_ = below.get("type", REGISTRIES[kind].default)
    if above.get("type", type_) == type_:
        return below, above
    if kind == "trainer":
        return {key: setting for key, setting in below.items() if key != "args"}, above
    return None, value


def _is_removable(config: dict[str, Any], path: KeyPath) -> bool:
    """Whether null means "not given": the key has a default and does not accept null as a value."""
    expected = expected_at(config, path)
    if expected is None:
        return _is_argument(path)
    takes_null = not _kinds(config, path).isdisjoint({type(None), Any})
    return expected.default is not expected.empty and not takes_null


def _is_text(config: dict[str, Any], path: KeyPath) -> bool:
    """Whether the value at a path is a string, which cannot be a number, true or false."""
    kinds = _kinds(config, path)
    return str in kinds and not kinds & {int, float, bool}


def _kinds(config: dict[str, Any], path: KeyPath) -> set[Any]:
    """The types that the value at a path may have; none if they are unknown."""
    expected = expected_at(config, path)
    return set(alternatives(expected.annotation)) if expected else set()


def expected_at(config: dict[str, Any], path: KeyPath) -> Parameter | None:
    """A key or an argument, with its type and default; None if it is unknown."""
    if not _is_argument(path):
        field = field_at(path)
        return of_field(field) if field else None
    _, component = inside(config, path[:-2])
    registry = REGISTRIES[str(path[0])]
    if "args" in path[:-2]:
        registry = registry_inside(registry)
    argument = registry.parameters(str(component.get("type", registry.default))).get(str(path[-1]))
    return argument.replace(annotation=json_type(argument.annotation)) if argument else None


def _is_argument(path: KeyPath) -> bool:
    """Whether a path leads to an argument of a component, which may be inside the arguments of another one."""
    is_component = "args" in path[:-2] or section_at(path[:-2]) is not None
    return path[-2:-1] == ("args",) and path[0] in REGISTRIES and is_component


def _may_be_component(config: dict[str, Any], path: KeyPath) -> bool:
    """Whether the value at a path is a component, or inside the arguments of one, where it may be."""
    if section := section_at(path):
        return issubclass(section, Component)
    expected = expected_at(config, path)
    return expected is None or any(get_origin(kind) is dict for kind in alternatives(expected.annotation))


def _apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Apply overrides in order. Raises ConfigError if a later one removes what an earlier one has set."""
    paths = [apply_override(document, override) for override in overrides]
    for number, path in enumerate(paths):
        if inside(document.value, path)[0] != path:
            removed_by = next(other for other in reversed(range(number, len(paths))) if is_below(path, paths[other]))
            raise ConfigError(
                f"override {overrides[number]}: has no effect, since {overrides[removed_by]} replaces "
                f"{dotted(paths[removed_by])} as a whole; make it part of that value, or leave it out"
            )


def apply_override(document: Document, override: str) -> KeyPath:
    """Set one key of a document, and return its path; VALUE is JSON, or else a plain string. Raises ConfigError.

    A bare component name becomes an object first: ``loss.args.reduction=sum`` may follow ``"loss": "mse_loss"``.
    """
    if not OVERRIDE.match(override):
        quotes = f"\n{_quoting()}" if override.startswith("'") else ""  # in cmd.exe they are letters like any other
        raise ConfigError(
            f"invalid override {override!r}; expected KEY=VALUE, e.g. trainer.epochs=5; -c takes a config, -r a run"
            + quotes
        )
    if not override.isprintable():
        raise ConfigError(f"override {override!r}: contains a character that cannot be printed")
    key, _, text = override.partition("=")
    source = Source(f"override {override}")
    parts = key.split(".")
    container, path = document.value, KeyPath()
    for part in parts[:-1]:
        path = (*path, _key(container, part, path, source))
        container = _open(document, container, path, source)
    path = (*path, _key(container, parts[-1], path, source))
    container[path[-1]] = value_at(document.value, path, text, source.name)
    document.set_source(path, source)
    return path


def _quoting() -> str:
    """How to write an override with double quotes in a shell."""
    if os.name == "nt":
        return r"""For KEY=["a"], write "KEY=[\"a\"]" in cmd.exe, and 'KEY=[\"a\"]' in PowerShell."""
    return "Put KEY=VALUE in single quotes."


def _key(container: Any, part: str, path: KeyPath, source: Source) -> Any:
    """A part of an override's key, as the key of an object or the index of a list at a path."""
    if not isinstance(container, list):
        return part
    if part.isdecimal() and int(part) < len(container):
        return int(part)
    raise ConfigError(
        f'{source.name}: {dotted(path)} has {len(container)} elements, numbered from 0; "{part}" is not one of them'
    )


def _open(document: Document, container: Any, path: KeyPath, source: Source) -> Any:
    """The object or list at a path in which to set a value; an empty object if there is none yet."""
    key: Any = path[-1]
    inner = container[key] if isinstance(container, list) else container.get(key)
    if isinstance(inner, str) and (path == ("model", "weights") or _may_be_component(document.value, path)):
        inner = {"file" if path == ("model", "weights") else "type": inner}
    elif inner is None:
        inner = {}
        document.set_source(path, source)
    elif not isinstance(inner, (dict, list)):
        raise ConfigError(f"{source.name}: {dotted(path)} has no keys; it is {json.dumps(inner)[:60]}")
    container[key] = inner
    return inner


def value_at(config: dict[str, Any], path: KeyPath, text: str, name: str) -> Any:
    """Parse the text of an override or environment variable as the value at a path. name: for messages."""
    try:
        value = parse(text, name).value
    except ConfigError as error:
        if _JSON_NUMBER.fullmatch(text) and _kinds(config, path) & {int, float}:
            raise  # it is too large
        if text[:1] in ("{", "[", '"'):
            quotes = "" if '"' in text else f"\nDid the shell remove the quotes? {_quoting()}"
            raise ConfigError(f"{error}{quotes}") from error
        if text in _PYTHON:
            raise ConfigError(f"{name}: write {_PYTHON[text]}, as in JSON, or '\"{text}\"' for the text") from error
        value = float(text) if _LOOSE_NUMBER.fullmatch(text) else text
    # name=12345: a file would have quotes, which a shell removes
    return text if isinstance(value, (int, float)) and _is_text(config, path) else value
