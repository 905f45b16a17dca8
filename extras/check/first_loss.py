"""The loss of the first batch, compared with that of an uninformed guess, and with those of its halves."""

import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from base.experiment import Experiment
from base.metric import StepResult
from base.training.library_metric import CLASS_LOGITS
from extras.check.check_result import CheckResult
from extras.classification import may_be_classes
from utils.schema import Config
from utils.tree import map_tensors, tensors

TOLERANCE = 1e-3
"""By which the loss of a batch may differ from that of its halves, relative; rounding in half precision is larger."""


def first_loss(result: StepResult, config: Config, experiment: Experiment) -> CheckResult:
    """Whether the loss of an untrained classifier is about ln C, that of C equally likely classes.

    result: of the first batch.
    """
    loss = float(result.loss)
    if not math.isfinite(loss):
        cause = "a logarithm or division in the model or the loss, or unscaled inputs"
        return CheckResult("first loss", "FAIL", f"the loss is {loss} before the first step", cause)
    component, classes = config.losses.get(""), count_classes(result.outputs, result.targets)
    highest = int(result.targets.max()) if classes and len(result.targets) else None
    names = experiment.data.class_names
    if component is None or classes < 2 or not may_be_classes(component.type, classes, names, highest):
        return CheckResult("first loss", "ok", f"{loss:.4g}")

    count = result.targets.numel() if experiment.sum_loss else 1
    expected = math.log(classes) * count
    times = f" x {count}" if count > 1 else ""
    text = f"{loss:.4g}; equally likely classes would give ln {classes}{times} = {expected:.4g}"
    certain = component.type in (*CLASS_LOGITS, "NLLLoss")  # a user's own loss may be anything
    if loss < 0 and certain:
        return CheckResult("first loss", "FAIL", text, "a loss that expects log_softmax but gets logits (nll_loss)")
    if loss > 2 * expected:  # a sum over the nodes of a graph, say, trains well nevertheless
        cause = "initial weights or inputs that are too large, or a new layer on large features"
        return CheckResult("first loss", "note", text, cause)
    if loss < expected / 2 and certain and not config.model.weights:
        return CheckResult("first loss", "note", text, "pretrained weights, or targets leaking into the inputs")
    return CheckResult("first loss", "ok", text)


def check_halves(batch: Any, samples: int, loss_of: Callable[[Any], tuple[float, float]]) -> Iterator[CheckResult]:
    """Whether the loss of a batch is the mean of the losses of its halves, as batches of any size assume.

    Skipped if not all tensors have a row for each sample, or if the loss depends on random numbers. loss_of: the loss
    of a batch in evaluation, and what it is averaged over.
    """
    if samples < 2 or any(not each.dim() or len(each) != samples for each in tensors(batch)):
        return
    halves = [
        map_tensors(operator.itemgetter(rows), batch) for rows in (slice(samples // 2), slice(samples // 2, None))
    ]
    try:
        (whole, _), (again, _), *parts = [loss_of(each) for each in (batch, batch, *halves)]
    except Exception:  # of the user's code, which may need batches of one size
        return
    counts = sum(count for _, count in parts)
    mean = sum(loss * count for loss, count in parts if count) / counts if counts else 0.0
    if whole != again or not math.isfinite(whole) or math.isclose(whole, mean, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        return
    text = f"{whole:.5g}, but {mean:.5g} if computed from the two halves of the batch"
    cause = (
        "a mean over something other than samples, such as tokens or targets that are not ignored: return "
        "StepResult(..., count=...), or give the loss a method count; or a loss that compares samples with each other. "
        "Results then depend on batch_size, accumulate_steps and the number of processes"
    )
    yield CheckResult("loss", "note", text, cause)


def count_classes(outputs: object, targets: object) -> int:
    """C for logits (B, C, ...) or (B, ..., C) and class indices (B, ...); 0 for anything else."""
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return 0
    if targets.is_floating_point() or targets.is_complex() or outputs.dim() != targets.dim() + 1 or targets.dim() < 1:
        return 0
    if outputs.shape[:1] + outputs.shape[2:] == targets.shape:
        return outputs.shape[1]
    return outputs.shape[-1] if outputs.shape[:-1] == targets.shape else 0
