"""Whether a model can learn: independent samples, all parameters in use, one batch memorised; and what a run costs."""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from base.experiment import Training
from base.metric import StepResult
from base.training.schedule import ScheduledOptimizer
from base.training.state import load_part
from extras.check.check_result import CheckResult
from extras.layers import Trace
from utils.fast_step import step_unmarked
from utils.random import isolated
from utils.schema import Config
from utils.text import count, duration, listed, size
from utils.tree import copied, map_tensors, size_of, stored_values, tensors

# memorising one batch: this many steps at one of these rates must leave at most this fraction of the first loss
STEPS = 50
RATES = (3e-3, 3e-2, 3e-4)
MEMORISED = 0.5


def check_independence(model: nn.Module, trace: Trace, samples: int) -> CheckResult:
    """Whether an output depends only on its own sample in evaluation: it stays if copies of that replace the others.

    samples: in the batch; not tested where the model's inputs or outputs have another number of rows, such as the nodes
    of graphs.
    """
    nests = (trace.arguments, trace.outputs)
    rows = [next((len(tensor) for tensor in tensors(nest) if tensor.dim()), 0) for nest in nests]
    kept = min(samples, 8)
    chosen = kept // 2
    model.eval()
    try:
        if rows != [samples, samples] or samples < 2:
            raise ValueError(f"the model took {rows[0]} rows and returned {rows[1]} for {count(samples, 'sample')}")
        before = _outputs(model, trace, torch.arange(kept), samples)
        after = _outputs(model, trace, torch.full((kept,), chosen), samples)
        mixed = not torch.allclose(before[chosen], after[chosen], rtol=1e-4, atol=1e-6, equal_nan=True)
    except Exception as error:  # from the user's own code, with inputs it was not written for, or sparse ones
        return CheckResult("independence", "ok", f"cannot be tested: {str(error).partition(chr(10))[0]}")
    if mixed:
        cause = "a mean or a softmax over dimension 0, or a reshape or transpose that mixes the batch with features"
        return CheckResult("independence", "FAIL", f"the output of sample {chosen} depends on other samples", cause)
    return CheckResult("independence", "ok", "each output of the model depends only on its own sample")


def _outputs(model: nn.Module, trace: Trace, rows: Tensor, count: int) -> Tensor:
    """The first output for these rows of every input that has one for each sample; with the same random numbers."""
    arguments, keywords = map_tensors(
        lambda tensor: tensor[rows.to(tensor.device)] if tensor.dim() and len(tensor) == count else tensor,
        (trace.arguments, trace.keywords),
    )
    with torch.no_grad(), isolated(0, "check"):
        return next(tensors(model(*arguments, **keywords)))


