"""Builds a component from its name and arguments, including nested settings and components."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from utils.arguments import in_json_words, is_module, parameters
from utils.config import LoadedConfig
from utils.errors import DataError, UserError
from utils.nested_arguments import built
from utils.paths import project_path
from utils.registry import LOSSES, Registry, registry_inside
from utils.schema import Component, KeyPath
from utils.user_code import format_error_with_source, user_line

T = TypeVar("T")


def construct(
    loaded: LoadedConfig, registry: Registry, component: Component, path: KeyPath, expected: type[T], *first: Any
) -> T:
    """The component at a config path. first: positional arguments that do not come from the config."""
    args = arguments_of(loaded, registry, component.type, component.args, (*path, "args"))
    make = functools.partial(registry[component.type], *first, **args)
    return call(loaded, (*path, "args"), component.type, make, expected)


def arguments_of(
    loaded: LoadedConfig, registry: Registry, name: str, args: Mapping[str, Any], path: KeyPath
) -> dict[str, Any]:
    """The arguments at a config path as the component takes them, with nested settings and components built."""

    def build(kind: type[Any], value: Any, at: KeyPath) -> Any:
        if kind is Tensor:
            return torch.tensor(value, dtype=torch.get_default_dtype())
        if kind is Path:
            return project_path(value)
        if not is_module(kind):
            return call(loaded, at, kind.__name__, lambda: kind(**built(parameters(kind), value, build, at)), kind)
        inner, component = registry_inside(registry), Component.model_validate(value)
        if inner is LOSSES and not inspect.isclass(inner[component.type]) and kind is nn.Module:
            inner_args = arguments_of(loaded, inner, component.type, component.args, (*at, "args"))
            return FunctionModule(functools.partial(inner[component.type], **inner_args))
        return construct(loaded, inner, component, at, kind)

    return built(registry.parameters(name), args, build, path)


class FunctionModule(nn.Module):
    """Wraps a loss function where a module is needed."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def moved(value: Any, device: torch.device) -> Any:
    """A tensor or module on the device, also inside lists and dicts; anything else unchanged."""
    if isinstance(value, (Tensor, nn.Module)):
        return value.to(device)
    if isinstance(value, list):
        return [moved(item, device) for item in value]
    return {key: moved(item, device) for key, item in value.items()} if type(value) is dict else value


def call(
    loaded: LoadedConfig, path: KeyPath, name: str, make: Callable[[], Any], expected: type[T] | tuple[type[T], ...]
) -> T:
    """Call a component. Errors name its line in the config and, if raised in the user's own code, the line there."""
    try:
        built = make()
    except DataError as error:
        raise DataError(str(loaded.error(path, str(error)))) from error
    except UserError:
        raise
    except Exception as error:
        raise loaded.error(path, f"{name} cannot be built: {_reason(error)}") from error
    if not isinstance(built, expected):
        kinds = expected if isinstance(expected, tuple) else (expected,)
        names = " or ".join(kind.__name__ for kind in kinds)
        article = "an" if names[0] in "AEIOU" else "a"
        raise loaded.error(path, f"{name} should return {article} {names}, but returns {type(built).__name__}")
    return built


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return format_error_with_source(error).removeprefix("ValueError: ")
    found = [(".".join(map(str, item["loc"])), in_json_words(item["msg"])) for item in error.errors()]
    return "\n".join(filter(None, ["; ".join(": ".join(filter(None, each)) for each in found), user_line(error)]))


def check_super(loaded: LoadedConfig, path: KeyPath, component: Any, attribute: str, arguments: str) -> None:
    """Raise ConfigError if a component lacks an attribute of its base class, whose constructor was not called.

    arguments: of the base class's constructor, for the message.
    """
    if not hasattr(component, attribute):
        raise loaded.error(path, f"{type(component).__name__}.__init__ does not call super().__init__({arguments})")


@contextmanager
def checked_signature(loaded: LoadedConfig, path: KeyPath, name: str, expected: str) -> Iterator[None]:
    """Inside the block, a TypeError means that the named method does not have the expected signature."""
    try:
        yield
    except TypeError as error:
        raise loaded.error(path, f"{name} should be {expected}: {error}") from error
