"""What a step gives, and what a metric is."""

from collections.abc import Callable
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
