"""Checks arguments given in a config against the component's signature."""

import collections.abc
import dataclasses
import functools
import inspect
import json
import operator
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from pydantic.fields import FieldInfo

from utils.errors import Problem
from utils.schema import KeyPath
from utils.text import closest, hint

STRICT = ConfigDict(strict=True, allow_inf_nan=False)
LISTS = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)
DICTS = (dict, collections.abc.Mapping)
PLAIN = (int, float, bool, str, type(None), list, tuple, dict)
NOT_JSON = ", which JSON cannot express; register your own component that creates it"
# pydantic's terms, and those of JSON
WORDS = {
    "Input should": "should",
    "String should": "should",
    "List should": "should",
    "Tuple should": "should",
    "Field required": "should have more items",
    "valid array": "list",
    "valid list": "list",
    "a valid integer": "an integer",
    "a valid dictionary": "an object",
    "a valid ": "a ",
    "'": '"',
}
# what pydantic adds to the message of a validator in the user's code, and to its own
_BEFORE = re.compile(r"(Value error|Assertion failed), ")
_AFTER = re.compile(r" after validation, not \d+|, unable to parse string as .*")


class NotJson:
    """Marks a type that no JSON value can have: a tensor, a function, a module."""


def _of_torch(name: str) -> Any:
    """torch.NAME if torch, which takes seconds to import, is loaded; otherwise no annotation can refer to it."""
    return getattr(sys.modules.get("torch"), name, None)


def parameters(component: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The named parameters of a class's constructor or of a function, with resolved annotations.

    If a constructor takes **kwargs, the named parameters of its base classes are included.
    """
    if inspect.isclass(component) and issubclass(component, BaseModel):
        return {field.alias or name: of_field(field) for name, field in component.model_fields.items()}
    found: dict[str, inspect.Parameter] = {}
    for signature in _signatures(component):
        for name, parameter in signature.parameters.items():
            if name not in ("self", "cls") and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found.setdefault(name, parameter)
        if not _takes_keywords(signature):
            break
    fields = dataclasses.fields(component) if dataclasses.is_dataclass(component) else ()
    for field in fields:
        if field.name in found and field.default_factory is not dataclasses.MISSING:
            found[field.name] = found[field.name].replace(default=field.default_factory())
    return found


def of_field(field: FieldInfo) -> inspect.Parameter:
    """A field of a pydantic model as a parameter. Without its name: an alias such as "lambda" cannot be one."""
    annotation = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    default = field.get_default(call_default_factory=True, validated_data={})
    default = inspect.Parameter.empty if field.is_required() else default
    return inspect.Parameter("field", inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def annotations(component: Callable[..., Any], name: str) -> tuple[Any, ...]:
    """The annotations of a parameter in a class's constructor, then in those of its base classes."""
    signatures = [signature.parameters for signature in _signatures(component)]
    return tuple(known[name].annotation for known in signatures if name in known)


def takes_any_keyword(component: Callable[..., Any]) -> bool:
    """Whether the component accepts unknown names, and so has to reject them itself."""
    return all(map(_takes_keywords, _signatures(component)))


def _takes_keywords(signature: inspect.Signature) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())


def _signatures(component: Callable[..., Any]) -> list[inspect.Signature]:
    """The signature of a function, or those of the constructors of a class and its bases; annotations resolved."""
    if not inspect.isclass(component):
        functions = [component]
    elif "__new__" in vars(component):  # torchmetrics chooses the class by the argument "task"
        functions = [component.__new__]
    else:
        functions = [vars(cls)["__init__"] for cls in component.__mro__[:-1] if "__init__" in vars(cls)]
        # a library's own subclass fills in what its base class needs: F1 is F-beta with beta=1
        metrics = [place for place, each in enumerate(functions) if each.__module__.startswith("torchmetrics.")]
        functions = functions[: metrics[0] + 1] if metrics else functions
    signatures = []
    for function in functions or [lambda: None]:
        signature = inspect.signature(function)
        resolved = [p.replace(annotation=_resolve(function, p.annotation)) for p in signature.parameters.values()]
        signatures.append(signature.replace(parameters=resolved))
    return signatures


