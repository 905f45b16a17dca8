"""The observer that warns about likely mistakes, most of them in a first batch that ran without an error."""

import math
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from base.base_trainer import BaseTrainer
from base.data.workers import cpu_count
from base.metric import StepResult
from base.training.loss import no_loss, stateful_loss
from base.training.observer import Observer
from base.training.parameters import instances
from base.training.state import own_parts
from extras.advice.changes import changed_facts
from extras.advice.known_errors import check_smallest_batch
from extras.classification import classification_warnings
from utils import checkpoint
from utils.optimizers import parameters_in
from utils.schema import TrainerConfig
from utils.text import count, listed
from utils.tree import digest, map_tensors


class Advice(Observer):
    """Warns about likely mistakes. Every process needs one: comparing their states is a collective operation."""

    def begin(self, trainer: BaseTrainer) -> None:
        check_smallest_batch(trainer)
        data = trainer.saved_data
        for warning in changed_facts(data.name, data.saved_input_facts, data.input_facts):
            trainer.console.warn(warning)

    def first_batch(self, trainer: BaseTrainer, result: StepResult) -> None:
        for warning in first_batch_warnings(trainer, result):
            trainer.console.warn(warning)

    def first_step(self, trainer: BaseTrainer) -> None:
        for name in parts_that_differ(trainer):
            trainer.console.warn(
                f"{name} differs between the processes, and a checkpoint keeps that of the first: compute it from the "
                "samples of all, as with self.runtime.process_group.all_reduce_sum, or save each process's "
                "(docs/distributed.md)"
            )

    def end_epoch(self, trainer: BaseTrainer, values: dict[str, float]) -> None:
        epoch, monitored = trainer.progress.epochs, trainer.monitored(values)
        if monitored is not None and not math.isfinite(monitored):
            value = "NaN" if math.isnan(monitored) else f"{monitored:g}"
            trainer.console.warn(
                f"{trainer.settings.monitored_name}, the value of trainer.monitor, is {value} in epoch {epoch}: such "
                "an epoch is never the best, so best.pth is not written for it. Find the cause, or set trainer.monitor "
                "to another value",
                once="the monitored value",
            )
        if math.isnan(values.get("loss", 0.0)):
            trainer.console.warn(
                f"the loss of epoch {epoch} is the mean over nothing, so nothing was learnt: no target counted. Are "
                "all of them the loss's ignore_index (-100 unless it is set), or masked?",
                once="the loss",
            )


# ------------------------------------------------------------------ the first batch


def first_batch_warnings(trainer: BaseTrainer, result: StepResult) -> Iterator[str]:
    """Likely mistakes in the first training batch. result: what ``train_step`` returned."""
    # with FSDP, gradients appear in the last micro-batch
    if not trainer.runtime.sharded and all(each.grad is None for each in trainer.training.parameters):
        yield (
            f"{type(trainer).__name__}.train_step computes no gradients in its first step; unless later ones do, "
            "nothing is trained: call self.backward(loss), of a loss that no detach(), argmax() or item() cuts off "
            "from the weights"
        )
    if names := _untrained_parameters(trainer):
        yield (
            f"not in any optimizer, so never changed: {listed(names)}. Create them in the model's constructor, or set "
            "requires_grad to False"
        )
    if (workers := trainer.training.batches.num_workers) > cpu_count():
        cpus = count(cpu_count(), "CPU")
        yield f"data_loader.args.num_workers={workers} on {cpus}: more workers than CPUs take turns; try fewer"
    yield from _wrong_direction(trainer.settings)
    yield from _ignored_targets(trainer, result)
    yield from _broadcasting(trainer, result)
    yield from _uncounted_rows(trainer, result)
    if trainer.supervised:
        yield from classification_warnings(result, trainer.criterion, trainer.experiment.data.class_names)


def _wrong_direction(settings: TrainerConfig) -> Iterator[str]:
    """A monitor that takes the epoch with the largest loss or the smallest accuracy as the best."""
    name, lower = settings.monitored_name, settings.lower_is_better
    if name.endswith("accuracy" if lower else "loss"):
        extreme, meant = ("smallest", "max") if lower else ("largest", "min")
        yield f'by trainer.monitor, the epoch with the {extreme} {name} is the best; did you mean "{meant} {name}"?'


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


def _uncounted_rows(trainer: BaseTrainer, result: StepResult) -> Iterator[str]:
    """A loss that may be a mean over rows which are not samples, such as the nodes of graphs, without a count."""
    outputs, targets = result.outputs, result.targets
    if result.count is not None or trainer.experiment.sum_loss:
        return
    if not all(isinstance(each, Tensor) and each.dim() for each in (outputs, targets)) or len(outputs) != len(targets):
        return
    batches = trainer.training.batches
    samples = batches.part(next(batches.ranges(trainer.progress.position))).size
    if samples and len(targets) % samples:  # else each sample may have the same number of rows
        yield (
            f"outputs and targets have {len(targets)} rows for {samples} samples, but the loss of a batch is weighted "
            "by its number of samples. If the loss is a mean over rows, return StepResult(..., count=len(targets)), or "
            "give the loss a method count (docs/training.md)"
        )


def _ignored_targets(trainer: BaseTrainer, result: StepResult) -> Iterator[str]:
    """Metrics of model/metric.py that count a target which the loss ignores as a mistake."""
    metrics = trainer.train_metrics.definitions
    counting = [name for name in ("accuracy", "top_k_accuracy") if name in metrics and metrics[name]["type"] == name]
    targets = result.targets
    if counting and isinstance(targets, Tensor) and not targets.is_floating_point() and bool((targets < 0).any()):
        yield (
            f"{' and '.join(counting)} counts ignored targets (below 0) as mistakes; use torchmetrics' "
            "Accuracy with ignore_index instead"
        )


def _untrained_parameters(trainer: BaseTrainer) -> list[str]:
    """The parameters that require a gradient but are in no optimizer, and so would never change."""
    trained = {id(parameter) for parameter in trainer.training.parameters}
    for optimizer in instances(vars(trainer), Optimizer):  # that the trainer has created
        trained |= set(map(id, parameters_in(optimizer)))
    attributes = {**vars(trainer), "model": trainer.experiment.model}
    weights = [
        (attribute, f"{attribute}.{name}" if name else attribute, weight)
        for attribute, value in attributes.items()
        for part in instances(value, (nn.Module, nn.Parameter))  # not a tensor, such as an input with a gradient
        for name, weight in (part.named_parameters() if isinstance(part, nn.Module) else [("", part)])
    ]
    return [
        name
        for attribute, name, weight in weights
        if weight.requires_grad and id(weight) not in trained
        # a trainer's own frozen model has no gradients
        if attribute == "model" or weight.grad is not None
    ]


# ------------------------------------------------------------------ several processes


def parts_that_differ(trainer: BaseTrainer) -> list[str]:
    """The parts added by a subclass, and the loss, whose state differs between processes. A collective operation."""
    if trainer.runtime.process_group.world_size == 1:
        return []
    loss = stateful_loss(trainer.experiment.criterion)
    parts = {**own_parts(trainer.stateful()), **({"loss": loss} if loss else {})}.items()
    digests = {name: _digest(checkpoint.plain({name: part.state_dict()})) for name, part in parts}
    everyone = trainer.runtime.process_group.all_gather(digests)
    return [name for name in digests if any(other[name] != digests[name] for other in everyone)]


def _digest(state: Any) -> str:
    """A hash that is the same for equal states."""
    return blake2b(repr(map_tensors(digest, state)).encode()).hexdigest()
