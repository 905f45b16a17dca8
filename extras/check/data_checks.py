"""Checks on one real batch before anything is trained."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from base.training.first_batch import may_not_match
from extras.check.check_result import CheckResult, Verdict
from utils.device_errors import device_failure
from utils.errors import UserError
from utils.extras import find_extra
from utils.tree import by_keys, has_strides, stored_values, tensors
from utils.user_code import format_error_with_source, user_line

ITEMS = 4
"""Maximum number of list items in a batch to show, as of a list of images."""


def check_batch(batch: Any, *, supervised: bool = True) -> Iterator[CheckResult]:
    """Shape, dtype and range of everything in a batch; for a long list, the first items and any problems.

    supervised: whether a loss compares the targets; else parts may be there only for their shape.
    """
    parts = _parts(batch)
    for name, part in [("", batch)] if parts is batch else parts.items():
        if next(tensors(part), None) is None:
            kind = f"{name}: {type(part).__name__}".removeprefix(": ")
            yield CheckResult("batch", "ok", f"{kind}, in which no tensors were found")
    hidden = 0
    for name, tensor in _named_tensors(batch).items():
        result = _check_tensor(name, tensor, may_be_constant=not supervised)
        if result.verdict == "ok" and any(key.isdigit() and int(key) >= ITEMS for key in name.split(".")):
            hidden += 1
        else:
            yield result
    if hidden:
        yield CheckResult("batch", "ok", f"and {hidden} more tensors in lists")


def _check_tensor(name: str, tensor: Tensor, *, may_be_constant: bool) -> CheckResult:
    dtype = str(tensor.dtype).removeprefix("torch.")
    text = f"{name or 'batch'} {tuple(tensor.shape)} {dtype}"
    if not tensor.numel() or tensor.is_complex():
        # in a nest, parts may be empty, such as the boxes of images without objects
        empty = not tensor.numel() and "." not in name
        return CheckResult("batch", "FAIL" if empty else "ok", text)
    # those that a sparse tensor stores, as the edges of a graph, or those in a list, as the classes of an image's boxes
    may_be_constant = may_be_constant or not has_strides(tensor) or any(key.isdigit() for key in name.split("."))
    tensor = stored_values(tensor.detach())
    finite = torch.isfinite(tensor)
    if not finite.all():
        cause = "missing values in the data, or a transform that divides by a standard deviation of 0"
        return CheckResult("batch", "FAIL", f"{text}: {int((~finite).sum()):,} values are not finite", cause)
    values = tensor.double() if tensor.device.type != "mps" else tensor.float()
    low = float(values.min())
    high = float(values.max())
    std = float(values.std(correction=0))
    text = f"{text} in [{low:.4g}, {high:.4g}], mean {float(values.mean()):.3g}, std {std:.3g}"
    if low == high and tensor.numel() > 1 and not may_be_constant:
        cause = "data sorted by class but not shuffled" if name == "targets" else "a transform that returns a constant"
        return CheckResult("batch", "note", f"{text}: all values are the same", cause)
    if name == "targets" and tensor.dim() == 1 and not tensor.is_floating_point():
        return CheckResult("batch", "ok", f"{text}; {len(set(tensor.tolist()))} classes")
    if name == "inputs" and tensor.is_floating_point() and max(abs(low), abs(high)) > 30:
        return CheckResult("batch", "note", text, "unscaled inputs; most models expect about [-1, 1]")
    return CheckResult("batch", "ok", text)


def tried(
    check: str, call: Callable[[], Iterable[CheckResult] | None], *, cause: str = "", lenient: bool = False
) -> Iterator[CheckResult]:
    """The results of a call, or why it failed.

    cause: the usual one of an error about shapes or dtypes. lenient: whether the user's code may fail on purpose, or
    because of this check.
    """
    try:
        yield from call() or ()
    except Exception as error:
        text = format_error_with_source(error).removeprefix(f"{check}: ")
        verdict: Verdict = "note" if lenient and user_line(error) else "FAIL"
        yield CheckResult(check, verdict, text, _cause_of(error, None, otherwise=cause))


def explain(error: Exception, outputs: Any, batch: Any) -> CheckResult:
    """Why a step failed for a batch. outputs: what the model returned in it; None: nothing."""
    if failure := device_failure(error, user_line(error)):
        return CheckResult("forward", "FAIL", failure)
    text = format_error_with_source(error)
    cause = _cause_of(error, batch, otherwise="shapes of data_loader, model and loss that do not match")
    first = next(tensors(outputs), None)
    targets = _named_tensors(batch).get("targets")
    if first is not None and targets is not None and may_not_match(error):
        text += f"\nthe model returned {tuple(first.shape)}, the targets are {tuple(targets.shape)}"
    return CheckResult("forward", "FAIL", text, cause)


def _cause_of(error: Exception, batch: Any, *, otherwise: str) -> str:
    """The usual cause of an error in a step for a batch, or another one; "" if the message says all."""
    if isinstance(error, UserError):
        return ""
    advice = find_extra("advice")
    cause: str = advice.usual_cause(error, batch) if advice else ""
    return cause or (otherwise if may_not_match(error) else "")


def _named_tensors(batch: Any) -> dict[str, Tensor]:
    """Every tensor in a batch by its path, as in "image.0"; in a pair, "inputs" and "targets" come first."""
    return {".".join(map(str, keys)): tensor for keys, tensor in by_keys(_parts(batch)).items()}


def _parts(batch: Any) -> Any:
    """The inputs and targets of a pair by these names; any other batch as it is."""
    is_pair = isinstance(batch, (list, tuple)) and len(batch) == 2
    return dict(zip(("inputs", "targets"), batch, strict=True)) if is_pair else batch
