"""``loss.backward()`` without its checks in Python, which take 13 to 20 us of the two-layer net's 500 us per step.

For tensor subclasses, losses that are not scalars, in a step that torch compiles, and if torch has changed,
``loss.backward`` itself is called. To remove this file, call it in utils/runtime.py.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import graph


def backward_unchecked(loss: Tensor, gradient: Tensor | None = None) -> None:
    """``loss.backward(gradient)``. gradient: like the loss; None: 1."""
    plain = type(loss) is Tensor and not loss.dim() and loss.dtype.is_floating_point
    engine = _engine() if plain and not torch.compiler.is_compiling() else None
    if engine is None:
        loss.backward(gradient)  # type: ignore[no-untyped-call]
        return
    engine(loss, torch.ones_like(loss) if gradient is None else gradient)


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