def _resolve(function: Callable[..., Any], annotation: Any) -> Any:
    """Resolve an annotation written as a string; Any if only a type checker can resolve it."""
    if not isinstance(annotation, str):
        return annotation
    names = {**vars(typing), **vars(collections.abc), **getattr(function, "__globals__", {})}
    try:
        return eval(annotation, names)
    except (NameError, TypeError, AttributeError, SyntaxError):
        return Any


def problems(
    component: str,
    known: Mapping[str, inspect.Parameter],
    args: Mapping[str, Any],
    path: KeyPath,
    *,
    takes_any: bool,
    complete: bool = True,
    filled: str | None = None,
) -> Iterator[Problem]:
    """Problems with the arguments of a component, which are at this path.

    known: the parameters that a config may set. takes_any: the component rejects unknown names itself.
    complete: whether all parameters without a default must be given. filled: one that may be omitted nevertheless.
    """
    for name, value in args.items():
        if name in known:
            yield from _type_problems((*path, name), known[name], value)
        elif not takes_any:
            instead = hint(name, known).replace("expected one of:", "it takes:")
            yield Problem((*path, name), f'{component} has no argument "{name}"; {instead}')
    meant = {filled, *(closest(name, known) for name in args if name not in known)}
    for name, parameter in known.items():
        required = complete and parameter.default is parameter.empty
        if required and name not in args and name not in meant:
            annotation = parameter.annotation
            how = f": {describe(annotation)}" if annotation is not inspect.Parameter.empty else ""
            cannot = NOT_JSON if json_type(annotation) is NotJson else ""
            yield Problem(path, f'{component} needs the argument "{name}"{how}{cannot}')


def _type_problems(path: KeyPath, parameter: inspect.Parameter, value: Any) -> Iterator[Problem]:
    """Problems with the type of the value at a path, one per path."""
    kind = json_type(parameter.annotation)
    if kind is NotJson:
        yield Problem(path, f"takes {describe(parameter.annotation)}{NOT_JSON}")
        return
    if parameter.default is None and value is None:
        return
    try:
        TypeAdapter(kind, config=STRICT).validate_json(json.dumps(value))
    except PydanticSchemaGenerationError:
        return
    except ValidationError as error:
        found: dict[KeyPath, list[str]] = {}  # a union has one per member
        for item in error.errors(include_url=False):
            found.setdefault(inside(value, item["loc"])[0], []).append(in_json_words(item["msg"]))
        for below, messages in found.items():
            yield Problem((*path, *below), f"{either(messages)}, got {shortened(inside(value, below)[1])}")


def in_json_words(message: str) -> str:
    """pydantic's message, in terms of JSON."""
    if own := _BEFORE.match(message):
        return message[own.end() :]
    for word, ours in WORDS.items():
        message = message.replace(word, ours)
    return _AFTER.sub("", message)


def either(messages: Iterable[str]) -> str:
    """What a value should be, by pydantic's messages about each member of a union."""
    first, *others = dict.fromkeys(messages)
    return " or ".join([first, *(message.removeprefix("should be ") for message in others)])


def as_written(kind: type) -> Any:
    """What a config gives for settings, or for a component."""
    return dict[str, Any] if is_settings(kind) else str | dict[str, Any]


