"""A model layer by layer, as one batch goes through it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from utils.tree import tensors

HEADER = ("layer", "type", "output", "parameters")


@dataclass
class Trace:
    """The arguments of the model's first call, its latest outputs, and what each layer returned."""

    arguments: tuple[Any, ...] | None = None
    keywords: dict[str, Any] = field(default_factory=dict)
    outputs: Any = None
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    """Under HEADER: name, class, shape of the output and number of parameters, in the order of the calls."""

    def take_arguments(self, _: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if self.arguments is None:
            self.arguments = arguments
            self.keywords = keywords

    def take_outputs(self, _: nn.Module, __: Any, outputs: Any) -> None:
        self.outputs = outputs

    def take_layer(self, name: str, module: nn.Module, _: Any, outputs: Any) -> None:
        # attention takes the weights of its own layer without calling it
        recurse = isinstance(module, nn.MultiheadAttention)
        own = sum(parameter.numel() for parameter in module.parameters(recurse=recurse))
        self.rows.append((name, type(module).__name__, _shape(outputs), f"{own:,}" if own else ""))


@contextmanager
def traced(model: nn.Module, trace: Trace) -> Iterator[None]:
    """Inside, what the model is called with and what it returns is recorded in the trace."""
    handles = [model.register_forward_pre_hook(trace.take_arguments, with_kwargs=True)]
    handles += [model.register_forward_hook(trace.take_outputs)]
    for name, module in model.named_modules():
        leaf = next(module.children(), None) is None
        if leaf or next(module.parameters(recurse=False), None) is not None:
            handles.append(module.register_forward_hook(partial(trace.take_layer, name or "(the model)")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _shape(outputs: Any) -> str:
    """The shapes of all tensors in a nest, "(2, 10), (2, 5)"."""
    shapes = [str(tuple(tensor.shape)) for tensor in tensors(outputs)]
    return ", ".join(shapes) or type(outputs).__name__
