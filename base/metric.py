"""The result of a step and the type of a metric, and checks of what yours return."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils.errors import ConfigError
from utils.tree import describe_batch

MetricFunction = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) -> float or bool of shape (B,)."""


def entries(name: str, entry: str | None, outputs: Any, targets: Any) -> tuple[Any, Any]:
    """The entry of outputs and targets that a metric gets, of those that are dicts; None: all of both.

    name: of the metric. Raises ConfigError for an unknown entry.
    """
    if entry is None:
        return outputs, targets
    dicts = [nest for nest in (outputs, targets) if isinstance(nest, Mapping)]
    if not dicts or any(entry not in nest for nest in dicts):
        available = "; ".join(", ".join(map(str, nest)) for nest in dicts) or "neither outputs nor targets are dicts"
        raise ConfigError(f'metrics: "{name}" takes the entry "{entry}", which is not there: {available}')
    outputs, targets = (nest[entry] if isinstance(nest, Mapping) else nest for nest in (outputs, targets))
    return outputs, targets


def of_entry(function: MetricFunction, name: str, entry: str, outputs: Any, targets: Any) -> Tensor:
    """A metric function of one entry."""
    return function(*entries(name, entry, outputs, targets))


def outputs_and_targets(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Outputs and targets from a loss's arguments. As keywords, torch's losses call them ``input`` and ``target``."""
    if len(args) > 1:
        return args[0], args[1]
    named = {name: kwargs[name] for name in ("input", "target") if name in kwargs}
    given = [*args, *(named | kwargs).values(), None, None]
    return given[0], given[1]


class StepResult(NamedTuple):
    """The result of a training or evaluation step."""

    loss: Tensor
    """Of shape ()."""
    outputs: Tensor
    """Of shape (B, ...)."""
    targets: Tensor
    """Of shape (B, ...)."""
    log: Mapping[str, Tensor | float | None] = MappingProxyType({})
    """Additional values to log, of shape (), each a mean over the samples or marked by ``with_count``; named in the
    trainer's ``logs``."""
    count: Tensor | float | None = None  # type: ignore[assignment]  # tuple.count gives way
    """What the loss is averaged over, shape (), such as the tokens that are not padding; None: samples. Counted
    automatically for torch's losses of class indices (cross entropy) that are called as ``self.criterion``."""


def with_count(value: Tensor | float, count: Tensor | float | None) -> Tensor:
    """Mark a value to log, or a loss, of shape (), as a mean over this many items, such as tokens; None: samples."""
    marked = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    marked.averaged_over = count  # type: ignore[attr-defined]
    return marked


def check_result(result: Any, step: str) -> None:
    """Raise ConfigError unless a step returned a StepResult with a loss. step: its name, for the message."""
    expected = "return StepResult(loss, outputs, targets)"
    if not isinstance(result, StepResult):
        returned = "nothing" if result is None else f"a {type(result).__name__}"
        raise ConfigError(f"{step} returned {returned}; end it with: {expected}")
    check_loss(result.loss, f"{step} returned a loss")
    if not isinstance(result.log, Mapping):
        raise ConfigError(f"{step} returned a log of type {type(result.log).__name__}; expected a dict of values")
    if result.count is None:
        return
    try:
        count = math.nan if isinstance(result.count, bool) else float(result.count)
    except (TypeError, ValueError, RuntimeError):
        count = math.nan
    if not 0 <= count < math.inf:
        raise ConfigError(
            f"{step} returned the count {result.count!r:.100}; expected what the loss is averaged over: a "
            "finite number, 0 if nothing counts"
        )


def check_loss(loss: Any, what: str) -> None:
    """Raise ConfigError unless a loss is a tensor with one number. what: begins the message."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"type {type(loss).__name__}"
        add = ". Add losses up: sum(losses.values())" if isinstance(loss, dict) else ""
        raise ConfigError(f"{what} of {found}; expected one number per batch, a tensor of shape (){add}")


def check_values(name: str, values: Any, samples: int, outputs: Any, targets: Any) -> Tensor:
    """The values of a metric function; raises ConfigError unless they are one number per sample, of shape (B,)."""
    if isinstance(values, Tensor) and values.shape == (samples,):
        return values
    got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"type {type(values).__name__}"
    raise ConfigError(
        f'metrics: "{name}" returned {got} for {samples} samples; '
        f"a metric function returns one number per sample, a tensor of shape ({samples},). "
        f"Outputs: {describe_batch(outputs)}; targets: {describe_batch(targets)}\n"
        "If rows are not samples, use a metric of torchmetrics, which takes any number of rows; to log one number per "
        "batch, let the step return it: StepResult(..., log={...})"
    )


def single_number(value: Any, what: str) -> Tensor | float:
    """A value to log as a float or a tensor of shape (). Raises ConfigError if it is anything else.

    what: the beginning of the message.
    """
    if isinstance(value, Tensor) and (value.numel() != 1 or value.is_complex()):
        got = "complex dtype" if value.is_complex() else f"shape {tuple(value.shape)}"
        raise ConfigError(f"{what} of {got}; a logged value is a single number, shape ()")
    try:
        if isinstance(value, Tensor):
            return value.squeeze() if value.dim() else value
        return float(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what} of type {type(value).__name__}; expected a number") from error
