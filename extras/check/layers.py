"""A model layer by layer, as one batch goes through it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn


@dataclass
class Trace:
    """What the model was called with, what it gave, and what each layer gave."""

    arguments: tuple[Any, ...] | None = None
    keywords: dict[str, Any] = field(default_factory=dict)
    outputs: Any = None
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    """Name, kind, shape of the output and number of parameters, in the order of the calls."""

    def take_arguments(self, _: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if self.arguments is None:
            self.arguments, self.keywords = arguments, keywords

    def take_outputs(self, _: nn.Module, __: Any, outputs: Any) -> None:
        self.outputs = outputs

    def take_layer(self, name: str, module: nn.Module, _: Any, outputs: Any) -> None:
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        self.rows.append((name, type(module).__name__, shape(outputs), f"{own:,}" if own else ""))


@contextmanager
def traced(model: nn.Module, trace: Trace) -> Iterator[None]:
    """Inside, what the model is called with and gives is written into the trace."""
    handles = [model.register_forward_pre_hook(trace.take_arguments, with_kwargs=True)]
    handles += [model.register_forward_hook(trace.take_outputs)]
    for name, module in model.named_modules():
        if next(module.children(), None) is None:
            handles.append(module.register_forward_hook(partial(trace.take_layer, name or "(the model)")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def shape(value: Any) -> str:
    """The shapes in a nest of tensors."""
    tensors = [str(tuple(tensor.shape)) for _, tensor in named_tensors(value)]
    return ", ".join(tensors) or type(value).__name__


def named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a nest of lists, tuples and dicts; of a pair, the first are inputs and the second targets."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from named_tensors(item, f"{name}.{key}".strip("."))
    elif isinstance(value, (list, tuple)):
        pair = ("inputs", "targets") if not name and len(value) == 2 else ()
        for index, item in enumerate(value):
            yield from named_tensors(item, pair[index] if pair else f"{name}.{index}".strip("."))