def check_gradients(model: nn.Module, optimizers: Collection[ScheduledOptimizer]) -> CheckResult:
    """Whether every parameter got a gradient in the last step, in which not all of several optimizers may step."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    without = {name: parameter for name, parameter in trained if parameter.grad is None and parameter.numel()}
    if without:
        idle = [each for each in optimizers if all(parameter.grad is None for parameter in each.parameters)]
        theirs = {id(parameter) for each in idle for parameter in each.parameters}
        text = f"none for {listed([*without])}"
        if len(idle) < len(optimizers) and all(id(parameter) in theirs for parameter in without.values()):
            cause = "an optimizer that train_step does not step in every step, unless it is a mistake"
            return CheckResult("gradients", "note", text, cause)
        cause = "a layer unused by forward, or a detach(), item() or no_grad() on the way to the loss"
        return CheckResult("gradients", "FAIL", text, f"{cause}; if that is intended, freeze them: trainer.freeze")
    gradients = {name: stored_values(parameter.grad) for name, parameter in trained if parameter.grad is not None}
    not_finite = [name for name, gradient in gradients.items() if not bool(gradient.isfinite().all())]
    if not_finite:
        return CheckResult("gradients", "FAIL", f"not finite for {listed(not_finite)}", "a sqrt, log or division at 0")
    zero = [name for name, gradient in gradients.items() if not bool(gradient.any())]
    if zero:
        cause = "ReLUs that are inactive for all samples, or outputs multiplied by 0"
        return CheckResult("gradients", "note", f"zero for {listed(zero)}", cause)
    frozen = sum(1 for _ in model.parameters()) - len(trained)
    text = f"all {len(trained)} parameter tensors get one" + (f"; {frozen} are frozen" if frozen else "")
    return CheckResult("gradients", "ok", text)


def check_memorising(
    model: nn.Module, step: Callable[[], StepResult], measure: Callable[[], StepResult], *, must_learn: bool
) -> CheckResult:
    """Whether the model memorises one batch with Adam at any of three learning rates; restores its weights afterwards.

    step: computes the gradients of the batch. measure: the step with the loss to compare. must_learn: whether it must.
    """
    if any(getattr(module, "sparse", False) for module in model.modules()):
        return CheckResult("learning", "note", "not tried: Adam does not take sparse gradients", "")
    # of evaluation and of training, which may have different losses, or evaluate another model, such as a teacher
    starts, lowest = [float(measure().loss)], [math.inf, math.inf]
    before = copied(model.state_dict())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for rate in RATES:
        if not any(map(_is_memorised, starts, lowest)):
            optimizer = torch.optim.Adam(trained, lr=rate)
            for _ in range(STEPS):
                with isolated(0, "check"):  # the same dropout in each step: noise may keep the loss up
                    loss = float(step().loss)
                starts = [*starts, loss][:2]
                step_unmarked(optimizer)  # as in training, without importing the compiler
            lowest = list(map(min, lowest, (float(measure().loss), loss)))
            load_part(model, copied(before))

    changes = [*zip(starts, lowest, strict=True)]
    learnt = [change for change in changes if _is_memorised(*change)]
    start, best = (learnt or changes)[0]
    progress = f"in {STEPS} steps of Adam: loss {start:.4g} to {best:.4g}"
    if learnt:
        return CheckResult("learning", "ok", f"one batch can be learnt {progress}")
    cause = (
        "targets of a large scale, a softmax before a loss that applies its own, detached outputs, "
        "or a loss that ignores the outputs or all targets"
        if must_learn
        else "few or frozen parameters, or a loss that stays above 0, unless it is a mistake"
    )
    text = f"one batch cannot be learnt {progress} at best"
    return CheckResult("learning", "FAIL" if must_learn else "note", text, cause)


def _is_memorised(start: float, lowest: float) -> bool:
    return lowest < start - (1 - MEMORISED) * abs(start)  # a loss may be negative


def check_optimizer(config: Config, start: float, end: float, steps: int) -> CheckResult:
    """How the loss of one batch changes in a few steps with the config's own optimizer."""
    optimizers = config.optimizers.values()
    name = " and ".join(optimizer.type for optimizer in optimizers)
    rate = next(iter(optimizers)).args.get("lr") if len(optimizers) == 1 else None
    text = f"{steps} steps of {name}{'' if rate is None else f' (lr {rate:g})'} on it: loss {start:.4g} to {end:.4g}"
    if not math.isfinite(end):
        return CheckResult("optimizer", "FAIL", text, "a learning rate that is too high; try a tenth of it")
    if end > start:
        return CheckResult("optimizer", "note", text, "a learning rate that is too high, or a noisy first step")
    return CheckResult("optimizer", "ok", text)


def loading_time(arrivals: Sequence[float], workers: int) -> float:
    """Seconds to load a batch in the middle of an epoch. arrivals: of the first batches, in seconds since the start."""
    # workers deliver in bursts, a batch from each: a median of the gaps would be about 0. The first has started them
    each = max(workers, 1)
    last = (len(arrivals) - 1) // each * each
    return (arrivals[last] - arrivals[0]) / last if last else arrivals[-1] / len(arrivals)


def check_time(config: Config, training: Training, step: float, fetching: float) -> CheckResult:
    """The time of the whole run without its validations, from the seconds of a step and of loading its batches."""
    settings = config.trainer
    steps = settings.steps_per_epoch or -(-len(training.batches) // settings.accumulate_steps)
    # worker processes load batches while the model computes; without them, one follows the other
    parallel = training.batches.num_workers > 0
    seconds = max(step, fetching) if parallel else step + fetching
    total = settings.epochs * steps * seconds
    text = (
        f"{duration(step, fine=True)} a step and {duration(fetching, fine=True)} for its data; "
        f"{count(settings.epochs, 'epoch')} of {count(steps, 'step')} take about {duration(total, fine=True)}, "
        "without validation"
    )
    if fetching > step and not parallel:
        cause = "loading that takes longer than the model: keep the data in memory, or set num_workers"
        return CheckResult("time", "note", text, cause)
    return CheckResult("time", "ok", text)


def check_memory(model: nn.Module, optimizer_states: Sequence[Any]) -> CheckResult:
    """Bytes that stay on the device; activations, which grow with the batch size, are not included."""
    parameters = list(model.parameters())
    gradients = [parameter.grad for parameter in parameters]
    weights, slopes, states = (size(size_of(each)) for each in (parameters, gradients, optimizer_states))
    text = f"{weights} parameters, {slopes} gradients, {states} optimizer; activations not counted"
    return CheckResult("memory", "ok", text)
