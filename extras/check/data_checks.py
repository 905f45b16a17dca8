"""Checks on one real batch before anything is trained."""

import inspect
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from base.base_data_loader import BaseDataLoader
from base.training.first_batch import may_not_match
from extras.check.check_result import CheckResult, Verdict
from utils.device_errors import device_failure
from utils.errors import UserError
from utils.extras import find_extra
from utils.tree import has_strides, named_tensors, stored_values, tensors
from utils.user_code import format_error_with_source, user_line

Failed = dict[str, tuple[Exception, Any]]
"""By the name of a step, "train_step" or "eval_step": its error, and what the model returned; None: nothing."""
SAME = "all values are the same"
ITEMS = 4
"""Maximum number of list items in a batch to show, as of a list of images."""


def check_batch(batch: Any) -> Iterator[CheckResult]:
    """Shape, dtype and range of everything in a batch; for a long list, the first items and any problems."""
    hidden = 0
    found = _named_tensors(batch)
    if not found:
        yield CheckResult("batch", "ok", f"{type(batch).__name__}, in which no tensors were found")
    for name, tensor in found.items():
        result = _check_tensor(name, tensor)
        beyond = any(key.isdigit() and int(key) >= ITEMS for key in name.split("."))
        hidden += beyond and result.verdict == "ok"
        if not beyond or result.verdict != "ok":
            yield result
    if hidden:
        yield CheckResult("batch", "ok", f"and {hidden} more tensors in lists")


def _check_tensor(name: str, tensor: Tensor) -> CheckResult:
    dtype = str(tensor.dtype).removeprefix("torch.")
    text = f"{name or 'batch'} {tuple(tensor.shape)} {dtype}"
    if not tensor.numel() or tensor.is_complex():
        # in a nest, parts may be empty, such as the boxes of images without objects
        empty = not tensor.numel() and "." not in name
        return CheckResult("batch", "FAIL" if empty else "ok", text)
    return _check_values(name, stored_values(tensor.detach()), text, stored=not has_strides(tensor))


def _check_values(name: str, tensor: Tensor, text: str, *, stored: bool) -> CheckResult:
    """stored: whether these are only the values that a sparse or nested tensor stores."""
    finite = torch.isfinite(tensor)
    if not finite.all():
        cause = "missing values in the data, or a transform that divides by a standard deviation of 0"
        return CheckResult("batch", "FAIL", f"{text}: {int((~finite).sum()):,} values are not finite", cause)
    values = tensor.double() if tensor.device.type != "mps" else tensor.float()
    low = float(values.min())
    high = float(values.max())
    std = float(values.std(correction=0))
    text = f"{text} in [{low:.4g}, {high:.4g}], mean {float(values.mean()):.3g}, std {std:.3g}"
    # in a list, as the classes of an image's boxes, or those that a sparse tensor stores, as the edges of a graph
    may_be_same = stored or any(key.isdigit() for key in name.split("."))
    if low == high and tensor.numel() > 1 and not may_be_same:
        cause = "data sorted by class but not shuffled" if name == "targets" else "a transform that returns a constant"
        return CheckResult("batch", "FAIL" if name == "inputs" else "note", f"{text}: {SAME}", cause)
    if name == "targets" and _class_indices(tensor):
        return CheckResult("batch", "ok", f"{text}; {len(set(tensor.tolist()))} classes")
    if name == "inputs" and tensor.is_floating_point() and max(abs(low), abs(high)) > 30:
        return CheckResult("batch", "note", text, "unscaled inputs; most models expect about [-1, 1]")
    return CheckResult("batch", "ok", text)


def _class_indices(tensor: Tensor) -> bool:
    return tensor.dim() == 1 and not tensor.is_floating_point()


