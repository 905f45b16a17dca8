"""config.schema.json: what editors complete and check, from the schema and every component's signature.

``make schema`` writes it together with docs/config.md. Loading a config checks it against the same signatures; the
schema only helps to write it.
"""

import inspect
import json
from collections.abc import Collection, Mapping
from importlib.metadata import version
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter, WithJsonSchema
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError
from pydantic.fields import FieldInfo

from extras.schema import docstrings
from utils.arguments import STRICT, NotJson, is_component, json_type, parameters
from utils.config.schedulers import FROM_RUN_LENGTH
from utils.registry import METRICS, REGISTRIES, WRITERS, Registry, registry_inside
from utils.schema import SEVERAL_BY_NAME, Config, KeyPath
from utils.schema_fields import keys_of, section_at

Schema = dict[str, Any]

# sources of signatures and docstrings; with other versions than the recorded ones, the libraries' may differ
LIBRARIES = ("torch", "torchmetrics", "pydantic")
REFERENCE = {"$ref": "#/definitions/reference"}
NOT_ANY_STRING = {"pattern", "enum", "const", "anyOf", "allOf", "$ref"}
# the kinds of which a config has a list
ELEMENTS: dict[str, KeyPath] = {"metrics": ("metrics", 0), "writers": ("trainer", "writers", 0)}
NULL = {"type": "null"}


def config_schema() -> Schema:
    """The whole schema, as JSON Schema draft 7, which all editors support.

    It requires no key or argument, and null is allowed for all that have a default: a config that extends another gives
    only what differs, and removes an inherited value by null.
    """
    about = "A variable, an environment variable, or a fact of the data: ${NAME}, ${env:NAME}, ${data.NAME}."
    definitions: Schema = {"reference": {"type": "string", "pattern": r"\$\{[^{}]+\}", "description": about}}
    for kind, registry in REGISTRIES.items():
        if kind != "validation":  # a data loader
            definitions |= _definitions(kind, registry)
    definitions |= _definitions("writers", WRITERS)
    extends = "Path of a config, relative to this file, from which all keys not given here are inherited."
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "An experiment",
        "description": inspect.cleandoc(Config.__doc__ or ""),
        "$comment": "Written by make schema; do not edit.",
        "madeWith": {name: ".".join(version(name).split(".")[:2]) for name in LIBRARIES},
        "type": "object",
        "properties": {
            "extends": {"type": "string", "description": extends},
            **{key: _of_key(key, field) for key, field in keys_of(Config).items()},
        },
        "additionalProperties": False,
        "definitions": definitions,
    }


def dumps(schema: Schema) -> str:
    """The schema as text with one definition per line, a fifth of the size of indented JSON."""
    definitions = [
        f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in schema["definitions"].items()
    ]
    rest = json.dumps({**schema, "definitions": {}}, indent=1, ensure_ascii=False)
    return rest.replace('"definitions": {}', '"definitions": {\n  ' + ",\n  ".join(definitions) + "\n }") + "\n"


def _of_key(key: str, field: FieldInfo) -> Schema:
    """The values allowed for a key of a config."""
    section = section_at((key,))
    if key in REGISTRIES and key != "trainer":
        schema = _component(key)
    elif section:
        schema = _section(key, section)
    else:
        return _plain(Config, key)
    return _about(field.description, schema if field.is_required() else _or(schema, NULL))


def _component(kind: str) -> Schema:
    """The values allowed for a component: an object or a name, one or several."""
    reference: Schema = {"$ref": f"#/definitions/{'data_loader' if kind == 'validation' else kind}"}
    if kind == "metrics":
        reference = {"type": "array", "items": _or(reference, REFERENCE)}
    if kind in SEVERAL_BY_NAME:
        reference = _one_or_several(kind, reference)
    return _or(reference, REFERENCE)


def _one_or_several(kind: str, reference: Schema) -> Schema:
    """A component, or an object of components by name, which has none of a component's keys."""
    section = section_at((kind,))
    assert section is not None
    by_name = {
        "type": "object",
        "minProperties": 1,
        "properties": dict.fromkeys(keys_of(section), False),
        "additionalProperties": {"type": ["object", "string"]},
        "anyOf": [{"minProperties": 2}, {"additionalProperties": {"type": "object"}}],  # one string: a misspelt "type"
    }
    several = {"type": "object", "additionalProperties": reference}
    return {"if": by_name, "then": several, "else": reference}


