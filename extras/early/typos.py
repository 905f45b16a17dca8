"""Mistakes in config keys and component names, reported as utils/config would, before torch is imported.

They are reported only if nothing else looks wrong; otherwise the usual checks report all mistakes at once.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from extras.early.names import VARIABLES, OwnNames, is_known, own_names
from utils.config.located_json import Document, config_error
from utils.config.problems import components, group_arguments, schema_problems
from utils.config.references import References
from utils.config.schedulers import FROM_RUN_LENGTH
from utils.config.sources import read_config
from utils.errors import ConfigError, Problem
from utils.extras import find_extra
from utils.paths import PROJECT
from utils.registry import REGISTRIES
from utils.schema import Config, KeyPath, is_below, name_and_args
from utils.text import closest

# arguments whose types only the library's signature determines
_LIBRARY_ARGUMENT = re.compile(r"^((?:validation|loss|metrics|optimizer|lr_scheduler)\.(?:\w+\.)*args\.\w+)=[\d.+-].*")
ANY_NUMBER = "~"  # stands for a value whose type only the library knows
_TASK = re.compile(r"Binary|Multiclass|Multilabel")


def find_typos(path: Path, overrides: Sequence[str]) -> None:
    """Raise ConfigError if a key or name in a config is certainly wrong and everything else looks right.

    Raises ImportError if that cannot be decided without torch.
    """
    read = [_LIBRARY_ARGUMENT.sub(rf"\1={ANY_NUMBER}", override) for override in overrides]
    try:
        document = _resolved(read_config(path, read))
        if document is None:
            return
        problems = list(_problems(document))
        if problems and all(_is_final(problem) for problem in problems) and _looks_right(document, problems):
            raise config_error(document, problems)
    except ConfigError as error:
        # otherwise the message would show something nobody typed
        if read == list(overrides) or f"={ANY_NUMBER}" not in str(error):
            raise


def _resolved(unresolved: Document) -> Document | None:
    """The config with its references replaced; None if one of them is wrong."""
    references = References(unresolved, None)
    document = references.resolved()
    return None if references.problems else document


def _problems(document: Document) -> Iterator[Problem]:
    try:
        Config.model_validate_json(json.dumps(document.value))
    except ValidationError as error:
        yield from schema_problems(document.value, error)
    own = own_names()
    for kind, path, entry in components(document.value) if own else ():
        named = name_and_args(entry, default=REGISTRIES[kind].default)
        if own and named and not is_known(kind, named[0], own):
            yield Problem((*path, "type") if isinstance(entry, dict) else path, _unknown_name(kind, named[0], own))


def _unknown_name(kind: str, name: str, own: OwnNames) -> str:
    """The message of utils/config. Raises ImportError if it depends on more than the names."""
    hints = find_extra("hints")
    if name in own.defined or _TASK.match(name) or "." in name:
        raise ImportError
    if hints and (instead := hints.former_name(REGISTRIES[kind].kind, name)):
        hint = f"use {instead}"
    else:
        close = closest(name, [*sorted(own.registered[VARIABLES[kind]]), *_library_names(kind, own)])
        if close is None:
            raise ImportError
        hint = f'did you mean "{close}"?'
    return f'unknown {REGISTRIES[kind].kind} "{name}"; {hint}'


def _library_names(kind: str, own: OwnNames) -> list[str]:
    """The names in config.schema.json that the library still has."""
    if not REGISTRIES[kind].library:
        return []
    names = [key.partition(".")[2] for key in _definitions() if key.startswith(f"{kind}.")]
    return sorted(name for name in names if "." not in name and is_known(kind, name, own))


def _definitions() -> dict[str, Any]:
    """The definitions in config.schema.json. Raises ImportError if it cannot be read."""
    try:
        definitions: dict[str, Any] = json.loads((PROJECT / "config.schema.json").read_text("utf-8"))["definitions"]
    except (OSError, ValueError, KeyError) as error:
        raise ImportError from error
    return definitions


def _is_final(problem: Problem) -> bool:
    """Whether the message would be the same if all components were known."""
    return "unknown key" not in problem.message or "; expected one of:" not in problem.message


def _looks_right(document: Document, problems: Sequence[Problem]) -> bool:
    """Whether the arguments of all components match config.schema.json in name and type.

    If it is out of date, the usual checks decide.
    """
    wrong = {problem.path for problem in problems}
    definitions = _definitions()
    for kind, path, entry in components(document.value):
        if wrong & {path, (*path, "type")} or any(is_below(one, (*path, "args")) for one in wrong):
            continue
        named = name_and_args(entry, default=REGISTRIES[kind].default)
        if named is None:
            return False
        defined = definitions.get(f"{'data_loader' if kind == 'validation' else kind}.{named[0]}")
        given = [named[1], *(args for _, args in group_arguments(path, entry))]
        if defined is None or not all(_fits(args, defined["properties"]) for args in given):
            return False
        missing = defined["properties"].keys() - named[1].keys() - {FROM_RUN_LENGTH.get(named[0])}
        if any("default" not in defined["properties"][name] for name in missing):
            return False
    return "loss" in document.value or any(path[:1] == KeyPath(("loss",)) for path in wrong)


def _fits(args: dict[str, Any], properties: dict[str, Any]) -> bool:
    """Whether the schema has these arguments, with values of these types."""
    return all(
        name in properties and (value == ANY_NUMBER or _is_of_kind(value, properties[name]))
        for name, value in args.items()
    )


def _is_of_kind(value: Any, schema: dict[str, Any]) -> bool:
    if value is None:  # the schema allows null also to remove an inherited value
        return schema.get("default", ...) is None
    kinds = {"string": str, "boolean": bool, "integer": int, "number": (int, float), "array": list, "object": dict}
    for one in schema.get("anyOf", [schema]):
        kind: Any = kinds.get(one.get("type"), object if "$ref" not in one else ())
        if isinstance(value, kind) and (isinstance(value, bool) <= (kind in (bool, object))):
            return True
    return False
