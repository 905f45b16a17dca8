"""What pydantic found wrong with a config, in the words of someone who writes one."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from utils.arguments import in_json_words, inside, shortened
from utils.config.located_json import KeyPath
from utils.config.problem import Problem, dotted
from utils.registry import REGISTRIES
from utils.schema import FORMER_NAMES, PATTERNS, Component, Config, keys_of, section_at
from utils.text import closest

COMPONENT = 'should be a component: {"type": NAME, "args": {...}}, or its name alone'


def schema_problems(value: Any, error: ValidationError, *, below: KeyPath = ()) -> Iterator[Problem]:
    """The problems of a value at a path of the config. A key that is missing because it is misspelt is one problem."""
    found = error.errors(include_url=False)
    unknown = [item["loc"] for item in found if item["type"] == "extra_forbidden"]
    meant = {(*path[:-1], _meant(str(path[-1]), _known((*below, *path[:-1])))) for path in unknown}
    for item in found:
        path = (*below, *item["loc"])
        if item["type"] == "extra_forbidden":
            yield Problem(path, _unknown_key(str(path[-1]), path[:-1], value if not below else {}), at_key=True)
        elif item["type"] != "missing":
            yield Problem(path, f"{_why(path, item)}, got {shortened(inside(value, item['loc'])[1])}")
        elif item["loc"] not in meant:
            yield Problem(path[:-1], f'the key "{path[-1]}" is missing')


def _why(path: KeyPath, item: Mapping[str, Any]) -> str:
    if item["type"] == "string_pattern_mismatch":
        return f"should be {PATTERNS[item['ctx']['pattern']]}"
    if item["type"] == "model_type":
        return "should be an object: { ... }" if path[0] in ("trainer", "runtime") else COMPONENT
    return in_json_words(item["msg"])


def _unknown_key(key: str, parent: KeyPath, config: Any) -> str:
    known = _known(parent)
    if key in FORMER_NAMES:
        hint = f"here it is {FORMER_NAMES[key]}"
    elif key == "extends":
        hint = "it stands at the top of a file, and is no override"
    elif close := closest(key, known):
        hint = f'did you mean "{close}"?'
    elif home := _home(key, config):
        hint = f"it belongs {home}"
    else:
        hint = f"there are: {', '.join(known)}"
    return f'unknown key "{key}"; {hint}'


def _home(key: str, config: Any) -> str | None:
    """Where a key that stands in the wrong place belongs."""
    if key in keys_of(Config):
        return "at the top of the config"
    for section in ("trainer", "runtime"):
        if key in _known((section,)):
            return f'under "{section}"'
    for kind, registry in REGISTRIES.items():
        entry = config.get(kind) if isinstance(config, dict) else None
        name = entry.get("type") if isinstance(entry, dict) else entry
        if isinstance(name, str) and key in registry.parameters(name):
            return f"under {dotted((kind, 'args'))}"
    return None


def _known(path: KeyPath) -> list[str]:
    """The keys that the object at a path may have."""
    return list(keys_of(section_at(path) or Component))


def _meant(key: str, known: list[str]) -> str | None:
    former = FORMER_NAMES.get(key, "")
    return next((name for name in known if former.startswith(f'"{name}"')), None) or closest(key, known)
