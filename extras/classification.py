"""What a batch shows of a classifier: whether its outputs are probabilities, and likely mistakes."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from base.metric import StepResult
from base.training.broadcast import name_of
from base.training.library_metric import CLASS_LOGITS, LOGITS

SUM_TOLERANCE = 0.02
"""For the sum of a sample's probabilities in the targets, which may be rounded."""
EXACT_TOLERANCE = 1e-4
"""For that in the outputs: the two logits of one sample in a hundred add up to 1 within the larger tolerance."""
CLASS_LOSSES = CLASS_LOGITS | {"nll_loss", "NLLLoss", "MultiMarginLoss"}
"""Losses whose outputs, (B, C, ...), are scores of classes."""


def are_probabilities(outputs: Tensor) -> bool | None:
    """Whether the outputs of every sample, (B, C, ...), are a distribution. The model then ends in a softmax.

    A sample that is not finite says nothing about the others; None if none is finite.
    """
    # of a softmax, rounding changes the sum by half of it; a model may return integers
    rounding = torch.finfo(outputs.dtype).eps if outputs.is_floating_point() else 0.0
    tolerance = max(EXACT_TOLERANCE, rounding)
    outputs = outputs.detach().float()
    distributions = (outputs >= 0).all(1) & ((outputs.sum(1) - 1).abs() <= tolerance)
    finite = outputs.isfinite().all(1)
    return bool((distributions | ~finite).all()) if finite.any() else None


def may_be_classes(loss: str, outputs: int, names: Sequence[str] | None, highest: int | None) -> bool:
    """Whether outputs of shape (B, C) with integer targets of shape (B,) may be scores of classes.

    With a loss of your own they may also be embeddings, or parameters of a distribution of counts. C then has to be the
    number of class names, and above all targets.

    outputs: C. highest: the highest target so far; None: unknown.
    """
    if loss in CLASS_LOSSES:
        return True
    return (names is None or len(names) == outputs) and (highest is None or highest < outputs)


def names_of_classes(names: Sequence[str] | None, count: int) -> list[str]:
    """The class names of a data set if there is one for every class, otherwise the classes' numbers."""
    return list(map(str, names if names is not None and len(names) == count else range(count)))


def classification_warnings(result: StepResult, criterion: Any, class_names: Sequence[str] | None) -> Iterator[str]:
    """Warnings about a first batch that ran without an error."""
    warnings = (
        surplus_outputs(result, class_names),
        not_probabilities(result, criterion),
        wrong_activation(result, criterion),
    )
    yield from filter(None, warnings)


def surplus_outputs(result: StepResult, class_names: Sequence[str] | None) -> str | None:
    """A warning if a classifier has more outputs, (B, C), than the data has classes: it trains without an error."""
    outputs, targets = result.outputs, result.targets
    if not (class_names and isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        return None
    if outputs.dim() != 2 or targets.dim() != 1 or targets.is_floating_point() or outputs.shape[1] <= len(class_names):
        return None
    if (highest := int(targets.max())) >= len(class_names):
        return f"the data loader has {len(class_names)} class_names, but a target is class {highest}, counted from 0"
    return (
        f"the model has {outputs.shape[1]} outputs, but the data has {len(class_names)} classes; "
        f"did you mean model.args.num_classes={len(class_names)}?"
    )


def not_probabilities(result: StepResult, criterion: Any) -> str | None:
    """A warning about targets of cross_entropy in the outputs' shape, (B, C), that are not class probabilities.

    Rows of zeros are allowed: they mark ignored samples.
    """
    outputs, targets = result.outputs, result.targets
    name = name_of(criterion)
    both = isinstance(outputs, Tensor) and isinstance(targets, Tensor) and outputs.shape == targets.shape
    if name not in CLASS_LOGITS or not both or targets.dim() < 2:
        return None
    others = "use mse_loss for numbers, BCEWithLogitsLoss for multi-label targets"
    if outputs.shape[1] == 1:
        return f"{name} of a single output is always 0; {others}"
    sums = targets.detach().float().sum(1).flatten()  # (B, C, ...) -> (B * ...)
    deviation = (sums - 1).abs() * (sums != 0)
    if not bool((targets < 0).any() | (deviation > SUM_TOLERANCE).any()):
        return None
    return (
        f"{name} expects class probabilities, but these targets are not (range {float(targets.min()):.4g} to "
        f"{float(targets.max()):.4g}, one row sums to {float(sums[deviation.argmax()]):.4g}). "
        f"Class indices are int64 of shape (B,); {others}"
    )


def wrong_activation(result: StepResult, criterion: Any) -> str | None:
    """A warning if the model ends in an activation that the loss applies itself, or lacks one that the loss needs."""
    outputs, name = result.outputs, name_of(criterion)  # (B, C, ...)
    if not isinstance(outputs, Tensor):
        return None
    if name in ("nll_loss", "NLLLoss") and bool((outputs > 0).any()):  # the logarithm of a probability never is
        return (
            f"{name} expects log-probabilities, but some outputs are positive, so the loss has no lower bound; use "
            "cross_entropy, or let the model end in log_softmax"
        )
    if name in LOGITS and _seem_activated(outputs):
        return (
            f"the model's outputs are all between 0 and 1, but {name} applies a sigmoid itself, so the model would "
            "learn slowly, and metrics would be of the wrong probabilities; leave out its sigmoid"
        )
    if name in CLASS_LOGITS and outputs.dim() > 1 and outputs.shape[1] > 1 and are_probabilities(outputs):
        return (
            f"the model's outputs are probabilities, but {name} applies a softmax itself, so the model would learn "
            "slowly; leave out its softmax"
        )
    return None


def _seem_activated(outputs: Tensor) -> bool:
    """Whether at least 16 outputs, which differ, look like those of a sigmoid.

    It is not enough that all are between 0 and 1: without an activation, biases alone make all outputs of a small
    untrained model positive. But those of a sigmoid are around 0.5.
    """
    outputs = outputs.detach().float()
    if outputs.numel() < 16 or bool((outputs == outputs.flatten()[0]).all()):
        return False
    return bool(((outputs >= 0) & (outputs <= 1)).all() & ((outputs.mean(0) - 0.5).abs() < 0.2).all())
