"""Losses: functions of (outputs, targets) that return a tensor of shape (). A config can also name losses of torch.nn.

A loss is averaged over samples unless its argument ``reduction`` is "sum": it is then logged as the sum over a step in
training, and over all samples in validation and test.
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

    weight: per class, float of shape (C,).
    ignore_index: a target value to ignore.
    label_smoothing: fraction of the target probability to spread over all classes, 0 to 1.
    reduction: "mean" over the targets that are not ignored, or their "sum".
    """
    outputs, targets = _in_rows(outputs, targets)
    return F.cross_entropy(
        outputs,
        targets,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )


def _in_rows(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of shape (B, C, ...) as (N, C) and targets as (N,) if the classes lie side by side in memory.

    This is so in language models. Nothing is copied, and torch needs half the time for many classes; more for few.
    """
    if not isinstance(outputs, Tensor) or outputs.dim() < 3 or outputs.shape[1] < 16:
        return outputs, targets
    rows = outputs.movedim(1, -1)  # (B, ..., C)
    if targets.shape != rows.shape[:-1] or not rows.is_contiguous():
        return outputs, targets
    return rows.flatten(0, -2), targets.flatten()


@LOSSES.register
def mse_loss(outputs: Tensor, targets: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Squared error over all elements of outputs and targets of the same shape.

    reduction: "mean" over all elements, or their "sum".
    """
    return F.mse_loss(outputs, targets, reduction=reduction)
