"""Losses: functions of (outputs, targets) that return a tensor of shape (). A config may also name losses of torch.nn.

A loss is a mean over samples unless its argument ``reduction`` is "sum".
"""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from utils.registry import LOSSES

Reduction = Literal["mean", "sum"]


@LOSSES.register
def cross_entropy(
    outputs: Tensor,
    targets: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: Annotated[float, Field(ge=0, le=1)] = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross entropy of logits of shape (B, C, ...) and class indices, int64 of shape (B, ...).

    weight: of each class, float of shape (C,).
    ignore_index: a target that does not count.
    label_smoothing: part of the target's probability that is spread over all classes, 0 to 1.
    reduction: "mean" over the targets that count, or their "sum".
    """
    return F.cross_entropy(
        outputs,
        targets,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )


@LOSSES.register
def mse_loss(outputs: Tensor, targets: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Squared error over all elements of outputs and targets, which have the same shape.

    reduction: "mean" over all elements, or their "sum".
    """
    return F.mse_loss(outputs, targets, reduction=reduction)
