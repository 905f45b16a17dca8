"""What an annotation lets a config give, how it is described, and what is said of arguments that do not fit."""

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pytest
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from utils.arguments import (
    NotJson,
    describe,
    either,
    in_json_words,
    inside,
    json_type,
    parameters,
    problems,
    shortened,
    takes_any_keyword,
)

NOTHING = inspect.Parameter.empty


@dataclass
class Settings:
    size: int
    scales: list[float] = field(default_factory=lambda: [1.0])
    own: list[int] = field(default_factory=list, init=False)


class Model(pydantic.BaseModel):
    kind: str = Field(alias="type")
    size: PositiveInt = 3


@pytest.mark.parametrize(
    ("annotation", "kind", "description"),
    [
        (NOTHING, Any, "anything"),
        (Any, Any, "anything"),
        (object, Any, "object"),
        (int, int, "int"),
        (type(None), type(None), "null"),
        (Literal["a", 1], Literal["a", 1], '"a" or 1'),
        (Path | None, str | None, "Path or null"),
        (PositiveInt, PositiveInt, "int > 0"),
        (Annotated[int | None, Field(ge=1, lt=3)], None, "int or null >= 1 < 3"),
        (Annotated[Path, "note"], str, "Path"),
        (Tensor, list[float], "list of float"),
        (Tensor | None, list[float] | None, "list of float or null"),
        (Tensor | float, float, "list of float or float"),
        (Settings | None, dict[str, Any] | None, "Settings or null"),
        (Model, dict[str, Any], "Model"),
        (nn.Module, str | dict[str, Any], "Module"),
        (LRScheduler, str | dict[str, Any], "LRScheduler"),
        (list[int | str], list[int | str], "list of (int or str)"),
        (Sequence[Tensor], list[list[float]], "list of list of float"),
        (tuple[int, str], tuple[int, str], "[int, str]"),
        (tuple[int, ...], tuple[int, ...], "list of int"),
        (Mapping[str, Settings], dict[str, dict[str, Any]], None),
        (list[int], list[int], "list of int"),
        (dict[str, Any], dict[str, Any], "dict[str, Any]"),
        (Callable[[int], int], NotJson, "Callable[[int], int]"),
        (Callable[[int], int] | int, int, "Callable[[int], int] or int"),
        (Callable[[int], int] | None, NotJson, "Callable[[int], int] or null"),
        (list[torch.device], NotJson, "list of device"),
        (set[int], NotJson, "set[int]"),
        (typing.List, list, "List"),  # noqa: UP006
        (typing.Optional[typing.Tuple], tuple | None, "Tuple or null"),  # noqa: UP006, UP045
    ],
)
def test_what_a_config_can_give(annotation: Any, kind: Any, description: str | None) -> None:
    assert json_type(annotation) == (annotation if kind is None else kind)
    assert description is None or describe(annotation) == description


Weights = Annotated[Tensor | None, "one per class"]


def component(size: int, factor: float = 1, *, on: torch.device, none: int = None, w: Weights = None) -> None:  # type: ignore # noqa: RUF013
    pass


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"size": 1, "on": "cpu", "w": 0}, ["on takes device, which JSON cannot express"]),
        ({"size": 1, "none": None, "factor": 2}, ['component needs the argument "on": device, which JSON cannot']),
        ({"size": 1.5, "on": 0, "factor": None}, ["size should be an integer, got", "on takes", "factor should be"]),
        ({"size": 1, "none": 0.5, "on": 0}, ["none should be an integer, got 0.5", "on takes"]),
        ({"sise": 1, "on": 0}, ['sise component has no argument "sise"; did you mean "size"?', "on takes"]),
        ({"x": 1, "on": 0}, ['x component has no argument "x"; it takes: ', "on takes", 'the argument "size": int']),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit(args: dict[str, Any], expected: list[str]) -> None:
    def found(**more: Any) -> list[str]:
        each = problems("component", parameters(component), args, (), **{"takes_any": False, **more})
        return [" ".join([*map(str, problem.path), problem.message]) for problem in each]

    assert len(found()) == len(expected)
    for message, start in zip(found(), expected, strict=True):
        assert start in message
    assert not any("has no argument" in message for message in found(takes_any=True))
    assert not any("needs the argument" in message for message in found(complete=False))
    assert not any('needs the argument "size"' in message for message in found(filled="size"))


def test_parameters_of_settings() -> None:
    assert {name: each.default for name, each in parameters(Settings).items()} == {"size": NOTHING, "scales": [1.0]}
    assert {name: each.default for name, each in parameters(Model).items()} == {"type": NOTHING, "size": 3}
    assert describe(parameters(Model)["size"].annotation) == "int > 0"


def test_what_takes_any_keyword() -> None:
    class Bare:
        pass

    assert [takes_any_keyword(each) for each in (Bare, component, lambda **_: None)] == [False, False, True]


def test_annotations_that_only_a_type_checker_resolves_are_anything() -> None:
    def own(a: "Unknown", b: "1 | 2", c: "torch.nothing", d: "a note", e: "int | None", f: "'Net' | None") -> None: ...  # type: ignore # noqa: F722, F821

    assert [each.annotation for each in parameters(own).values()] == [Any, 3, Any, Any, int | None, Any]


def test_what_exists_of_a_path_and_the_value_there() -> None:
    value = {"a": [{"b": 1}]}
    assert inside(value, ("a", 0, "b")) == (("a", 0, "b"), 1)
    assert inside(value, ("a", "list[int]", 0, "b", "int")) == (("a", 0, "b"), 1)
    assert inside(value, ("x", "a", 0, 0, "b")) == (("a", 0, "b"), 1)
    assert inside(value, ("a", 1)) == (("a",), [{"b": 1}])


def test_words_of_messages() -> None:
    assert in_json_words("Input should be a valid list") == "should be a list"
    assert in_json_words("Value error, Input should stay") == "Input should stay"
    assert in_json_words("Tuple should have at most 2 items after validation, not 3") == "should have at most 2 items"
    assert either(["should be a number", "should be null", "should be null"]) == "should be a number or null"
    assert shortened("x" * 58) == f'"{"x" * 58}"'
    assert shortened("x" * 60) == f'"{"x" * 56}...'
