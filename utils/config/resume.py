"""Differences between the config of a resumed run and that of its checkpoint, and which of them are allowed.

The rule for each key is in utils/schema.py; the rule for an argument is in its annotation.
"""

from dataclasses import dataclass
from typing import Any

from utils.arguments import inside, shortened
from utils.config.problems import components
from utils.errors import Problem
from utils.nested_arguments import plain, with_defaults
from utils.optimizers import INITIAL_ONLY
from utils.paths import project_path
from utils.registry import REGISTRIES, markers
from utils.schema import Config, KeyPath, LossConfig, MetricConfig, OnResume
from utils.schema_fields import field_at
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

    def refusal(self, epoch_steps: int) -> Problem | None:
        """Why the change is refused after this many steps of an epoch; None if it is allowed."""
        values = f"this run has {shown(self.before)}, got {shown(self.after)}"
        if self.rule is OnResume.REFUSED:
            return Problem(self.path, f"cannot change when a run is resumed: {values}")
        if self.rule is OnResume.BETWEEN_EPOCHS and epoch_steps:
            return Problem(self.path, f"cannot change in the middle of an epoch: {values}")
        return None


def with_all_defaults(config: Config) -> dict[str, Any]:
    """A checked config, for ``changes``: also with the defaults of omitted component arguments."""
    filled = config.model_dump(exclude={"schema_path"})
    filled["trainer"]["save_dir"] = str(project_path(config.trainer.save_dir).resolve())
    _fill(filled)
    return filled


def _fill(config: dict[str, Any]) -> None:
    """Add the defaults of omitted arguments to all components of a config but its metrics."""
    for kind, _, entry in components(config):
        if kind != "metrics":
            entry["args"] = with_defaults(REGISTRIES[kind], entry["type"], entry["args"])


def saved_config(config: Config) -> dict[str, Any]:
    """The config as a checkpoint stores it.

    name and save_dir are left out: they only lead to the run's folder, which may have been moved since. So are
    variables, whose values are already where they are used.
    """
    saved = with_all_defaults(config)
    del saved["name"], saved["variables"], saved["trainer"]["save_dir"]
    return saved


def changes_since(saved: Any, now: dict[str, Any]) -> list[Change]:
    """The differences between the config of a checkpoint, perhaps of earlier code, and another ``saved_config``.

    A key or argument that did not exist when the checkpoint was written counts only if it differs from its default.
    """
    before = plain(saved)
    _fill(before)
    return changes(before, now)


def changed_defaults(saved: Any, config: Config) -> list[Change]:
    """The arguments omitted in a run's config whose defaults in the code have changed since its checkpoint.

    Only those that cannot change on resume: results depend on them. Empty for a checkpoint of an earlier version.
    """
    given = config.model_dump()
    try:
        changed = changes_since(saved, saved_config(config))
    except (KeyError, TypeError, AttributeError):
        return []
    omitted = [each for each in changed if "args" in each.path and inside(given, each.path)[0] != each.path]
    return [each for each in omitted if each.rule is OnResume.REFUSED]


def changes(before: Any, now: Any, path: KeyPath = (), component: str | None = None) -> list[Change]:
    """The differences between two configs, both from ``with_all_defaults`` or ``saved_config``.

    path, component: of values inside the configs, and to which they belong.
    """
    if before == now or (before is _MISSING and now == _default(path)):
        return []
    if not _change_one_by_one(before, now, path):
        rule = rule_of(path, component) or OnResume.REFUSED  # a key of earlier code
        return [Change(path, before, now, rule)]
    old, new = (dict[Any, Any](enumerate(each) if isinstance(each, list) else each) for each in (before, now))
    keys = {**old, **new}
    if old.get("type") != new.get("type"):
        keys.pop("args", None)  # of another component
    if "args" not in path:
        component = new.get("type", component)
    return [
        change
        for key in keys
        for change in changes(old.get(key, _MISSING), new.get(key, _MISSING), (*path, key), component)
    ]


def _change_one_by_one(before: Any, now: Any, path: KeyPath) -> bool:
    """Whether two objects or lists at a path change by their elements, and not as a whole.

    As a whole: plain lists, and one component that is replaced by several by name.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        return ("type" in before) == ("type" in now)
    if isinstance(before, list) and isinstance(now, list) and before and now:
        # metrics and writers that are added or removed are best seen in the whole list
        comparable = len(before) == len(now) or path not in (("metrics",), ("trainer", "writers"))
        return comparable and all(isinstance(each, dict) for each in (*before, *now))
    return False


def rule_of(path: KeyPath, component: str | None = None) -> OnResume | None:
    """The rule for a schema key, or for an argument of the named component; None for a key whose subkeys have rules."""
    is_argument = path[0] == "optimizer" and "args" in path[:-1]
    if is_argument and path[path.index("args") + 1] in INITIAL_ONLY.get(component or "", ()):
        return OnResume.REFUSED
    return next(reversed(markers(path, component, OnResume)), None)


def _default(path: KeyPath) -> Any:
    field = field_at(path)
    return _MISSING if field is None else plain(field.get_default(call_default_factory=True))


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
