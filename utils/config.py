"""Reads a config, applies overrides, and checks all of it at once: nothing is built, nothing is written."""

import difflib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from utils import arguments
from utils.errors import ConfigError
from utils.located_json import Document, KeyPath, Place, parse, read
from utils.registry import REGISTRIES, Registry
from utils.schema import FORMER_NAMES, Config

OVERRIDE = re.compile(r"[\w$]+(\.[\w$]+)*=")

# arguments that a scheduler takes from the length of the run where the config leaves them out
FROM_RUN_LENGTH = {"OneCycleLR": "total_steps", "CosineAnnealingLR": "T_max"}
# schedulers made of others, which stand in the config as components
COMPOUND_SCHEDULERS = {"SequentialLR", "ChainedScheduler"}


@dataclass(frozen=True)
class Problem:
    """One mistake: where it stands in the config and what is wrong. at_key: the key itself is the mistake."""

    path: KeyPath
    message: str
    at_key: bool = False


@dataclass(frozen=True)
class LoadedConfig:
    """A config that passed every check, and where each part of it stands."""

    config: Config
    document: Document

    def error(self, path: KeyPath, message: str) -> ConfigError:
        """A mistake that showed only later, when the part at this path was built."""
        return _error(self.document, [Problem(path, message)])


def load_config(path: Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Read and check a config file with KEY=VALUE overrides over it. Raises ConfigError that lists all mistakes."""
    document = read(path, os.path.relpath(path))
    if not isinstance(document.value, dict):
        raise ConfigError(document.values[()].show("a config is a JSON object: { ... }"))
    for override in overrides:
        apply_override(document, override)
    config, problems = None, []
    try:
        config = Config.model_validate_json(json.dumps(document.value))
    except ValidationError as error:
        problems = [_schema_problem(document.value, item["loc"], item["type"], item["msg"]) for item in error.errors()]
    problems += component_problems(document.value)
    if config and not problems:
        problems = list(_run_problems(config))
    if problems or config is None:
        raise _error(document, problems)
    return LoadedConfig(config, document)


def to_json(config: Config) -> str:
    """The whole config with every default filled in, as ``train.py -c`` takes it."""
    return (
        json.dumps(
            config.model_dump(by_alias=True, exclude={"schema_path"} if config.schema_path is None else None), indent=2
        )
        + "\n"
    )


def apply_override(document: Document, override: str) -> None:
    """Set one key of a document from ``KEY=VALUE``; VALUE is JSON, or else a plain string. Raises ConfigError."""
    if not OVERRIDE.match(override):
        raise ConfigError(f"{override!r} is no override; they look like trainer.epochs=5")
    key, _, text = override.partition("=")
    source = f"override {override}"
    path: KeyPath = tuple(int(part) if part.isdigit() else part for part in key.split("."))
    parent = _parent(document, path, source)
    if isinstance(parent, list):
        last = path[-1]
        if not isinstance(last, int) or last >= len(parent):
            raise ConfigError(f"{source}: {_dotted(path[:-1])} is a list of {len(parent)}; {last!r} is no place in it")
    parent[path[-1] if isinstance(parent, list) else str(path[-1])] = _override_value(text, source)
    for places in (document.keys, document.values):
        for old in [old for old in places if old[: len(path)] == path]:
            del places[old]
        places[path] = Place(source)


def _override_value(text: str, source: str) -> Any:
    try:
        return parse(text, source).value
    except ConfigError:
        if text[:1] in ("{", "[", '"'):  # meant as JSON
            raise
        return text


def _parent(document: Document, path: KeyPath, source: str) -> Any:
    """The object or list that holds a path's last key; objects on the way are made, a component's name becomes one."""
    value = document.value
    for depth, part in enumerate(path[:-1]):
        if isinstance(value, list):
            if not isinstance(part, int) or part >= len(value):
                raise ConfigError(
                    f"{source}: {_dotted(path[:depth])} is a list of {len(value)}; {part!r} is no place in it"
                )
            inner = value[part]
        else:
            part = str(part)
            inner = value.get(part)
        if isinstance(inner, str) and (path[:1] in {(kind,) for kind in REGISTRIES}):
            inner = {"type": inner}
        elif inner is None:
            inner = {}
        elif not isinstance(inner, (dict, list)):
            raise ConfigError(f"{source}: {_dotted(path[: depth + 1])} has no keys; it is {json.dumps(inner)}")
        value[part] = inner
        value = inner
    return value


def component_problems(config: dict[str, Any]) -> list[Problem]:
    """What is wrong with the names and arguments of a config's components."""
    problems: list[Problem] = []
    for kind, registry in REGISTRIES.items():
        value = config.get(kind)
        entries = [((kind, i), item) for i, item in enumerate(value)] if isinstance(value, list) else [((kind,), value)]
        for path, entry in entries:
            problems += _one_component(registry, entry, path)
    return problems


def _one_component(registry: Registry, entry: Any, path: KeyPath) -> Iterator[Problem]:
    name = entry.get("type", "Trainer" if path == ("trainer",) else None) if isinstance(entry, dict) else entry
    args = entry.get("args", {}) if isinstance(entry, dict) else {}
    at = (*path, "type") if isinstance(entry, dict) else path
    if not isinstance(name, str) or not isinstance(args, dict):
        return  # the schema has said so
    component = registry.get(name)
    if component is None:
        hint = f"here it is {FORMER_NAMES[name]}" if name in FORMER_NAMES else registry.suggest(name)
        yield Problem(at, f"there is no {registry.kind} {name!r}; {hint}")
        return
    known = registry.parameters(name)
    if name in COMPOUND_SCHEDULERS and isinstance(args.get("schedulers"), list):
        for index, inner in enumerate(args["schedulers"]):
            yield from _one_component(registry, inner, (*path, "args", "schedulers", index))
        known.pop("schedulers", None)
        args = {key: value for key, value in args.items() if key != "schedulers"}
    filled = (FROM_RUN_LENGTH[name],) if name in FROM_RUN_LENGTH else ()
    for where, message in arguments.problems(component, known, args, filled=filled):
        yield Problem((*path, "args", *where), message, at_key=where != () and where[0] not in known)


def _schema_problem(config: Any, where: tuple[int | str, ...], kind: str, message: str) -> Problem:
    path = tuple(where)
    if kind == "extra_forbidden":
        return Problem(path, _unknown_key(str(path[-1]), path[:-1]), at_key=True)
    if kind == "missing":
        return Problem(path[:-1], f'the key "{path[-1]}" is missing')
    value: Any = config
    for part in path:
        value = value[part] if isinstance(value, (dict, list)) else value  # type: ignore[index]
    if path == ("name",) and kind.startswith("string_pattern"):
        message = "is the name of a folder: letters, digits, and . _ + - after the first"
    elif path == ("trainer", "monitor") and kind.startswith("string_pattern"):
        message = 'is "min NAME" or "max NAME" of a logged value, as in "min val_loss"'
    elif kind == "model_type":
        message = (
            "should be an object: { ... }"
            if len(path) == 1 and path[0] in ("trainer", "runtime")
            else ('should be a component: {"type": NAME, "args": {...}}, or its name alone')
        )
    return Problem(path, f"{message.removeprefix('Input ')}, got {json.dumps(value, ensure_ascii=False)[:60]}")


def _unknown_key(key: str, parent: KeyPath) -> str:
    if key in FORMER_NAMES:
        return f'unknown key "{key}"; here it is {FORMER_NAMES[key]}'
    places = {field.alias or name: () for name, field in Config.model_fields.items()}
    known = _known_keys(parent)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if close:
        return f'unknown key "{key}"; did you mean "{close[0]}"?'
    for section in ("trainer", "runtime"):
        if key in _known_keys((section,)):
            return f'unknown key "{key}"; it belongs under "{section}"'
    if key in places:
        return f'unknown key "{key}"; it belongs at the top of the config'
    return f'unknown key "{key}"; there are: {", ".join(known)}'


def _known_keys(path: KeyPath) -> list[str]:
    """The keys that the object at a path may have."""
    if not path:
        return [field.alias or name for name, field in Config.model_fields.items()]
    annotation: Any = Config.model_fields[str(path[0])].annotation
    for kind in (annotation, *getattr(annotation, "__args__", ())):
        if hasattr(kind, "model_fields"):
            return list(kind.model_fields)
    return []


def _run_problems(config: Config) -> Iterator[Problem]:
    """What single values cannot show: parts that do not fit each other."""
    names = [metric.name or metric.type for metric in config.metrics]
    for index, name in enumerate(names):
        if name in [*names[:index], "loss", "lr", "epoch", "step"] or name.startswith("val_"):
            yield Problem(("metrics", index), f'the name "{name}" is taken; give this metric another one with "name"')
    if config.trainer.monitor:
        _, _, watched = config.trainer.monitor.partition(" ")
        logged = ["loss", *names]
        if watched.removeprefix("val_") not in logged:
            known = [*logged, *(f"val_{name}" for name in logged)]
            close = difflib.get_close_matches(watched, known, n=1)
            hint = f'did you mean "{close[0]}"?' if close else f"there are: {', '.join(known)}"
            yield Problem(("trainer", "monitor"), f'no metric gives "{watched}"; {hint}')
    elif config.trainer.early_stop:
        yield Problem(("trainer", "early_stop"), 'early_stop needs a monitored value, as in "monitor": "min val_loss"')
    scheduler = config.lr_scheduler
    if scheduler and scheduler.type == "ReduceLROnPlateau":
        if not config.trainer.monitor:
            yield Problem(("lr_scheduler",), 'ReduceLROnPlateau follows trainer.monitor; set it, as in "min val_loss"')
        elif scheduler.interval == "step":
            yield Problem(("lr_scheduler", "interval"), 'ReduceLROnPlateau moves after each epoch: "interval": "epoch"')


def _error(document: Document, problems: Sequence[Problem]) -> ConfigError:
    """All problems as one error, in the order in which they stand in the file."""
    placed = [(document.place(p.path, of_key=p.at_key), p) for p in dict.fromkeys(problems)]
    placed.sort(key=lambda item: (item[0].line == 0, item[0].line, item[0].column))
    shown = [place.show(f"{_dotted(p.path)}: {p.message}" if p.path else p.message) for place, p in placed]
    count = f"{len(shown)} mistakes in the config:\n\n" if len(shown) > 1 else ""
    return ConfigError(count + "\n\n".join(shown))


def _dotted(path: KeyPath) -> str:
    return ".".join(str(part) for part in path)
