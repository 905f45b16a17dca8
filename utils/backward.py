"""``loss.backward()`` without its checks in Python, which take 13 to 20 us of the two-layer net's 500 us per step.

The checks are for tensor subclasses, function transforms, several losses and losses that are not scalars. For these, in
a step that torch compiles, if the user's code has replaced ``backward``, and if torch has changed, ``loss.backward``
itself is called. To remove this file, call it in utils/runtime.py.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import graph
from torch.overrides import has_torch_function

OF_TORCH: Any = Tensor.backward, torch.autograd.backward
in_transform: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def backward_unchecked(loss: Tensor, gradient: Tensor | None = None) -> None:
    """``loss.backward(gradient)``. gradient: like the loss; None: 1."""
    engine = _engine() if _needs_no_checks(loss) else None
    if engine is None:
        loss.backward(gradient)  # type: ignore[no-untyped-call]
        return
    engine(loss, torch.ones_like(loss) if gradient is None else gradient)


def _needs_no_checks(loss: Tensor) -> bool:
    """Whether all checks of torch's own ``backward`` would pass, and nothing has taken its place."""
    if torch.compiler.is_compiling() or has_torch_function((loss,)) or in_transform():
        return False
    if loss.dim() or not loss.dtype.is_floating_point:
        return False
    method = getattr(loss.backward, "__func__", None)
    return method is OF_TORCH[0] and torch.autograd.backward is OF_TORCH[1]


@functools.cache
def _engine() -> Callable[[Tensor, Tensor], None] | None:
    """What ``backward`` calls after its checks; None if it is not as expected, in another version of torch."""
    engine: Any = getattr(graph, "_engine_run_backward", None)

    def run(loss: Tensor, gradient: Tensor) -> None:
        engine((loss,), (gradient,), False, False, (), allow_unreachable=True, accumulate_grad=True)

    weight = torch.ones((), requires_grad=True)
    try:
        with torch.enable_grad():
            run(3 * weight, torch.full_like(weight, 2))
    except Exception:
        return None
    return run if weight.grad is not None and float(weight.grad) == 6 else None
