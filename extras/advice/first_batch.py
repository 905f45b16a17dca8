"""Likely mistakes in the first training batch, which ran without an error."""

import sys
from collections.abc import Iterator

from torch import Tensor, nn
from torch.optim import Optimizer

from base.base_trainer import BaseTrainer
from base.metric import StepResult
from base.training.parameters import instances, modules_and_tensors
from extras.classification import classification_warnings
from utils.optimizers import parameters_in
from utils.text import listed


def first_batch_warnings(trainer: BaseTrainer, result: StepResult) -> Iterator[str]:
    """Likely mistakes in the first training batch. result: what ``train_step`` returned."""
    # with FSDP, gradients appear in the last micro-batch
    if not trainer.runtime.sharded and all(each.grad is None for each in trainer.training.parameters):
        cause = "call self.backward(loss)"
        if trainer.calls_backward:
            cause = "the loss is cut off from the weights, as by detach(), argmax() or item() before requires_grad_()"
        name = type(trainer).__name__
        step = f"{name}.train_step computes no gradients in its first step"
        yield f"{step}; unless later ones do, nothing is trained: {cause}"
    if names := _untrained_parameters(trainer):
        yield (
            f"not in any optimizer, so never changed: {listed(names)}. Create them in the model's constructor, or set "
            "requires_grad to False"
        )
    yield from _own_metrics(trainer)
    if getattr(trainer.criterion, "counts_differ", False):
        losses = ", ".join(trainer.criterion.losses)  # type: ignore[attr-defined]
        yield (
            f"the losses {losses} are means over different numbers of targets, so over several batches, micro-batches "
            "or processes their sum is weighted by samples (in validation and tests, each by its own number)"
        )
    yield from _ignored_targets(trainer, result)
    if trainer.supervised:
        yield from classification_warnings(result, trainer.criterion, trainer.experiment.data.class_names)


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
    modules = [(name, part) for name, value in attributes.items() for part in modules_and_tensors(value)]
    return [
        f"{name}.{inner}"
        for name, module in modules
        if isinstance(module, nn.Module)
        for inner, parameter in module.named_parameters()
        # a trainer's own frozen model has no gradients
        if parameter.requires_grad and id(parameter) not in trained and (name == "model" or parameter.grad is not None)
    ]