def json_type(annotation: Any, of_object: Callable[[type], Any] = as_written) -> Any:
    """The part of an annotation that JSON can express: ``float`` of ``float | Tensor``; NotJson if there is none.

    of_object: gives the type for settings and components.
    """
    if annotation in (inspect.Parameter.empty, Any, object):
        return Any
    if is_tensor(annotation):
        return list[float] | None if _union(annotation) else list[float]
    if is_settings(annotation) or is_component(annotation):
        return of_object(annotation)
    if annotation in PLAIN or typing.get_origin(annotation) is Literal:
        return annotation
    if isinstance(annotation, type) and issubclass(annotation, Path):
        return str
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        kind = json_type(inner[0], of_object)
        if _union(inner[0]) and kind is not NotJson and of_object is not as_written:
            return Annotated[kind, *inner[1:]]
        return annotation if kind is inner[0] or _union(inner[0]) else kind
    if _union(annotation):
        # in a union with other types, a tensor is left out
        kinds = [json_type(item, of_object) for item in inner if not is_tensor(item)]
        kinds = [kind for kind in kinds if kind is not NotJson]
        useful = any(kind is not type(None) for kind in kinds)
        return functools.reduce(operator.or_, kinds) if useful else NotJson
    if origin not in (*LISTS, *DICTS):
        return NotJson
    kinds = [item if item is Ellipsis else json_type(item, of_object) for item in inner]
    if NotJson in kinds:
        return NotJson
    plain = dict if origin in DICTS else tuple if origin is tuple else list
    return plain[tuple(kinds)] if kinds else plain  # without, as of typing.List


def is_tensor(annotation: Any) -> bool:
    """Whether an argument can only be a tensor, such as class weights: a config gives a list of numbers."""
    kinds = set(typing.get_args(annotation)) - {type(None)} if _union(annotation) else {annotation}
    return kinds == {_of_torch("Tensor")}


def is_settings(annotation: Any) -> bool:
    """Whether an argument is a dataclass or pydantic model: a config gives an object with its fields."""
    return isinstance(annotation, type) and (dataclasses.is_dataclass(annotation) or issubclass(annotation, BaseModel))


def is_component(annotation: Any) -> bool:
    """Whether an argument is a module or a scheduler: a config gives a component."""
    nn, optim = _of_torch("nn"), _of_torch("optim")
    if nn is None or not isinstance(annotation, type):
        return False
    return issubclass(annotation, (nn.Module, optim.lr_scheduler.LRScheduler))


def describe(annotation: Any) -> str:
    """An annotation in plain words, as in "list of int", or "[int, str]" if each position has its own type."""
    if annotation in (inspect.Parameter.empty, Any):
        return "anything"
    if typing.get_origin(annotation) is Annotated:
        base, *limits = typing.get_args(annotation)
        return " ".join([describe(base), *filter(None, map(limited, limits))])
    if _union(annotation):
        return " or ".join(describe(kind) for kind in typing.get_args(annotation))
    if annotation is type(None):
        return "null"
    if is_tensor(annotation):
        return "list of float"
    if typing.get_origin(annotation) is Literal:
        return " or ".join(json.dumps(value) for value in typing.get_args(annotation))
    if typing.get_origin(annotation) in LISTS and (kinds := typing.get_args(annotation)):
        if typing.get_origin(annotation) is tuple and kinds[-1:] != (...,):
            return f"[{', '.join(map(describe, kinds))}]"
        return f"list of ({describe(kinds[0])})" if _union(kinds[0]) else f"list of {describe(kinds[0])}"
    if isinstance(annotation, type):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("collections.abc.", "")


def limited(limit: Any) -> str:
    """The constraint in an annotation, as "> 0"; empty if it is something else."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    limits = [limit, *getattr(limit, "metadata", [])]
    return " ".join(
        f"{sign} {getattr(item, name)}" for item in limits for name, sign in signs.items() if hasattr(item, name)
    )


def _union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (Union, types.UnionType)


def inside(value: Any, path: KeyPath) -> tuple[KeyPath, Any]:
    """The part of a path that exists in a value, and the value there; pydantic's paths also name union members."""
    found: list[str | int] = []
    for part in path:
        in_list = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if in_list or (isinstance(value, dict) and part in value):
            value = value[part]
            found.append(part)
    return tuple(found), value


def shortened(value: Any) -> str:
    """A value as JSON, truncated if long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
