"""Whether a model is what it seems: samples apart from each other, all parameters in use, able to learn."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from extras.check.finding import CheckResult
from extras.check.layers import Trace, named_tensors

# learning by heart: so many steps at one of these rates must leave at most this part of the first loss
STEPS, RATES, MEMORISED = 50, (3e-3, 3e-2, 3e-4), 0.5


def check_independence(model: nn.Module, trace: Trace) -> CheckResult:
    """Whether each output depends on its own sample alone, in evaluation: no gradient reaches another sample's inputs.

    Inputs that have no gradient, as indices, are exchanged between the other samples instead.
    """
    arguments, count = trace.arguments or (), _samples(trace)
    if count is None or count < 2:
        return CheckResult(
            "independence", "note", "cannot be told: the outputs do not begin with the samples of the batch"
        )
    floats = [tensor for _, tensor in named_tensors(arguments) if tensor.is_floating_point() and len(tensor) == count]
    kept = min(count, 8)
    model.eval()
    apart = _apart_by_gradient if floats else _apart_by_exchange
    try:
        wrong = apart(model, _first(arguments, kept, count), trace.keywords, kept)
    except (RuntimeError, IndexError, ValueError) as error:
        return CheckResult("independence", "note", f"cannot be told: {str(error).splitlines()[0]}")
    if wrong:
        cause = "a mean or a softmax over dimension 0, or a reshape or transpose that mixes the batch with features"
        return CheckResult("independence", "FAIL", f"the output of sample {kept // 2} depends on other samples", cause)
    return CheckResult("independence", "ok", "each output depends on its own sample alone")


def _samples(trace: Trace) -> int | None:
    """The number of samples in the batch, if inputs and outputs agree on it."""
    inputs = next((tensor for _, tensor in named_tensors(trace.arguments)), None)
    outputs = next((tensor for _, tensor in named_tensors(trace.outputs)), None)
    if inputs is None or outputs is None or not inputs.dim() or not outputs.dim() or len(inputs) != len(outputs):
        return None
    return len(inputs)


def _first(value: Any, kept: int, count: int) -> Any:
    """The first samples of everything in a nest that holds one thing a sample."""
    if isinstance(value, Tensor):
        return value[:kept].detach() if value.dim() and len(value) == count else value
    if isinstance(value, dict):
        return {key: _first(item, kept, count) for key, item in value.items()}
    return type(value)(_first(item, kept, count) for item in value) if isinstance(value, (list, tuple)) else value


def _apart_by_gradient(model: nn.Module, arguments: Any, keywords: Any, count: int) -> bool:
    tensors = [tensor for _, tensor in named_tensors(arguments) if tensor.is_floating_point()]
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    # times one, since a model may work in place on its inputs
    replaced = {id(tensor): leaf * 1 for tensor, leaf in zip(tensors, leaves, strict=True)}
    outputs = model(*_swap(arguments, replaced), **keywords)
    chosen = next(tensor for _, tensor in named_tensors(outputs) if tensor.requires_grad)[count // 2]
    gradients = torch.autograd.grad(chosen.sum(), leaves, allow_unused=True)
    others = torch.arange(count, device=chosen.device) != count // 2
    return any(
        bool(gradient[others].any()) for gradient in gradients if gradient is not None and len(gradient) == count
    )


def _apart_by_exchange(model: nn.Module, arguments: Any, keywords: Any, count: int) -> bool:
    order = torch.tensor([count // 2 if i == count // 2 else (count - 1 if i == 0 else 0) for i in range(count)])
    tensors = [tensor for _, tensor in named_tensors(arguments) if tensor.dim() and len(tensor) == count]
    replaced = {id(tensor): tensor[order.to(tensor.device)] for tensor in tensors}
    with torch.no_grad():
        before = next(tensor for _, tensor in named_tensors(model(*arguments, **keywords)))[count // 2]
        after = next(tensor for _, tensor in named_tensors(model(*_swap(arguments, replaced), **keywords)))[count // 2]
    return not torch.allclose(before, after, rtol=1e-4, atol=1e-6)


def _swap(value: Any, replaced: dict[int, Tensor]) -> Any:
    if isinstance(value, dict):
        return {key: _swap(item, replaced) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_swap(item, replaced) for item in value)
    return replaced.get(id(value), value)


def check_gradients(model: nn.Module) -> CheckResult:
    """Whether every parameter got a gradient from the step that was just made."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    frozen = sum(1 for _ in model.parameters()) - len(trained)
    without = [name for name, parameter in trained if parameter.grad is None]
    text = f"all {len(trained)} tensors of parameters get one" + (f"; {frozen} are frozen" if frozen else "")
    if without:
        cause = "a layer that forward does not use, or a detach(), item() or no_grad() on the way to the loss"
        return CheckResult("gradients", "FAIL", f"none for {_some(without)}", cause)
    wrong = [name for name, p in trained if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
    if wrong:
        return CheckResult("gradients", "FAIL", f"not finite for {_some(wrong)}", "a sqrt, log or division at 0")
    zero = [name for name, p in trained if p.grad is not None and not bool(p.grad.any())]
    if zero:
        cause = "ReLUs that are off for all samples, or outputs that are multiplied by 0"
        return CheckResult("gradients", "note", f"zero for {_some(zero)}", cause)
    return CheckResult("gradients", "ok", text)


def check_memorising(
    model: nn.Module, step: Callable[[], Tensor], measure: Callable[[], float], numbers: int
) -> CheckResult:
    """Whether the model learns one batch by heart with Adam, at any of three rates; it is put back afterwards.

    step: leaves the gradients of the batch. measure: its loss in evaluation. numbers: to be learned by heart.
    """
    start, best = measure(), math.inf
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for rate in RATES:
        if best >= MEMORISED * start:
            optimizer = torch.optim.Adam(trained, lr=rate)
            for _ in range(STEPS):
                step()
                optimizer.step()
            best = min(best, measure())
            model.load_state_dict(before)
    went = f"in {STEPS} steps of Adam: loss {start:.4g} to {best:.4g}"
    if best < MEMORISED * start:
        return CheckResult("learning", "ok", f"one batch is learned {went}")
    text = f"one batch is not learned by heart {went} at best"
    if sum(parameter.numel() for parameter in trained) < numbers:
        return CheckResult("learning", "note", text, "a model with fewer parameters than the batch has targets")
    cause = "a softmax before a loss that has its own, outputs cut off from the weights, or a loss that ignores them"
    return CheckResult("learning", "FAIL", text, cause)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
