"""Metrics that are means over samples: each function gives one number a sample, shape (B,), and the mean follows.

What is no mean over samples (F1, AUROC ...) is a class of torchmetrics, named in the config.
"""

from pydantic import PositiveInt
from torch import Tensor

from utils.errors import ConfigError
from utils.registry import METRICS


@METRICS.register
def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the largest logit of (B, C) is the target's, of shape (B,)."""
    return (outputs.argmax(1) == targets).float()


@METRICS.register
def top_k_accuracy(outputs: Tensor, targets: Tensor, *, k: PositiveInt = 5) -> Tensor:
    """1 where the target's is among the k largest logits of (B, C)."""
    if k > outputs.shape[1]:
        raise ConfigError(f"metrics: top_k_accuracy with k = {k} has only {outputs.shape[1]} classes")
    return (outputs.topk(k, dim=1).indices == targets[:, None]).any(1).float()


@METRICS.register
def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over the elements of a sample."""
    return (outputs - targets).square().flatten(1).mean(1)


@METRICS.register
def mean_absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over the elements of a sample."""
    return (outputs - targets).abs().flatten(1).mean(1)
