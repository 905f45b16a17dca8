"""``make schema``: rewrites config.schema.json, docs/config.md and the README's table of the most common keys."""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from extras.schema.json_schema import config_schema, dumps
from utils import cli
from utils.arguments import describe, limited
from utils.config.resume import rule_of
from utils.paths import PROJECT, display_path
from utils.registry import import_components
from utils.schema import Component, Config, KeyPath, WeightsConfig
from utils.schema_fields import keys_of, section_at
from utils.text import dotted

# the table in a page; a page without these marks is left unchanged
TABLE = re.compile(r"(<!-- keys: begin -->)\n.*?(<!-- keys: end -->)", re.DOTALL)
COLUMNS = "| key | type | default | on resume | meaning |\n|---|---|---|---|---|"

MOST_USED = (
    "seed", "lr_scheduler.interval", "trainer.epochs", "trainer.accumulate_steps", "trainer.clip_grad_norm",
    "trainer.monitor", "trainer.early_stop", "trainer.save_every_steps", "runtime.device", "runtime.precision",
)  # fmt: skip


def texts() -> dict[str, str]:
    """The files' contents, by path relative to the project's folder. A page that the user has deleted is left out."""
    import_components()
    pages = {"docs/config.md": config_table(), "README.md": config_table(*MOST_USED)}
    tables = {page: _with_table(page, table) for page, table in pages.items() if (PROJECT / page).exists()}
    return {"config.schema.json": dumps(config_schema()), **tables}


def _with_table(page: str, table: str) -> str:
    text = (PROJECT / page).read_text(encoding="utf-8")
    return TABLE.sub(lambda marks: f"{marks[1]}\n{table}\n{marks[2]}", text)


def config_table(*keys: str) -> str:
    """Every key, or the given ones, with type, default and meaning, as Markdown."""
    rows = list(_rows(Config))
    rows[1:1] = ["| `extends` | str | | | Path of a config from which all keys not given here are inherited. |"]
    return "\n".join(
        [COLUMNS, *(row for row in rows if not keys or row.startswith(tuple(f"| `{key}` |" for key in keys)))]
    )


def _rows(section: type[BaseModel], path: KeyPath = ()) -> Iterator[str]:
    for key, field in keys_of(section).items():
        here = (*path, key)
        below_at = here if section_at(here) else (*here, 0)
        below = section_at(below_at)
        meaning = " ".join((field.description or "").split()).replace("``", "`").replace("|", "\\|")
        rule = rule_of(here)
        inside = list(_rows(below, below_at)) if below and key not in ("data_loader", "validation", "loss") else []
        rules = {rule_of((*below_at, name)) for name in keys_of(below)} if below and inside else {rule}
        default = _default(field)
        # where a section may be missing, its presence has a rule besides those of its keys
        shown = rule and (rules == {rule} or default in ("`null`", "`[]`"))
        cells = [_type(field, below), default, rule.value if rule and shown else "", meaning]
        name = dotted(part for part in here if part != 0)
        yield f"| `{name}` | {' | '.join(cells)} |"
        yield from inside


def _type(field: FieldInfo, below: type[BaseModel] | None) -> str:
    if below is None:
        parts = [describe(field.annotation), *map(limited, field.metadata)]
        kind = " ".join(filter(None, parts)).replace("|", "\\|")
        return "object" if kind.startswith("dict") else kind
    if below is WeightsConfig:
        return "path, object or null"
    is_list = "list[" in str(field.annotation)
    if not issubclass(below, Component):
        return "list of objects" if is_list else "object"
    component = "list of components" if is_list else "component"
    if "dict" in str(field.annotation):
        component += ", or several by name"
    return f"{component}, or null" if type(None) in get_args(field.annotation) else component


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is PydanticUndefined or isinstance(default, BaseModel):
        return ""
    return f"`{json.dumps(default, default=lambda component: component.type)}`"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the files. Raises UserError if a component cannot be imported."""
    argparse.ArgumentParser(prog="python -m extras.schema", description=__doc__).parse_args(argv)
    for name, text in texts().items():
        path = PROJECT / name
        path.write_text(text, encoding="utf-8")
        print(f"{display_path(path)}: {len(text):,} characters")


if __name__ == "__main__":
    sys.exit(cli.run(main))
