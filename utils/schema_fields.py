"""Looks up the keys of utils/schema.py: what a config may have at a path."""

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from utils.schema import Config, KeyPath


def keys_of(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a section, by the keys used in a config."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def section_at(path: KeyPath) -> type[BaseModel] | None:
    """The section class for the object at a config path; None inside component arguments."""
    return next(_sections(_annotation_at(path)), None)


def field_at(path: KeyPath) -> FieldInfo | None:
    """The schema field at a config path; None for an argument, a list element or a name."""
    return _field(_annotation_at(path[:-1]), path[-1])


def _field(annotation: Any, key: str | int) -> FieldInfo | None:
    known = map(keys_of, _sections(annotation))
    return next((keys[key] for keys in known if key in keys), None)


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    return (kind for kind in alternatives(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel))


def _annotation_at(path: KeyPath) -> Any:
    annotation: Any = Config
    for key in path:
        if field := _field(annotation, key):
            annotation = field.annotation
            continue
        elements = list if isinstance(key, int) else dict
        inside = [get_args(kind)[-1] for kind in alternatives(annotation) if get_origin(kind) is elements]
        annotation = inside[0] if inside else None
    return annotation


def alternatives(annotation: Any) -> Iterator[Any]:
    """The members of a union with ``Annotated`` stripped; for any other annotation, itself."""
    if get_origin(annotation) is Annotated:
        yield from alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from alternatives(member)
    else:
        yield annotation
