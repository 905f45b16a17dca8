"""The observer that warns, and likely mistakes in the first training batch, which ran without an error."""

import math
import sys
from collections.abc import Iterable, Iterator

from torch import Tensor, nn
from torch.optim import Optimizer

from base.base_trainer import BaseTrainer
from base.data.workers import cpu_count
from base.metric import StepResult
from base.training.loss import no_loss
from base.training.observer import Observer
from base.training.parameters import instances
from extras.advice.first_step import IdleOptimizers, OwnOptimizers, differing_part_warnings
from extras.classification import classification_warnings
from utils.optimizers import parameters_in
from utils.registry import SCHEDULERS
from utils.schema import TrainerConfig, name_and_args
from utils.text import count, listed


class Advice(Observer):
    """Warns about likely mistakes. Every process needs one: comparing their states is a collective operation."""

    def __init__(self) -> None:
        self._own_optimizers = OwnOptimizers([])
        self._idle_optimizers: IdleOptimizers | None = None
        self._warned_of_non_finite = False
        self._warned_of_no_targets = False

    def begin(self, trainer: BaseTrainer) -> None:
        self._own_optimizers = OwnOptimizers(trainer.training.optimizers.values())

    def first_batch(self, trainer: BaseTrainer, result: StepResult) -> None:
        _warn(trainer, first_batch_warnings(trainer, result))

    def first_step(self, trainer: BaseTrainer) -> None:
        _warn(trainer, self._own_optimizers.warnings())
        _warn(trainer, differing_part_warnings(trainer))
        if trainer.several_optimizers and trainer.progress.epochs == 0:
            self._idle_optimizers = IdleOptimizers(trainer)

    def end_epoch(self, trainer: BaseTrainer, values: dict[str, float]) -> None:
        monitored = trainer.monitored(values)
        if monitored is not None and not math.isfinite(monitored) and not self._warned_of_non_finite:
            self._warned_of_non_finite = True
            _warn(trainer, [_non_finite_warning(trainer, monitored)])
        if math.isnan(values.get("loss", 0.0)) and not self._warned_of_no_targets:
            self._warned_of_no_targets = True
            _warn(trainer, [_no_targets_warning(trainer)])
        if self._idle_optimizers:
            _warn(trainer, self._idle_optimizers.warnings())
            self._idle_optimizers = None


def _warn(trainer: BaseTrainer, warnings: Iterable[str]) -> None:
    for warning in warnings:
        trainer.console.warn(warning)


def _non_finite_warning(trainer: BaseTrainer, value: float) -> str:
    """value: of the monitored value."""
    name = trainer.settings.monitored_name
    shown = "NaN" if math.isnan(value) else f"{value:g}"
    return (
        f"{name}, the value of trainer.monitor, is {shown} in epoch {trainer.progress.epochs}: such an epoch is never "
        "the best, so best.pth is not written for it. Find the cause, or set trainer.monitor to another value"
    )


def _no_targets_warning(trainer: BaseTrainer) -> str:
    return (
        f"the loss of epoch {trainer.progress.epochs} is the mean over nothing, so nothing was learnt: no target "
        "counted. Are all of them the loss's ignore_index (-100 unless it is set), or masked?"
    )


# ------------------------------------------------------------------ the first batch


def first_batch_warnings(trainer: BaseTrainer, result: StepResult) -> Iterator[str]:
    """Likely mistakes in the first training batch. result: what ``train_step`` returned."""
    # with FSDP, gradients appear in the last micro-batch
    if not trainer.runtime.sharded and all(each.grad is None for each in trainer.training.parameters):
        cause = "call self.backward(loss)"
        if trainer.first_batches.calls_backward:
            ways = "detach(), argmax() or item() before requires_grad_()"
            cause = f"the loss is cut off from the weights, for example by {ways}"
        name = type(trainer).__name__
        step = f"{name}.train_step computes no gradients in its first step"
        yield f"{step}; unless later ones do, nothing is trained: {cause}"
    if names := _untrained_parameters(trainer):
        yield (
            f"not in any optimizer, so never changed: {listed(names)}. Create them in the model's constructor, or set "
            "requires_grad to False"
        )
    if (workers := trainer.training.batches.num_workers) > cpu_count():
        cpus = count(cpu_count(), "CPU")
        yield f"data_loader.args.num_workers={workers} on {cpus}: more workers than CPUs take turns; try fewer"
    yield from _wrong_direction(trainer.settings)
    yield from _short_schedules(trainer)
    yield from _own_metrics(trainer)
    if getattr(trainer.criterion, "counts_differ", False):
        losses = ", ".join(trainer.criterion.losses)  # type: ignore[attr-defined]
        yield (
            f"the losses {losses} are means over different numbers of targets, so over several batches, micro-batches "
            "or processes the weight of their sum is a compromise (in validation and tests, each has its own number)"
        )
    yield from _ignored_targets(trainer, result)
    yield from _broadcasting(trainer, result)
    if trainer.supervised:
        yield from classification_warnings(result, trainer.criterion, trainer.experiment.data.class_names)


