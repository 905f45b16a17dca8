"""What a run costs: where its own optimizer leads, time, memory."""

import math

from torch import Tensor, nn
from torch.optim import Optimizer

from base.experiment import Training
from extras.check.finding import CheckResult, amount, duration
from extras.check.layers import named_tensors
from utils.schema import Config


def check_optimizer(config: Config, start: float, end: float, steps: int) -> CheckResult:
    """Where the loss of one batch went in a few steps with the optimizer of the config."""
    name, rate = config.optimizer.type, config.optimizer.args.get("lr")
    text = f"{steps} steps of {name}{'' if rate is None else f' (lr {rate:g})'} on it: loss {start:.4g} to {end:.4g}"
    if not math.isfinite(end):
        return CheckResult("optimizer", "FAIL", text, "a learning rate that is too high; try a tenth of it")
    if end > start:
        return CheckResult("optimizer", "note", text, "a learning rate that is too high, or a first step that is noisy")
    return CheckResult("optimizer", "ok", text)


def check_time(config: Config, training: Training, step: float, fetching: float, validation: float) -> CheckResult:
    """Seconds of a step, of making its batches and of a pass over the validation data, for the whole run."""
    settings = config.trainer
    steps = settings.steps_per_epoch or -(-len(training.batches) // settings.accumulate_steps)
    # worker processes make batches while the model computes; without them, one follows the other
    parallel = training.batches.num_workers > 0
    each = max(step, fetching / max(1, training.batches.num_workers)) if parallel else step + fetching
    whole = settings.epochs * (steps * each + validation)
    text = (
        f"{duration(step)} a step and {duration(fetching)} for its data; "
        f"{settings.epochs} epochs of {steps:,} steps take about {duration(whole)}"
    )
    if fetching > step and not parallel:
        return CheckResult(
            "time", "note", text, "data that take longer than the model: keep them in memory, or num_workers"
        )
    return CheckResult("time", "ok", text)


def check_memory(model: nn.Module, optimizer: Optimizer) -> CheckResult:
    """Bytes that stay on the device; what forward leaves for backward comes on top, and grows with the batch."""
    parameters = _bytes(list(model.parameters()))
    gradients = _bytes([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    states = _bytes([tensor for _, tensor in named_tensors(dict(enumerate(optimizer.state.values())))])
    text = f"{amount(parameters)} parameters, {amount(gradients)} gradients, {amount(states)} optimizer"
    return CheckResult("memory", "ok", f"{text}; activations not counted")


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
