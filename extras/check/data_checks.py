"""What can be seen in one real batch, before anything is trained."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from extras.check.finding import CheckResult
from extras.check.layers import named_tensors
from utils.user_code import format_error_with_source


def check_batch(batch: Any) -> Iterator[CheckResult]:
    """Shape, type and range of everything in a batch."""
    for name, tensor in named_tensors(batch):
        kind = str(tensor.dtype).removeprefix("torch.")
        text = f"{name or 'batch'} {tuple(tensor.shape)} {kind}"
        if not tensor.numel() or tensor.is_complex():
            yield CheckResult("batch", "FAIL" if not tensor.numel() else "ok", text)
            continue
        yield _check_values(name, tensor.detach(), text)


def _check_values(name: str, tensor: Tensor, text: str) -> CheckResult:
    finite = torch.isfinite(tensor)
    if not finite.all():
        cause = "missing values in the data, or a division by a standard deviation of 0 in a transform"
        return CheckResult("batch", "FAIL", f"{text}: {int((~finite).sum()):,} values are not finite", cause)
    values = tensor.double() if tensor.device.type != "mps" else tensor.float()
    low, high, mean = float(values.min()), float(values.max()), float(values.mean())
    spread = float(values.std(correction=0))
    text = f"{text} in [{low:.4g}, {high:.4g}], mean {mean:.3g}, std {spread:.3g}"
    if low == high and tensor.numel() > 1:
        cause = "data sorted by class and not shuffled" if name == "targets" else "a transform that gives a constant"
        return CheckResult("batch", "FAIL" if name == "inputs" else "note", f"{text}: all values are the same", cause)
    if name == "targets" and _class_indices(tensor):
        return CheckResult("batch", "ok", f"{text}; {len(set(tensor.tolist()))} classes")
    if name == "inputs" and tensor.is_floating_point() and max(abs(low), abs(high)) > 30:
        return CheckResult("batch", "note", text, "inputs that are not scaled; most models want about [-1, 1]")
    return CheckResult("batch", "ok", text)


def _class_indices(tensor: Tensor) -> bool:
    return tensor.dim() == 1 and not tensor.is_floating_point()


def check_first_loss(loss: float, *, classes: int = 0, count: int = 1, baseline: float = math.nan) -> CheckResult:
    """The loss of the untrained model against that of one that knows nothing.

    classes: the loss is the cross-entropy of class indices, which is ln C for C equally likely classes, summed over
    count samples. baseline: for any other loss, what a constant output would have; NaN if it cannot be told.
    """
    if not math.isfinite(loss):
        cause = "a logarithm or a division in the model or in the loss, or inputs that are not scaled"
        return CheckResult("first loss", "FAIL", f"the loss is {loss} before the first step", cause)
    if classes:
        return _check_classes(loss, classes, count)
    if not math.isfinite(baseline):
        return CheckResult("first loss", "ok", f"{loss:.4g}")
    text = f"{loss:.4g}; a constant, the mean of the targets, would have {baseline:.4g}"
    far = loss > 10 * abs(baseline)
    cause = "initial weights or inputs that are too large, or targets that are not scaled" if far else ""
    return CheckResult("first loss", "note" if far else "ok", text, cause)


def _check_classes(loss: float, classes: int, count: int) -> CheckResult:
    expected = math.log(classes) * count
    times = f" x {count}" if count > 1 else ""
    text = f"{loss:.4g}; equally likely classes would have ln {classes}{times} = {expected:.4g}"
    if loss > 2 * expected:
        return CheckResult("first loss", "FAIL", text, "initial weights or inputs that are too large")
    if loss < expected / 2:
        cause = "targets that are among the inputs, or a loss that wants log_softmax and gets none (nll_loss)"
        return CheckResult("first loss", "FAIL", text, cause)
    return CheckResult("first loss", "ok", text)


def explain_forward(error: Exception, outputs: Any, batch: Any, *, training: bool) -> CheckResult:
    """Why the batch does not go through model and loss."""
    cause = "shapes of data_loader, model and loss that do not fit each other"
    given, targets = next(named_tensors(outputs), ("", None))[1], dict(named_tensors(batch)).get("targets")
    if given is not None and targets is not None:
        where = f"the model gives {tuple(given.shape)}, the targets are {tuple(targets.shape)}"
        indices = _class_indices(targets) and given.dim() == 2
        if indices and int(targets.max()) >= given.shape[1]:
            where += f" with class indices up to {int(targets.max())}"
            cause = f"a model with {given.shape[1]} outputs for more classes; indices count from 0"
    else:
        where = "the batch does not go through the model"
    if training:
        where += "; in evaluation it went well, in training it does not"
    return CheckResult("forward", "FAIL", f"{format_error_with_source(error)}\n{where}", cause)
