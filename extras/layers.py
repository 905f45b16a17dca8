"""A model layer by layer, recorded while a batch runs through it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from utils.tree import tensors

HEADER = ("layer", "type", "output", "parameters")


Row = tuple[str, str, str, str]


@dataclass
class Layer:
    """A layer that was called: its class, its number of parameters, and the output shape of each call."""

    kind: str
    parameters: int
    shapes: list[str] = field(default_factory=list)

    def row(self, name: str) -> Row:
        shapes = list(dict.fromkeys(self.shapes))
        output = "; ".join([*shapes[:3], *(["..."] if shapes[3:] else [])])
        if len(self.shapes) > 1:
            output += f", called {len(self.shapes)} times"
        return name, self.kind, output, f"{self.parameters:,}" if self.parameters else ""


@dataclass
class Trace:
    """The arguments and outputs of the model's latest call, and what each layer returned."""

    arguments: tuple[Any, ...] | None = None
    keywords: dict[str, Any] = field(default_factory=dict)
    outputs: Any = None
    layers: dict[str, Layer] = field(default_factory=dict)
    """By name, in order of first call."""

    @property
    def rows(self) -> list[Row]:
        """Rows for HEADER: name, class, output shape and number of parameters of each layer."""
        return [layer.row(name) for name, layer in self.layers.items()]

    def take_arguments(self, _: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.arguments = arguments
        self.keywords = keywords

    def take_outputs(self, _: nn.Module, __: Any, outputs: Any) -> None:
        self.outputs = outputs

    def take_layer(self, name: str, module: nn.Module, _: Any, outputs: Any) -> None:
        # attention takes the weights of its own layer without calling it
        recurse = isinstance(module, nn.MultiheadAttention)
        own = sum(parameter.numel() for parameter in module.parameters(recurse=recurse))
        layer = self.layers.setdefault(name, Layer(type(module).__name__, own))
        layer.shapes.append(_shape(outputs))


@contextmanager
def traced(model: nn.Module, trace: Trace) -> Iterator[None]:
    """Inside the block, record the model's inputs and outputs in the trace."""
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
    # torch's encoder skips padding by nested tensors, which have no shape
    shapes = ["nested" if tensor.is_nested else str(tuple(tensor.shape)) for tensor in tensors(outputs)]
    return ", ".join(shapes) or type(outputs).__name__
