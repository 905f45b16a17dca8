"""The result of a step, and the type of a metric."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

MetricFunction = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) -> float of shape (B,)."""


class StepResult(NamedTuple):
    """The result of a training or evaluation step."""

    loss: Tensor
    """Of shape ()."""
    outputs: Tensor
    """Of shape (B, ...)."""
    targets: Tensor
    """Of shape (B, ...)."""
    log: Mapping[str, Tensor | float] = MappingProxyType({})
    """Additional values to log, of shape (), each a mean over the samples; named in the trainer's ``logs``."""
    count: Tensor | float | None = None  # type: ignore[assignment]  # tuple.count gives way
    """What the loss is averaged over, shape (), such as the tokens that are not padding; None: samples. Counted
    automatically for torch's losses of class indices (cross entropy)."""
