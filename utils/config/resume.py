"""Differences between the config of a resumed run and that of its checkpoint, and which of them are allowed.

The rule for each key is in utils/schema.py; the rule for an argument is in its annotation.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from utils.arguments import shortened
from utils.config.located_json import Problem
from utils.config.problems import components
from utils.nested_arguments import plain_default, with_defaults
from utils.optimizers import INITIAL_ONLY
from utils.paths import project_path
from utils.registry import REGISTRIES, markers, setting_at
from utils.schema import KeyPath, LossConfig, MetricConfig, OnResume, is_below
from utils.schema_fields import section_at
from utils.text import dotted

_MISSING = object()


@dataclass(frozen=True)
class Change:
    """A value that differs."""

    path: KeyPath
    before: Any
    after: Any
    rule: OnResume

    def __str__(self) -> str:
        """As in "optimizer.args.lr 0.01 -> 0.5"."""
        return f"{dotted(self.path)} {shown(self.before)} -> {shown(self.after)}"

    def concerns(self, other: "Change") -> bool:
        """Whether another change is of the same value, of a part of it, or of the component that it belongs to."""
        at = other.path[:-1] if other.path[-1] == "type" else other.path
        return is_below(self.path, at) or is_below(at, self.path)

    def refusal(self, epoch_steps: int) -> Problem | None:
        """Why the change is refused after this many steps of an epoch; None if it is allowed."""
        values = f"this run has {shown(self.before)}, got {shown(self.after)}"
        if self.rule is OnResume.REFUSED:
            return Problem(self.path, f"cannot change when a run is resumed: {values}")
        if self.rule is OnResume.BETWEEN_EPOCHS and epoch_steps:
            return Problem(self.path, f"cannot change in the middle of an epoch: {values}")
        return None


def values_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a checked config, as returned by ``Config.model_dump``, by dotted path; arguments as a whole."""
    return {dotted(path): value for path, value in _values((), _with_defaults(config))}


def saved_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a checkpoint stores.

    name and save_dir are left out: they only lead to the run's folder, which may have been moved since. So are
    variables, whose values are already where they are used.
    """
    left_out = ("name", "variables", "trainer.save_dir")
    return {key: value for key, value in values_of(config).items() if key not in left_out}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """The differences between two configs, both as returned by ``values_of`` or ``saved_values``.

    A key or argument that did not exist when a checkpoint was written counts only if it differs from its default.
    """
    keys = [key for key in {**before, **now} if before.get(key, {}) != now.get(key, {})]  # {}: no arguments
    paths = [tuple(int(part) if part.isdecimal() else part for part in key.split(".")) for key in keys]
    found = []
    for key, path in zip(keys, paths, strict=True):
        component = now.get(f"{dotted(path[: path.index('args')])}.type") if "args" in path else None
        added_default = _at(before, key) is _MISSING and now[key] == _default(path, component)
        if not added_default and not any(_includes(other, path) for other in paths):
            group_of = dotted(path[: path.index("groups")]) if "groups" in path else ""
            rule = rule_of(path, component or now.get(f"{group_of}.type"))
            assert rule is not None, f"utils/schema.py has no rule for {key}"
            found.append(Change(path, _at(before, key), _at(now, key), rule))
    return found


def _includes(change: KeyPath, other: KeyPath) -> bool:
    """Whether a change at a path says all about another: of a whole section, or of the arguments of another type."""
    section = (*change[:-1], "args") if change[-1] == "type" else change
    return is_below(other, section) and other != change


def _at(values: Mapping[str, Any], key: str) -> Any:
    """The value of a key, put together from those below it."""
    if key in values:
        return values[key]
    below = [other.removeprefix(f"{key}.") for other in values if other.startswith(f"{key}.")]
    made = {name: _at(values, f"{key}.{name}") for name in dict.fromkeys(other.partition(".")[0] for other in below)}
    return (list(made.values()) if "0" in made else made) or _MISSING


def rule_of(path: KeyPath, component: str | None = None) -> OnResume | None:
    """The rule for a schema key, or for an argument of the named component; None for a key whose subkeys have rules."""
    if path[0] == "optimizer" and "args" in path[:-1] and path[-1] in INITIAL_ONLY.get(component or "", ()):
        return OnResume.REFUSED
    return next(reversed(markers(path, component, OnResume)), None)


def _default(path: KeyPath, component: str | None) -> Any:
    setting = setting_at(path, component)
    return _MISSING if setting is None or setting.default is setting.empty else plain_default(setting.default)


def _has_keys(path: KeyPath, value: Any) -> bool:
    """Whether a value is a section or list of the schema, whose keys have their own rules, rather than an argument."""
    if isinstance(value, list):
        return path not in (("metrics",), ("trainer", "writers")) and section_at((*path, 0)) is not None
    return isinstance(value, dict) and (section_at(path) is not None or path[-1] == "args")


def _values(path: KeyPath, value: Any) -> Iterator[tuple[KeyPath, Any]]:
    """The leaves of a config: keys, and arguments as a whole."""
    if not value or not _has_keys(path, value):
        yield path, value
        return
    for key, item in enumerate(value) if isinstance(value, list) else value.items():
        yield from _values((*path, key), item)


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the defaults of omitted component arguments filled in."""
    filled = {key: value for key, value in config.items() if key != "$schema"}
    filled["trainer"] = {**config["trainer"], "save_dir": str(project_path(config["trainer"]["save_dir"]).resolve())}
    for kind, path, entry in list(components(filled)):
        if kind != "metrics":
            args = with_defaults(REGISTRIES[kind].parameters(entry["type"]), entry["args"])
            whole = {**entry, "args": args}
            filled[kind] = whole if len(path) == 1 else {**filled[kind], path[1]: whole}
    return filled


def shown(value: Any) -> str:
    """A value of a change, for a message."""
    if value is _MISSING:
        return "nothing"
    return shortened(_as_written(value))


def _as_written(value: Any) -> Any:
    """A value with its components as a config would give them: without defaults, and by name alone if that is all."""
    if isinstance(value, list):
        return [_as_written(each) for each in value]
    if not isinstance(value, dict) or "type" not in value:
        return value
    fields = MetricConfig.model_fields | LossConfig.model_fields
    defaults = {key: field.get_default(call_default_factory=True) for key, field in fields.items()}
    given = {key: each for key, each in value.items() if each not in (None, {}, defaults.get(key))}
    return given["type"] if given.keys() == {"type"} else given
