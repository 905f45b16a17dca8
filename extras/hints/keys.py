"""Unknown keys of a config."""

from collections.abc import Sequence
from typing import Any

from extras.hints.former_names import FORMER_KEYS
from utils.registry import REGISTRIES
from utils.schema import Config, KeyPath
from utils.schema_fields import keys_of, section_at
from utils.text import closest, dotted


def key_hint(key: str, parent: KeyPath, known: Sequence[str], config: Any) -> str:
    """What an unknown key of the object at a path probably means, or where it belongs. known: that object's keys."""
    if key in FORMER_KEYS:
        return f"use {FORMER_KEYS[key]}"
    if key == "extends":
        return "it belongs at the top of a file and cannot be an override"
    if close := closest(key, known):
        return f'did you mean "{close}"?'
    if home := _home(key, parent, known, config):
        return f"it belongs {home}"
    own = "; a value for your own component belongs under its args" if parent in ((), ("trainer",)) else ""
    return f"expected one of: {', '.join(known)}{own}"


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
