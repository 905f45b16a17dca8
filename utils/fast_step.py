"""The backward pass and the optimizer's methods without what torch does around them in Python.

Of the two-layer net's 400 us per step, the checks of ``loss.backward`` take 13 to 20 us, and the marks for torch's
profiler, even if none is running, 12 to 20 us in ``zero_grad`` and 20 to 60 us in ``step``. torch's own are called if
something needs them (tensor subclasses, losses that are not scalars, the compiler, a profiler, a hook) and if torch has
changed. To remove this file, call them in utils/runtime.py.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import graph
from torch.optim import Optimizer
from torch.optim import optimizer as module

ZERO_GRAD: Any = Optimizer.zero_grad


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


def zero_grad_unmarked(optimizer: Optimizer) -> None:
    """``optimizer.zero_grad()``."""
    if getattr(optimizer.zero_grad, "__func__", None) is not ZERO_GRAD:  # the user's, in a class or in its place
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def step_unmarked(optimizer: Optimizer, *closure: Callable[[], Any]) -> None:
    """``optimizer.step()``."""
    step: Any = type(optimizer).step
    if not getattr(step, "hooked", False) or _is_watched(optimizer, step):
        optimizer.step(*closure)
        return
    optimizer._opt_called = True  # type: ignore[attr-defined]  # as the wrapper by a scheduler does
    unmarked = step.__wrapped__
    of_torch = getattr(unmarked, "__globals__", None) is vars(module) and hasattr(unmarked, "__wrapped__")
    if not of_torch or "differentiable" not in optimizer.defaults:  # LBFGS has none
        unmarked(optimizer, *closure)
        return
    # torch's wrapper, which imports the compiler and sets the grad mode
    with torch.set_grad_enabled(optimizer.defaults["differentiable"]):
        unmarked.__wrapped__(optimizer, *closure)


def _is_watched(optimizer: Optimizer, step: Any) -> bool:
    """Whether anything else is involved in the optimizer's steps. step: the method of its class."""
    attributes = vars(optimizer)
    replaced = attributes.get("step")
    by_scheduler = getattr(replaced, "_wrapped_by_lr_sched", False) and getattr(replaced, "__wrapped__", 0) is step
    if replaced is not None and not by_scheduler:
        return True  # by the user
    return bool(
        getattr(torch.autograd.profiler, "_is_profiler_enabled", True)
        or attributes.get("_optimizer_step_pre_hooks", True)
        or attributes.get("_optimizer_step_post_hooks", True)
        or getattr(module, "_global_optimizer_pre_hooks", True)
        or getattr(module, "_global_optimizer_post_hooks", True)
    )