def _definitions(kind: str, registry: Registry) -> Schema:
    """A definition of the kind, and one for the arguments of each of its components."""
    made: Schema = {}
    by_name: list[Schema] = []
    for name in registry.names():
        made[f"{kind}.{name}"] = _arguments(kind, registry, name)
        args: Schema = {"properties": {"args": {"$ref": f"#/definitions/{kind}.{name}"}}}
        then = args
        if kind == "optimizer":  # a parameter group takes the same arguments
            then = {"properties": {**args["properties"], "groups": {"items": args}}}
        named: Schema = {"properties": {"type": {"const": name}}}
        if name != registry.default:
            named["required"] = ["type"]
        by_name.append({"if": named, "then": then})
    if kind == "trainer":  # has further keys besides "type" and "args"
        return {**made, "trainer.types": {"allOf": by_name}}
    made[f"{kind}.names"] = {
        "anyOf": [{"const": n, "description": docstrings.paragraph(registry[n])} for n in registry.names()]
    }
    section = section_at(ELEMENTS.get(kind, (kind,)))
    assert section is not None
    keys = {key: _plain(section, key) for key in keys_of(section)}
    keys["type"] = _about(
        section.model_fields["type"].description, {"anyOf": [{"$ref": f"#/definitions/{kind}.names"}, REFERENCE]}
    )
    whole = {"type": "object", "properties": keys, "additionalProperties": False, "allOf": by_name}
    if kind in ELEMENTS:  # nothing inherits from an element of a list
        whole["required"] = ["type"]
    made[kind] = {"anyOf": [{"enum": registry.names()}, whole]}
    return made


def _arguments(kind: str, registry: Registry, name: str) -> Schema:
    """The "args" of a component."""
    known = registry.parameters(name)
    optional = {key for key, each in known.items() if each.default is not each.empty}
    properties = _properties(kind, registry[name], known, nullable={*optional, FROM_RUN_LENGTH.get(name)})
    return {"type": "object", "properties": properties, "additionalProperties": registry.takes_any(name)}


def _properties(
    kind: str, described: Any, known: Mapping[str, inspect.Parameter], *, nullable: Collection[str | None]
) -> Schema:
    """The arguments of a component, or the fields of settings, that JSON can express. nullable: those that take null.

    described: the component or class, whose docstring describes them.
    """
    texts = docstrings.arguments(described, known)
    found: Schema = {}
    for name, parameter in known.items():
        schema = _of_annotation(kind, parameter.annotation)
        if schema is None:
            continue
        if schema:
            schema = _or_reference(schema)
            schema = _or(schema, NULL) if name in nullable else schema
        found[name] = _about(texts.get(name), _with_default(schema, parameter.default))
    return found


def _of_annotation(kind: str, annotation: Any) -> Schema | None:
    objects: Schema = {}

    def stand_in(described: type) -> Any:
        """A type whose schema refers to that of settings or of a component."""
        name = f"{len(objects)}"
        objects[name] = _or(_of_object(kind, described), REFERENCE)
        return Annotated[Any, WithJsonSchema({"$object": name})]

    value = json_type(annotation, stand_in)
    if value is NotJson:
        return None
    try:
        schema = TypeAdapter(value, config=STRICT).json_schema()
        return dict(_draft_7(schema, schema.pop("$defs", {}) | objects))
    except (PydanticSchemaGenerationError, PydanticInvalidForJsonSchema):
        return {}


def _of_object(kind: str, described: type) -> Schema:
    """The schema of settings, or of a component."""
    if is_component(described):
        inside = next(name for name, one in REGISTRIES.items() if one is registry_inside(REGISTRIES[kind]))
        return {"allOf": [{"$ref": f"#/definitions/{inside}"}, {"properties": {"weights": False}}]}
    fields = parameters(described)
    nullable = [name for name, field in fields.items() if field.default is None]
    properties = _properties(kind, described, fields, nullable=nullable)
    required = [name for name, field in fields.items() if field.default is field.empty]
    takes_any = getattr(described, "model_config", {}).get("extra") == "allow"
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": takes_any}


