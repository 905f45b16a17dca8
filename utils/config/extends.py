"""``"extends": FILE``: a config that says only what differs from another one."""

from pathlib import Path
from typing import Any, get_args

from utils.arguments import accepts_null
from utils.config.located_json import Document, KeyPath, read
from utils.errors import ConfigError
from utils.paths import display_path
from utils.registry import REGISTRIES
from utils.schema import keys_of, section_at


def read_config(path: Path, within: tuple[Path, ...] = ()) -> Document:
    """A config laid over the one that it extends, if any. Raises ConfigError.

    Objects are merged key by key, lists are replaced, null takes an optional key away. A component of another type
    than the inherited one starts anew, since the arguments of the one mean nothing to the other; the trainer loses only
    its "args". The path of the extended file is relative to the file that names it.
    """
    document = read(path, display_path(path))
    if "extends" not in document.value:
        return document
    name, place = document.value.pop("extends"), document.values["extends",]
    if not isinstance(name, str):
        raise ConfigError(place.show('extends: should be the path of a config, as in "extends": "base.json"'))
    extended, within = path.parent / name, (*within, path.resolve())
    if extended.resolve() in within:
        way = " -> ".join(display_path(file) for file in (*within, extended))
        raise ConfigError(place.show(f"extends: these configs extend each other in a circle: {way}"))
    if not extended.is_file():
        raise ConfigError(place.show(f"extends: there is no file {display_path(extended)}; relative to this file"))
    base = read_config(extended, within)
    base.value.pop("$schema", None)  # relative to the other file's folder
    _merge(base, document, base.value, document.value, ())
    return base


def _merge(base: Document, over: Document, below: dict[str, Any], above: dict[str, Any], path: KeyPath) -> None:
    """Lay the object ``above``, at this path of ``over``, over the object ``below`` at the same path of ``base``."""
    for key, value in above.items():
        here = (*path, key)
        inherited = below.get(key)
        if not path and key in REGISTRIES:
            inherited, value = _same_component(base, key, inherited, value)
        if isinstance(inherited, dict) and isinstance(value, dict):
            below[key] = inherited
            _merge(base, over, inherited, value, here)
        elif value is None and key in below and _can_go(base.value, here):
            del below[key]
        else:
            below[key] = value
            base.graft(over, here)


def _same_component(base: Document, kind: str, inherited: Any, value: Any) -> tuple[Any, Any]:
    """Both sides as objects to merge where they are of one type; else nothing is inherited."""
    if isinstance(inherited, str):
        inherited = {"type": inherited}
        base.values[kind, "type"] = base.values[kind,]
    if not isinstance(inherited, dict):
        return inherited, value
    type_ = inherited.get("type", REGISTRIES[kind].default)
    wanted = value if isinstance(value, str) else value.get("type", type_) if isinstance(value, dict) else type_
    if wanted != type_ and kind != "trainer":
        return None, value
    if wanted != type_:
        inherited.pop("args", None)
    elif isinstance(value, str):
        value = {}
    return inherited, value


def _can_go(config: dict[str, Any], path: KeyPath) -> bool:
    """Whether null means "not given" here: the key has a default, and null is no value of its own."""
    *parents, key = path
    if len(path) == 3 and parents[1] == "args" and parents[0] in REGISTRIES:
        registry = REGISTRIES[str(parents[0])]
        name = config[str(parents[0])].get("type", registry.default)
        parameter = registry.parameters(str(name)).get(str(key))
        return parameter is None or (parameter.default is not parameter.empty and not accepts_null(parameter))
    section = section_at(tuple(parents))
    field = keys_of(section).get(str(key)) if section else None
    return field is not None and not field.is_required() and type(None) not in get_args(field.annotation)
