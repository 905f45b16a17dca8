"""What a step gives, and what a metric is."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

MetricFunction = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) -> float of shape (B,)."""


class StepResult(NamedTuple):
    """What a training or evaluation step gives."""

    loss: Tensor
    """Of shape ()."""
    outputs: Tensor
    """Of shape (B, ...)."""
    targets: Tensor
    """Of shape (B, ...)."""
    log: Mapping[str, Tensor | float] = MappingProxyType({})
    """Further values to log, of shape (), each a mean over the samples; the trainer's ``logs`` names them."""
    count: Tensor | float | None = None  # type: ignore[assignment]  # tuple.count gives way
    """What the loss is a mean over, shape (), such as the tokens that are not padding; None: samples. torch's losses of
    class indices (cross entropy) are counted by themselves."""