def _or_reference(schema: Schema) -> Schema:
    """Allow a reference as well, in place of the value and of every value inside a list or an object."""

    def inside(value: Any) -> Any:
        if isinstance(value, list):
            return [_or_reference(item) for item in value]
        return _or_reference(value) if isinstance(value, dict) else value

    schema = {
        key: inside(value) if key in ("items", "additionalProperties") else value for key, value in schema.items()
    }
    if "properties" in schema:
        schema["properties"] = {key: _or_reference(value) for key, value in schema["properties"].items()}
    alternatives = schema.get("anyOf", [schema])
    if any(one.get("type", "string") == "string" and not one.keys() & NOT_ANY_STRING for one in alternatives):
        return schema
    return _or(schema, REFERENCE)


def _or(schema: Schema, other: Schema) -> Schema:
    """Allow other values as well."""
    if other in schema.get("anyOf", ()):
        return schema
    about: Schema = {key: schema[key] for key in ("description", "default", "examples", "anyOf") if key in schema}
    value = {key: item for key, item in schema.items() if key not in about}
    return {**about, "anyOf": [*about.get("anyOf", [value]), other]}


def _draft_7(schema: Any, definitions: Schema) -> Any:
    """pydantic's schema in draft 7, without titles, and with definitions in place of references to them."""
    if isinstance(schema, list):
        return [_draft_7(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$object" in schema:
        return definitions[schema["$object"]]
    if "$ref" in schema:
        named = definitions[schema["$ref"].removeprefix("#/$defs/")]
        return _draft_7({**named, **{key: value for key, value in schema.items() if key != "$ref"}}, definitions)
    # pydantic writes tuples in the style of JSON Schema 2020-12
    renamed = {"items" if key == "prefixItems" else key: _draft_7(value, definitions) for key, value in schema.items()}
    renamed.pop("title", None)
    return renamed


def _section(key: str, section: type[BaseModel]) -> Schema:
    """An object of plain keys, such as "trainer" or "runtime"."""
    keys = {name: _plain(section, name) for name in keys_of(section)}
    schema: Schema = {"type": "object", "properties": keys, "additionalProperties": False}
    if key == "trainer":
        registry = REGISTRIES[key]
        keys["type"] = {**keys["type"], "enum": [*registry.names(), None]}
        items = {"anyOf": [{"$ref": "#/definitions/writers"}, REFERENCE]}
        keys["writers"] = {**keys["writers"], "anyOf": [{"type": "array", "items": items}, REFERENCE, NULL]}
        schema["allOf"] = [{"$ref": "#/definitions/trainer.types"}]
        keys["monitor"] = {**keys["monitor"], "examples": _monitored()}
    return schema


def _monitored() -> list[str]:
    """Values for ``trainer.monitor``: the loss, and each of the project's metrics by name."""
    found = ["min val_loss", "min loss"]
    for name in METRICS.own():
        mode = "min" if "error" in name or "loss" in name else "max"
        found += [f"{mode} val_{name}", f"{mode} {name}"]
    return found


def _plain(section: type[BaseModel], key: str) -> Schema:
    """A key of the schema itself."""
    field = keys_of(section)[key]
    whole = section.model_json_schema(by_alias=True)
    schema = _or_reference(_draft_7(whole["properties"][key], whole.get("$defs", {})))
    return _about(field.description, schema if field.is_required() else _or(schema, NULL))


def _with_default(schema: Schema, default: Any) -> Schema:
    try:
        json.dumps(default, allow_nan=False)
    except (TypeError, ValueError):  # no default, or none that JSON can express
        return schema
    return {**schema, "default": default}


def _about(description: str | None, schema: Schema) -> Schema:
    if not description:
        return schema
    text = " ".join(description.split())
    # draft 7 ignores all keys besides "$ref"
    return {"description": text, "allOf": [schema]} if "$ref" in schema else {**schema, "description": text}
