"""Completions that editors offer for the value of a key: whole components with arguments, and values to monitor.

A snippet is inserted with the cursor at its first value, so each is valid as it is.
"""

import json
import math
from typing import Any

from extras.schema import docstrings
from utils.config.schedulers import COMPOUND_SCHEDULERS, FROM_RUN_LENGTH
from utils.registry import METRICS, Registry

Schema = dict[str, Any]

MOST_DEFAULTS = 6
"""Maximum number of optional arguments for a snippet to include them."""
WITH_LIBRARY = ("optimizer", "lr_scheduler")
"""Kinds whose library components have snippets; those of other kinds are offered by name."""
SMALLER_IS_BETTER = ("error", "loss")


def snippets(kind: str, registry: Registry, arguments: dict[str, Schema]) -> list[Schema]:
    """VS Code's ``defaultSnippets``. arguments: the schema of each component's "args", by name."""
    names = [name for name in arguments if name in registry.own() or kind in WITH_LIBRARY]
    return [
        _snippet(registry, name, arguments[name]) for name in names if _is_possible(registry, name, arguments[name])
    ]


def _is_possible(registry: Registry, name: str, args: Schema) -> bool:
    """Whether JSON can express a value for every required argument."""
    needed = {key for key, parameter in registry.parameters(name).items() if parameter.default is parameter.empty}
    return name not in COMPOUND_SCHEDULERS and needed - {FROM_RUN_LENGTH.get(name)} <= args["properties"].keys()


def _snippet(registry: Registry, name: str, args: Schema) -> Schema:
    properties = args["properties"]
    # an example marks an argument that is not required itself, but one of several that are
    wanted = [*args.get("required", ()), *(key for key, schema in properties.items() if "examples" in schema)]
    required = {key: _sample(properties[key]) for key in dict.fromkeys(wanted)}
    defaults = {
        key: schema["default"]
        for key, schema in properties.items()
        if key not in required and schema.get("default") not in (None, [], {})
    }
    few = name in registry.own() and len(defaults) <= MOST_DEFAULTS
    rate = {"lr": defaults["lr"]} if "lr" in defaults else {}
    values = required | (defaults if few else rate)
    body = {"type": name, "args": {key: _stop(number, each) for number, (key, each) in enumerate(values.items(), 1)}}
    return {"label": name, "description": docstrings.paragraph(registry[name]), "body": body}


def _stop(number: int, value: Any) -> Any:
    """A value at which the cursor stops. "^": insert the following without quotes."""
    if isinstance(value, str):
        return f"${{{number}:{value}}}"
    text = json.dumps(value).replace("\\", "\\\\").replace("$", "\\$").replace("}", "\\}")
    return f"^${{{number}:{text}}}"


def _sample(schema: Schema) -> Any:
    """A value that a schema allows."""
    for choices in (schema.get("enum"), schema.get("examples"), [schema["const"]] if "const" in schema else None):
        if choices:
            return choices[0]
    for part in (*schema.get("allOf", ()), *schema.get("anyOf", ())):
        if "$ref" not in part and part.get("type") != "null":
            return _sample(part)
    kind = schema.get("type")
    if kind == "array":
        items = schema.get("items", {})
        return (
            [_sample(one) for one in items]
            if isinstance(items, list)
            else [_sample(items)] * max(1, schema.get("minItems", 1))
        )
    if kind in ("integer", "number"):
        return _number(schema, 10 if kind == "integer" else 0.1)
    return {"boolean": False, "object": {}}.get(str(kind), "...")


def _number(schema: Schema, wanted: float) -> float:
    """The wanted number, or another within the limits of a schema."""
    low: Any = schema.get("minimum", schema.get("exclusiveMinimum", -math.inf))
    high: Any = schema.get("maximum", schema.get("exclusiveMaximum", math.inf))
    if low < wanted < high:
        return wanted
    inside: float = schema.get("minimum", low + 1) if wanted <= low else schema.get("maximum", high - 1)
    return inside


def monitored() -> list[str]:
    """Values for ``trainer.monitor``: the loss, and each of the project's metrics by name."""
    found = ["min val_loss", "min loss"]
    for name in METRICS.own():
        mode = "min" if any(word in name for word in SMALLER_IS_BETTER) else "max"
        found += [f"{mode} val_{name}", f"{mode} {name}"]
    return found
