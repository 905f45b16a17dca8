"""Checks on a first batch that a loss or metric pairs every output with its own target, not with all targets.

Outputs of shape (B,) and targets of shape (B, 1) broadcast to (B, B) without an error, and the result is wrong.
"""

import itertools
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Size, Tensor, broadcast_shapes, dist
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from utils.errors import ConfigError
from utils.tree import tensors

# losses that compare each input element with the same element of the target
ELEMENTWISE = {
    F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy, F.binary_cross_entropy_with_logits,
    F.kl_div, F.poisson_nll_loss, F.gaussian_nll_loss, F.soft_margin_loss, F.hinge_embedding_loss,
    F.multilabel_margin_loss, F.multilabel_soft_margin_loss, dist,
}  # fmt: skip
OUTPUTS, TARGETS = "outputs", "targets"  # what a tensor was computed from


class NoBroadcast(TorchFunctionMode):
    """Inside the block, an operation between outputs and targets of different shapes raises ConfigError.

    Rejects torch's elementwise losses with different shapes, and any other operation between targets and outputs (or
    tensors computed from them in the same shape) whose result is larger than both.

    what: the loss or metric, for the message. phase: the phase whose first batch this is.
    """

    def __init__(self, what: str, phase: str, outputs: Any, targets: Any) -> None:
        super().__init__()
        self.what, self.phase = what, phase
        nests = {OUTPUTS: outputs, TARGETS: targets}
        self._shapes = {origin: {tensor.shape for tensor in tensors(nest)} for origin, nest in nests.items()}
        self._origins = {id(tensor): origin for origin, nest in nests.items() for tensor in tensors(nest)}
        self._alive = [outputs, targets]  # otherwise a later tensor might get the id of a freed one

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        everything = [*args, *kwargs.values()]
        compared = [each for each in everything[:2] if isinstance(each, Tensor)]
        if func in ELEMENTWISE and len(compared) == 2:
            check_same_shape(self.what, self.phase, compared[0].shape, compared[1].shape)
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor):
            return result
        given = list(tensors(everything))
        origins = {self._origins[id(tensor)] for tensor in given if id(tensor) in self._origins}
        if len(origins) == 1:
            self._origins[id(result)] = origins.pop()
            self._alive.append(result)
        for outputs, targets in itertools.product(self._of(given, OUTPUTS), self._of(given, TARGETS)):
            larger = result.numel() > max(outputs.numel(), targets.numel())
            if larger and result.shape == _broadcast(outputs.shape, targets.shape):
                raise mismatch(self.what, self.phase, outputs.shape, targets.shape)
        return result

    def _of(self, given: list[Tensor], origin: str) -> list[Tensor]:
        """The tensors that are outputs, or targets, and still have their shape."""
        shapes = self._shapes[origin]
        return [tensor for tensor in given if self._origins.get(id(tensor)) == origin and tensor.shape in shapes]


def eager() -> AbstractContextManager[Any]:
    """Inside the block, functions that are compiled run as written: torch's compiler gets some wrong in a mode."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


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
        f"{tuple(targets)}: {effect}.\nLet the model or the data loader return both in one shape, for example by "
        "squeeze(-1) or unsqueeze(-1)."
    )


def _broadcast(one: Size, other: Size) -> Size | None:
    try:
        shape: Size = broadcast_shapes(one, other)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return None
    return shape


def name_of(function: Any) -> str:
    """The name of a loss or metric: a function, a partial function or a module."""
    function = getattr(function, "func", function)
    return str(getattr(function, "__name__", type(function).__name__))
