"""Builds a component from its name and arguments, including nested settings and components.

Errors have the path in the config of what is wrong; ``utils.config.located`` adds the line.
"""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from utils.arguments import in_json_words, is_component, parameters
from utils.errors import CheckpointError, ConfigError, DataError, UserError
from utils.nested_arguments import built
from utils.paths import project_path
from utils.registry import LOSSES, Registry, registry_inside
from utils.schema import Component, KeyPath
from utils.user_code import format_error_with_source, user_line

T = TypeVar("T")


def construct(registry: Registry, component: Component, path: KeyPath, expected: type[T], *first: Any) -> T:
    """The component at a config path. first: positional arguments that do not come from the config."""
    args = arguments_of(registry, component.type, component.args, (*path, "args"))
    make = functools.partial(registry[component.type], *first, **args)
    return call((*path, "args"), component.type, make, expected)


def arguments_of(registry: Registry, name: str, args: Mapping[str, Any], path: KeyPath) -> dict[str, Any]:
    """The arguments at a config path as the component takes them, with nested settings and components built."""

    def build(kind: type[Any], value: Any, at: KeyPath) -> Any:
        if kind is Tensor:
            return torch.tensor(value, dtype=torch.get_default_dtype())
        if kind is Path:
            return project_path(value)
        if not is_component(kind):
            return call(at, kind.__name__, lambda: kind(**built(parameters(kind), value, build, at)), kind)
        inner, component = registry_inside(registry), Component.model_validate(value)
        if inner is LOSSES and not inspect.isclass(inner[component.type]) and kind is nn.Module:
            inner_args = arguments_of(inner, component.type, component.args, (*at, "args"))
            module = nn.Module()  # as the argument expects
            module.forward = functools.partial(inner[component.type], **inner_args)
            return module
        return construct(inner, component, at, kind)

    return built(registry.parameters(name), args, build, path)


def call(path: KeyPath, name: str, make: Callable[[], Any], expected: type[T] | tuple[type[T], ...]) -> T:
    """Call a component. Errors name its path in the config and, if raised in the user's own code, the line there."""
    try:
        built = make()
    except (CheckpointError, DataError) as error:
        if path[0] == "trainer":  # of a teacher that its constructor loads, with a config of its own
            raise type(error)(str(error), path) from error
        raise type(error)(error.message, (*path, *error.path[2:])) from error  # of an argument of this data loader
    except UserError:
        raise
    except Exception as error:
        raise ConfigError(f"{name} cannot be built: {_reason(error)}", path) from error
    if not isinstance(built, expected):
        kinds = expected if isinstance(expected, tuple) else (expected,)
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ConfigError(f"{name} returns {type(built).__name__}; expected {names}", path)
    return built


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        twice = re.search(r"got multiple values for keyword argument ('\w+')", str(error))
        leave_out = "leave it out of the config; if it is required there, give it a default in the constructor"
        advice = f"\nThe code sets {twice[1]} itself: {leave_out}" if twice else ""
        return format_error_with_source(error).removeprefix("ValueError: ") + advice
    reasons = []
    for item in error.errors():
        message = in_json_words(item["msg"])
        where = ".".join(map(str, item["loc"]))
        reasons.append(f"{where}: {message}" if where else message)
    return "\n".join(filter(None, ["; ".join(reasons), user_line(error)]))


def check_super(path: KeyPath, component: Any, attribute: str, arguments: str) -> None:
    """Raise ConfigError if a component lacks an attribute of its base class, whose constructor was not called.

    arguments: of the base class's constructor, for the message.
    """
    if not hasattr(component, attribute):
        raise ConfigError(f"{type(component).__name__}.__init__ does not call super().__init__({arguments})", path)


def check_overrides(path: KeyPath, component: Any, base: type) -> None:
    """Raise ConfigError if a component uses the name of a method of its base class for something else."""
    kind = type(component).__name__
    for name, method in inspect.getmembers(base, inspect.isfunction):
        override = vars(component).get(name, getattr(type(component), name))
        if override is method or name.startswith("__"):
            continue
        expected = [each for each in inspect.signature(method).parameters.values() if each.default is each.empty]
        signature = ", ".join(("*, " if each.kind is each.KEYWORD_ONLY else "") + each.name for each in expected)
        should = f"{kind}.{name} should be ({signature}), as in {base.__name__}"
        positional = [None for each in expected[1:] if each.kind is each.POSITIONAL_OR_KEYWORD]
        keywords = {each.name: None for each in expected if each.kind is each.KEYWORD_ONLY}
        try:
            inspect.signature(getattr(component, name)).bind(*positional, **keywords)
        except TypeError as error:
            raise ConfigError(f"{should}: {error}; anything else needs another name", path) from error


def check_attributes(path: KeyPath, trainer: Any) -> None:
    """Raise ConfigError if a BaseTrainer's subclass uses the name of one of its attributes for something else."""
    kind = f"{type(trainer).__name__}.__init__"
    if trainer.model is not trainer.experiment.model:
        message = "replaces the config's model in self.model, which alone is trained and saved"
        raise ConfigError(f"{kind} {message}; wrap it in a model of your own, in model/", path)
    changed = [name for name in trainer.SET_BY_BEGIN if name in vars(trainer)]
    for name, expected in trainer.base_attributes.items():
        if name != "criterion" and expected is not type(None) and not isinstance(vars(trainer).get(name), expected):
            changed.append(name)
    if changed:
        raise ConfigError(f"{kind} sets self.{changed[0]}, which the base class sets; give it another name", path)
