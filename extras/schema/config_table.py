"""docs/config.md: every key of a config as a table, from the schema; the README has those that are used most."""

import json
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from utils.arguments import describe, limited
from utils.config.located_json import dotted
from utils.config.resume import rule_of
from utils.schema import Config, KeyPath, keys_of, section_at

HEAD = "| key | type | default | on resume | meaning |\n|---|---|---|---|---|"


MOST_USED = (
    "seed",
    "lr_scheduler.interval",
    "trainer.epochs",
    "trainer.accumulate_steps",
    "trainer.clip_grad_norm",
    "trainer.monitor",
    "trainer.early_stop",
    "trainer.save_every_steps",
    "runtime.device",
    "runtime.precision",
)


def config_table(*keys: str) -> str:
    """Every key, or those that are asked for, with type, default and meaning, as Markdown."""
    rows = list(_rows(Config))
    rows[1:1] = ["| `extends` | str | | | Path of a config that gives all keys that are not given here. |"]
    return "\n".join(
        [HEAD, *(row for row in rows if not keys or row.startswith(tuple(f"| `{key}` |" for key in keys)))]
    )


def _rows(section: type[BaseModel], path: KeyPath = ()) -> Iterator[str]:
    for key, field in keys_of(section).items():
        below = section_at((*path, key)) or section_at((*path, key, 0))
        meaning = " ".join((field.description or "").split()).replace("``", "`").replace("|", "\\|")
        rule = rule_of((*path, key))
        cells = [_type(field, below), _default(field, below), rule.value if rule else "", meaning]
        yield f"| `{dotted((*path, key))}` | {' | '.join(cells)} |"
        if below and key not in ("data_loader", "loss"):
            yield from _rows(below, (*path, key))


def _type(field: FieldInfo, below: type[BaseModel] | None) -> str:
    if "dict" in str(field.annotation):
        return "object"
    if below is None:
        parts = [describe(field.annotation), *map(limited, field.metadata)]
        return " ".join(filter(None, parts)).replace("|", "\\|")
    if below.__name__ == "WeightsConfig":
        return "path, object or null"
    if below.__name__.endswith(("TrainerConfig", "RuntimeConfig")):
        return "object"
    component = "list of components" if "list" in str(field.annotation) else "component"
    return f"{component} or null" if "None" in str(field.annotation) else component


def _default(field: FieldInfo, below: type[BaseModel] | None) -> str:
    if field.is_required():
        return "must be given"
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is PydanticUndefined or isinstance(default, BaseModel):
        return ""
    return f"`{json.dumps(default)}`"
