"""Checks on a first batch that a loss or metric pairs every output with its own target, not with all targets.

Outputs of shape (B,) and targets of shape (B, 1) broadcast to (B, B) without an error, and the result is wrong.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Size, Tensor, broadcast_shapes, dist, strided
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from base.metric import MetricFunction, entry_advice, of_entry
from utils.errors import ConfigError, UserError
from utils.random import isolated
from utils.tree import same, tensors
from utils.user_code import format_error_with_source

# losses that compare each input element with the same element of the target
ELEMENTWISE = {
    F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy, F.binary_cross_entropy_with_logits,
    F.kl_div, F.poisson_nll_loss, F.gaussian_nll_loss, F.soft_margin_loss, F.hinge_embedding_loss,
    F.multilabel_margin_loss, F.multilabel_soft_margin_loss, dist,
}  # fmt: skip
OUTPUTS, TARGETS = 1, 2  # bit flags: what a tensor was computed from


class NoBroadcast(TorchFunctionMode):
    """Inside the block, an operation between outputs and targets of different shapes raises ConfigError.

    Rejects torch's elementwise losses with different shapes, and any other operation between targets and outputs (or
    tensors computed from them in the same shape) whose result is larger than both.

    what: the loss or metric, for the message. phase: the phase whose first batch this is.
    """

    def __init__(self, what: str, phase: str, outputs: Any, targets: Any) -> None:
        super().__init__()
        self.what, self.phase = what, phase
        self._shapes = {OUTPUTS: _shapes(outputs), TARGETS: _shapes(targets)}
        self._origins: dict[int, int] = {}
        self._alive: list[Tensor] = []  # otherwise a later tensor might get the id of a freed one
        for origin, nest in ((OUTPUTS, outputs), (TARGETS, targets)):
            for tensor in tensors(nest):
                self._mark(tensor, origin)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in ELEMENTWISE:
            inputs = args[0] if args else kwargs.get("input")
            targets = args[1] if len(args) > 1 else kwargs.get("target", kwargs.get("other"))
            if isinstance(inputs, Tensor) and isinstance(targets, Tensor):
                check_same_shape(self.what, self.phase, inputs.shape, targets.shape)
        result = func(*args, **kwargs)
        given = list(tensors([args, list(kwargs.values())]))
        origin = 0
        for tensor in given:
            origin |= self._origins.get(id(tensor), 0)
        if isinstance(result, Tensor):
            if origin == OUTPUTS | TARGETS:
                self._check_size(given, result)
            elif origin:
                self._mark(result, origin)
        return result

    def _mark(self, tensor: Tensor, origin: int) -> None:
        self._origins[id(tensor)] = origin
        self._alive.append(tensor)

    def _of(self, given: list[Tensor], origin: int) -> Iterator[Tensor]:
        """The tensors that are outputs, or targets, and still have their shape."""
        for tensor in given:
            if self._origins.get(id(tensor)) == origin and tensor.shape in self._shapes[origin]:
                yield tensor

    def _check_size(self, given: list[Tensor], result: Tensor) -> None:
        for outputs in self._of(given, OUTPUTS):
            for targets in self._of(given, TARGETS):
                larger = result.numel() > max(outputs.numel(), targets.numel())
                if (
                    larger
                    and outputs.shape != targets.shape
                    and result.shape == _broadcast(outputs.shape, targets.shape)
                ):
                    raise mismatch(self.what, self.phase, outputs.shape, targets.shape)


def eager() -> AbstractContextManager[Any]:
    """Inside the block, compiled functions run as written: torch's compiler gets some results wrong in a mode."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def check_metrics(
    functions: Mapping[str, MetricFunction],
    library: Iterable[tuple[Any, bool]],
    phase: str,
    outputs: Any,
    targets: Any,
) -> None:
    """Raise ConfigError if a metric broadcasts, returns no number, or changes what it gets. Does not add anything.

    functions: by name. library: each a LibraryMetric, and whether its outputs are what the loss got. phase: whose first
    batch this is.
    """

    def check_unchanged(name: str) -> None:
        if not same(before, _values([outputs, targets])):
            raise ConfigError(
                f'metrics: "{name}" changes outputs or targets in place, which the other metrics also get; let it '
                "change a copy, as in outputs = outputs.clone()"
            )

    before = _values([outputs, targets])
    with isolated("metrics"):
        for name, function in functions.items():
            try:
                with NoBroadcast(f'the metric "{name}"', phase, outputs, targets):
                    function(outputs, targets)
            except Exception as error:
                advice = "" if getattr(function, "func", None) is of_entry else entry_advice(outputs, targets)
                if not advice or isinstance(error, UserError):
                    raise
                raise ConfigError(f'metrics: "{name}" failed: {format_error_with_source(error)}\n{advice}') from error
            check_unchanged(name)
        for metric, logits in library:
            metric.dry_run(outputs, targets, phase, logits=logits)
            check_unchanged(metric.name)


def _values(nest: Any) -> list[Tensor]:
    """Copies of the tensors in a nest, without sparse ones."""
    return [tensor.detach().clone() for tensor in tensors(nest) if tensor.layout == strided]


def check_same_shape(what: str, phase: str, outputs: Size, targets: Size) -> None:
    """Raise ConfigError if an elementwise loss or metric gets different shapes.

    A single number may have any shape, and a target of shape () applies to all outputs.
    """
    if outputs != targets and len(targets) and not outputs.numel() == targets.numel() == 1:
        raise mismatch(what, phase, outputs, targets)


def mismatch(what: str, phase: str, outputs: Size, targets: Size) -> ConfigError:
    together = _broadcast(outputs, targets)
    effect = f"they broadcast to {tuple(together)}, which gives a wrong result" if together else "they do not match"
    return ConfigError(
        f"the first {phase} batch: {what} compares outputs of shape {tuple(outputs)} with targets of shape "
        f"{tuple(targets)}: {effect}.\n{_advice(outputs, targets)}"
    )


def _advice(outputs: Size, targets: Size) -> str:
    if outputs.numel() == targets.numel():
        if len(outputs) + 1 == len(targets) and outputs == targets[:-1]:
            return "Let the model keep the last dimension (no squeeze), or the data loader return targets without it."
        if len(targets) + 1 == len(outputs) and targets == outputs[:-1]:
            return "Let the model return outputs.squeeze(-1), or the data loader return targets[:, None]."
    if len(outputs) == 2 and targets == outputs[:1]:
        return "If the targets are class indices, use cross_entropy; otherwise give both the same shape."
    return "Let the model return outputs in the targets' shape, or the data loader targets in the outputs' shape."


def _broadcast(one: Size, other: Size) -> Size | None:
    try:
        shape: Size = broadcast_shapes(one, other)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return None
    return shape


def _shapes(nest: Any) -> set[Size]:
    return {tensor.shape for tensor in tensors(nest)}


def name_of(function: Any) -> str:
    """The name of a loss or metric: a function, a partial function or a module."""
    function = getattr(function, "func", function)
    return str(getattr(function, "__name__", type(function).__name__))