def _wrong_direction(settings: TrainerConfig) -> Iterator[str]:
    """A monitor that takes the epoch with the largest loss or the smallest accuracy as the best."""
    name, lower = settings.monitored_name, settings.lower_is_better
    if name.endswith("accuracy" if lower else "loss"):
        extreme, meant = ("smallest", "max") if lower else ("largest", "min")
        yield f'by trainer.monitor, the epoch with the {extreme} {name} is the best; did you mean "{meant} {name}"?'


def _short_schedules(trainer: BaseTrainer) -> Iterator[str]:
    """Schedules by step that end in the first percent of the run by default: torch's total_iters is 5."""
    for schedule in [each.schedule for each in trainer.training.optimizers.values() if each.schedule.per_step]:
        for entry in (schedule.settings, *schedule.settings["args"].get("schedulers", ())):
            name, args = name_and_args(entry) or ("", {})
            parameter = SCHEDULERS.parameters(name).get("total_iters")
            default = parameter.default if parameter and "total_iters" not in args else None
            if isinstance(default, int) and default * 100 <= schedule.length:
                yield (
                    f"{name} ends after {default} of {schedule.length:,} steps, its default; set total_iters in its "
                    "args to the number of steps that it should take"
                )


def _own_metrics(trainer: BaseTrainer) -> Iterator[str]:
    """Metrics of torchmetrics among the trainer's attributes, as a LightningModule has them."""
    if "torchmetrics" not in sys.modules:
        return
    from torchmetrics import Metric

    parts = trainer.stateful().values()
    for name, value in vars(trainer).items():
        if any(instances(value, Metric)) and not any(value is part for part in parts):
            yield (
                f"self.{name} of the trainer is a metric of torchmetrics, which is neither reset after an epoch nor "
                'saved; name it under "metrics" in the config instead'
            )


def _broadcasting(trainer: BaseTrainer, result: StepResult) -> Iterator[str]:
    """Outputs (B, 1) with targets (B,), or the other way round, and a loss that train_step computes itself.

    Those of the config are checked as they compute (base/training/broadcast.py).
    """
    outputs, targets = result.outputs, result.targets
    if not trainer.supervised or trainer.criterion is not no_loss:
        return
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor) and targets.is_floating_point()):
        return
    shapes = [tuple(outputs.shape), tuple(targets.shape)]
    short, long = sorted(shapes, key=len)
    if len(short) == 1 < short[0] and long == (*short, 1):
        yield (
            f"outputs have shape {shapes[0]} and targets {shapes[1]}: a loss that subtracts them compares each with "
            f"every other, ({short[0]}, {short[0]}). If train_step does not do that, return both in one shape"
        )


def _ignored_targets(trainer: BaseTrainer, result: StepResult) -> Iterator[str]:
    """Metrics of model/metric.py that count a target which the loss ignores as a mistake."""
    counting = {"accuracy", "top_k_accuracy"} & trainer.train_metrics.functions.keys()
    targets = result.targets
    if counting and isinstance(targets, Tensor) and not targets.is_floating_point() and bool((targets < 0).any()):
        yield (
            f"{' and '.join(sorted(counting))} counts ignored targets (below 0) as mistakes; use torchmetrics' "
            "Accuracy with ignore_index instead"
        )


def _untrained_parameters(trainer: BaseTrainer) -> list[str]:
    """The parameters that require a gradient but are in no optimizer, and so would never change."""
    trained = {id(parameter) for parameter in trainer.training.parameters}
    for optimizer in instances(vars(trainer), Optimizer):  # that the trainer has created
        trained |= set(map(id, parameters_in(optimizer)))
    attributes = {**vars(trainer), "model": trainer.experiment.model}
    modules = [(name, part) for name, value in attributes.items() for part in instances(value, nn.Module)]
    return [
        f"{name}.{inner}"
        for name, module in modules
        for inner, parameter in module.named_parameters()
        # a trainer's own frozen model has no gradients
        if parameter.requires_grad and id(parameter) not in trained and (name == "model" or parameter.grad is not None)
    ]
