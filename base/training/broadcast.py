"""Checks on a first batch that a loss or metric pairs every output with its own target, not with all targets.

Outputs of shape (B,) and targets of shape (B, 1) broadcast to (B, B) without an error, and the result is wrong.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Size, Tensor, broadcast_shapes, dist, nn, strided
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from base.metric import MetricFunction, entry_advice, of_entry, outputs_and_targets
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
_TORCH_WARNING = re.compile(r"Using a target size \(torch\.Size\((.*?)\)\).*input size \(torch\.Size\((.*?)\)\)")


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


class CheckedLoss:
    """Wraps a trainer's loss during the first batch of a phase. name: as one of several losses in the config."""

    def __init__(self, loss: Callable[..., Tensor], phase: str, name: str = "") -> None:
        self.loss, self.phase = loss, phase
        self.name = f'"{name}"' if name else name_of(loss)
        self.called = False

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        self.called = True
        if is_compiled(self.loss):
            return self.loss(*args, **kwargs)
        if hasattr(self.loss, "take_parts"):  # a sum of losses by name
            return self._each_checked(self.loss, *args, **kwargs)
        outputs, targets = outputs_and_targets(args, kwargs)
        with NoBroadcast(f"the loss {self.name}", self.phase, outputs, targets):
            return self.loss(*args, **kwargs)

    def _each_checked(self, total: Any, *args: Any, **kwargs: Any) -> Tensor:
        losses = total.losses
        total.losses = {name: CheckedLoss(loss, self.phase, name) for name, loss in losses.items()}
        try:
            value: Tensor = total(*args, **kwargs)
        finally:
            total.losses = losses
        return value

    @property
    def last_count(self) -> Any:
        """That of the loss, which is taken from it once."""
        return getattr(self.loss, "last_count", None)

    @last_count.setter
    def last_count(self, count: Any) -> None:
        vars(self.loss)["last_count"] = count

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loss, name)


@contextmanager
def torch_warnings(phase: str) -> Iterator[None]:
    """Raise ConfigError when torch warns that a loss broadcasts; let other warnings pass."""
    with warnings.catch_warnings(record=True, action="default") as caught:
        yield
    for each in caught:
        if found := _TORCH_WARNING.match(str(each.message)):
            targets, outputs = (Size(map(int, re.findall(r"\d+", text))) for text in found.groups())
            check_same_shape("a loss", phase, outputs, targets)
        warnings.warn_explicit(each.message, each.category, each.filename, each.lineno, source=each.source)


def is_compiled(loss: Any) -> bool:
    """Whether torch's compiler runs a loss, or traces its call. Inside a mode such as NoBroadcast, it gets some results
    wrong, such as ``is_floating_point()`` of a tensor.
    """
    function = getattr(loss, "loss", loss)  # of a CountedLoss
    function = getattr(function, "func", function)
    modules = [*function.modules()] if isinstance(function, nn.Module) else []
    calls = [loss, function, *(call for each in modules for call in (each.forward, each._compiled_call_impl))]
    return torch.compiler.is_compiling() or any(hasattr(each, "_torchdynamo_orig_callable") for each in calls)


def name_of(function: Any) -> str:
    """The name of a loss or metric: a function, a partial function or a module."""
    function = getattr(function, "func", function)
    return str(getattr(function, "__name__", type(function).__name__))