def explain_forward(failed: Failed, batch: Any, *, other: str = "") -> Iterator[CheckResult]:
    """Why a batch failed in some steps. other: the step that took it."""
    lines = [user_line(error).splitlines()[-1:] or [str(error)] for error, _ in failed.values()]
    steps = list[str]()
    for number, (step, (error, outputs)) in enumerate(failed.items()):
        steps.append(step)
        if lines[number] in lines[number + 1 :]:  # as in the model; the error of a forward pass alone says more
            continue
        if number and isinstance(error, NotImplementedError):  # the trainer has a validation of its own
            continue
        yield _explain(error, outputs, batch, " and ".join(steps), other)
        steps.clear()


def _explain(error: Exception, outputs: Any, batch: Any, step: str, other: str) -> CheckResult:
    if failure := device_failure(error, user_line(error)):
        return CheckResult("forward", "FAIL", failure)
    cause = cause_of(error, batch, otherwise="shapes of data_loader, model and loss that do not match")
    where = f"{step} failed" + (f"; {other} took the same batch" if other else "")
    first = next(tensors(outputs), None)
    targets = _named_tensors(batch).get("targets")
    if first is not None and targets is not None and may_not_match(error):
        where += f"; the model returned {tuple(first.shape)}, the targets are {tuple(targets.shape)}"
        indices = _class_indices(targets) and first.dim() == 2
        if indices and int(targets.max()) >= first.shape[1]:
            where += f" with class indices up to {int(targets.max())}"
            cause = f"a model with {first.shape[1]} outputs for more classes; class indices start at 0"
    return CheckResult("forward", "FAIL", f"{format_error_with_source(error)}\n{where}", cause)


def check_test_data(data: BaseDataLoader) -> Iterator[CheckResult]:
    """Whether test.py would get test data; silent if it would."""
    try:
        data.test()
    except Exception as error:
        # raised by test_data itself if there are none yet; else it returned something that is not a data set
        verdict: Verdict = "note" if user_line(error) else "FAIL"
        text = f"test.py would fail: {format_error_with_source(error)}"
        yield CheckResult("test data", verdict, text, "a test_data without return, or data that are missing")


def check_own_split(data: BaseDataLoader) -> Iterator[CheckResult]:
    """A note for arguments that a ``split`` of the data loader replaces; silent if its class mentions them."""
    kind = type(data)
    if kind.split is BaseDataLoader.split:
        return
    with suppress(OSError, TypeError):  # its source is not available
        source = "".join(map(inspect.getsource, kind.__mro__[: kind.__mro__.index(BaseDataLoader)]))
        for name in ("validation_split", "folds"):
            if (value := getattr(data, name)) and name not in source and "super().split" not in source:
                text = f"data_loader.args.{name}={value} has no effect: {kind.__name__}.split does not use it"
                yield CheckResult("data loader", "note", text, f"a split() without self.{name}")


def noting_errors(results: Iterator[CheckResult]) -> Iterator[CheckResult]:
    """These results, up to an error in the user's code, which took the same batch before."""
    try:
        yield from results
    except UserError:
        raise
    except Exception as error:
        text = f"the first batch fails when it is used again: {format_error_with_source(error)}"
        yield CheckResult(
            "repetition", "note", text, "state of the trainer or the model that another batch has changed"
        )


def cause_of(error: Exception, batch: Any, *, otherwise: str) -> str:
    """The usual cause of an error in a step for a batch, or another one; "" if the message says all."""
    if isinstance(error, UserError):
        return ""
    advice = find_extra("advice")
    cause: str = advice.usual_cause(error, batch) if advice else ""
    return cause or (otherwise if may_not_match(error) else "")


def _named_tensors(batch: Any) -> dict[str, Tensor]:
    """Every tensor in a batch by its path, as in "image.0"; in a pair, "inputs" and "targets" come first."""
    pair = isinstance(batch, (list, tuple)) and len(batch) == 2
    named = {}
    for keys, tensor in named_tensors(tuple(batch) if pair else batch):  # also without the names of a named tuple
        path = [str(key) for key in keys]
        if pair:
            path[0] = ("inputs", "targets")[keys[0]]
        named[".".join(path)] = tensor
    return named
