"""Unknown keys of a config, and arguments left over from before an override of the type."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from extras.hints.former_names import FORMER_NAMES
from utils.arguments import inside
from utils.config.located_json import Document, Problem
from utils.config.problems import bare_name
from utils.registry import REGISTRIES
from utils.schema import SEVERAL_BY_NAME, Config, KeyPath
from utils.schema_fields import keys_of, section_at
from utils.text import closest, dotted


def key_hint(key: str, parent: KeyPath, known: Sequence[str], config: Any) -> str:
    """What an unknown key of the object at a path probably means, or where it belongs. known: that object's keys."""
    if key in FORMER_NAMES:
        return f"use {FORMER_NAMES[key]}"
    if key == "extends":
        return "it belongs at the top of a file and cannot be an override"
    if close := closest(key, known):
        return f'did you mean "{close}"?'
    if home := _home(key, parent, known, config):
        return f"it belongs {home}"
    if name := bare_name((*parent, key), config):
        by_name = json.dumps({key: {"type": name}})
        return f'a component is {{"type": NAME, "args": {{...}}}}; to name a single one "{key}": {by_name}'
    return f"expected one of: {', '.join(known)}"


def _home(key: str, parent: KeyPath, known: Sequence[str], config: Any) -> str | None:
    """Where a misplaced key belongs. known: the keys of the object at ``parent``."""
    if key in keys_of(Config):
        return "at the top of the config"
    for name in ("trainer", "runtime"):
        section = section_at((name,))
        if section and key in keys_of(section):
            return f'under "{name}"'
    for kind, registry in REGISTRIES.items():
        entry = config.get(kind) if isinstance(config, dict) else None
        component = entry.get("type") if isinstance(entry, dict) else entry
        if isinstance(component, str) and key in registry.parameters(component):
            own = "args" in known and parent[0] == kind  # as of a parameter group
            return f"under {dotted((*(parent if own else (kind,)), 'args'))}"
    return None


def missing_type_hint(path: KeyPath, config: Any) -> str:
    """The end of a message about a missing "type": which of several components by name was probably meant."""
    if len(path) != 3 or path[0] not in SEVERAL_BY_NAME or path[-1] != "type":
        return ""
    others = [name for name, one in config.get(path[0], {}).items() if isinstance(one, str) or "type" in one]
    close = closest(str(path[1]), others)
    return f'; did you mean "{close}"?' if close else f"; the others are: {', '.join(others)}"


def with_former_type(document: Document, problems: list[Problem]) -> Iterator[Problem]:
    """The problems, with advice added to one caused by arguments left over from before an override of the type."""
    flawed = {problem.path for problem in problems}
    for problem in problems:
        at, args = problem.path[:-2], problem.path[:-1]
        left_behind = "has no argument" in problem.message and not document.is_override(problem.path)
        if not left_behind or args != (*at, "args") or not document.is_override((*at, "type")):
            yield problem
            continue
        given = inside(document.value, args)[1]
        fitting = {key: value for key, value in given.items() if (*args, key) not in flawed}
        override = f"{dotted(args)}={json.dumps(fitting)}"
        message = f"{problem.message}\nAn override of the type keeps the arguments; to replace them too: '{override}'"
        yield replace(problem, message=message)
