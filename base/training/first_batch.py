"""Checks of a first batch, and messages for one that fails."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from base.data.batches import Batches, BatchRange, MicroBatch, StepBatches
from base.metric import StepResult, check_result
from base.training.broadcast import NoBroadcast, name_of
from base.training.loss import losses_in
from base.training.loss_checks import samples_of
from base.training.metrics import Metrics, in_float32
from base.training.trainer_interface import TrainerInterface
from utils.device_errors import device_failure
from utils.distributed import current
from utils.errors import ConfigError, TrainingError, UserError
from utils.extras import find_extra
from utils.optimizers import parameters_in
from utils.random import isolated
from utils.tree import describe_batch, same, tensors
from utils.user_code import format_error, raised_by_user, user_line

OF_SHAPES = (RuntimeError, ValueError, TypeError, IndexError)  # and of dtypes, which torch raises for tensors
FORWARD_ERRORS = (*OF_SHAPES, LookupError, AttributeError, NameError, AssertionError, ArithmeticError, UserWarning)
BROADCASTS = r"Using a target size \(torch\.Size\(\[(?!1(, 1)*\])\d"
"""Torch's warning of a loss whose targets differ in shape from the outputs, unless they are a single number."""
DO_THEY_MATCH = "Do the shapes and dtypes of data_loader, model and loss in the config match?"


def checked_step(
    trainer: TrainerInterface, step: Callable[[Any], StepResult], metrics: Metrics, phase: str
) -> Callable[[Any], StepResult]:
    """``train_step`` or ``eval_step`` for a first batch, with checks of what it does and returns.

    phase: "training" or "evaluation". If the loss is not the config's, relies on torch's own warning.
    """

    def checked(batch: Any) -> StepResult:
        losses = losses_in(trainer.experiment.criterion)
        for loss in losses:
            loss.called, loss.phase_to_check = False, phase
        try:
            with warnings.catch_warnings(), _without_optimizer_steps(trainer, phase):
                warnings.filterwarnings("error", BROADCASTS)
                result = step(batch)
        finally:
            for loss in losses:
                loss.phase_to_check = ""
        check_result(result, f"{type(trainer).__name__}.{name_of(step)}")
        check_metrics(metrics, result, phase)
        return result

    return checked


@torch.no_grad()
def check_metrics(metrics: Metrics, result: StepResult, phase: str) -> None:
    """Try all metrics. Raises ConfigError if one broadcasts, returns no number, or changes what it gets."""
    if not (metrics.functions or metrics.library):
        return
    outputs, targets = in_float32(result.outputs), in_float32(result.targets)

    def given() -> list[Tensor]:
        return [tensor for tensor in tensors([outputs, targets]) if tensor.layout == torch.strided]

    before = [tensor.detach().clone() for tensor in given()]

    def check_unchanged(name: str) -> None:
        if not same(before, given()):  # of a dict, an item may be another tensor now
            raise ConfigError(
                f'metrics: "{name}" changes outputs or targets in place, which the other metrics also get; let it '
                "change a copy, as in outputs = outputs.clone()"
            )

    with isolated("metrics"):
        for name, function in metrics.functions.items():
            with NoBroadcast(f'the metric "{name}"', phase, outputs, targets):
                function(outputs, targets)
            check_unchanged(name)
        for name, metric in metrics.library.items():
            metric.dry_run(outputs, targets, phase)
            check_unchanged(name)


@contextmanager
def _without_optimizer_steps(trainer: TrainerInterface, phase: str) -> Iterator[None]:
    """In training with one optimizer, raise ConfigError if a step also steps its parameters itself."""
    if phase != "training" or trainer.training.several:
        yield
        return
    trained = set(map(id, trainer.training.parameters))

    def refuse(optimizer: Optimizer, *_: Any) -> None:
        if any(id(parameter) in trained for parameter in parameters_in(optimizer)):
            raise ConfigError(
                f"{type(trainer).__name__}.train_step steps parameters that the config's optimizer steps after it; "
                "leave out optimizer.step() and zero_grad(), or name several optimizers (docs/training.md)"
            )

    hook = register_optimizer_step_pre_hook(refuse)
    try:
        yield
    finally:
        hook.remove()


def forward_error(
    trainer: TrainerInterface, error: Exception, batches: Batches, micro_batch: MicroBatch, phase: str
) -> Exception:
    """The error to raise for one in a step. batches: those with the micro-batch. phase: "training" or "evaluation"."""
    if lost := current().peer_failure(error):
        return lost
    advice = find_extra("advice")
    if advice and (explained := advice.explained(error)):
        return explained  # type: ignore[no-any-return]
    line = user_line(error)
    if failure := device_failure(error, line):
        return TrainingError(failure) if trainer.has_started else UserError(failure)
    if batches.checked:
        return _later_error(trainer, error, batches, micro_batch.range, phase)
    return _first_error(trainer, error, micro_batch, phase)


def _later_error(
    trainer: TrainerInterface, error: Exception, batches: Batches, batch_range: BatchRange, phase: str
) -> Exception:
    """The error of a batch after the first: names the samples, if the cause may be in them."""
    size = batch_range.size
    smaller = size < batches.batch_size
    if not smaller and not isinstance(error, IndexError):  # it depends on the code, not on the samples
        if (advice := find_extra("advice")) and (cause := advice.usual_cause(error)):
            error.add_note(f"The usual cause is {cause}.")
        return error
    after = f" after step {trainer.progress.steps:,}" if trainer.progress.steps else ""  # none in test.py
    last = f", the last {size} of the data where other batches have {batches.batch_size}" if smaller else ""
    what = f"{phase} failed{after}, with {samples_of(batches, [batch_range])}{last}"
    drop = "\ndata_loader.args.drop_last=true leaves them out." if smaller and phase == "training" else ""
    return TrainingError(f"{what}: {_reason(error)}\n{user_line(error)}{drop}")


def _first_error(trainer: TrainerInterface, error: Exception, micro_batch: MicroBatch, phase: str) -> Exception:
    """The error of a first batch: parts of the config probably do not match."""
    line = user_line(error)
    if isinstance(error, AttributeError) and not line:
        return error  # not in the user's code
    line = line or f"  {format_error(error)}"
    first = "the first batch" if phase == "training" else f"the first batch of the {phase}"
    what = f"{first} ({describe_batch(micro_batch.data)}) failed in the model, the loss or a metric"
    if advice := find_extra("advice"):
        further = advice.step_advice(trainer, error, micro_batch.data)
    else:
        further = DO_THEY_MATCH if may_not_match(error) else ""
    return UserError(f"{what}: {_reason(error)}\n{line}\n{further}".rstrip())


def may_not_match(error: Exception) -> bool:
    """Whether the shapes or dtypes of model, loss and data may be the cause of an error in a step."""
    missing = isinstance(error, NotImplementedError)  # a misspelt forward
    return isinstance(error, OF_SHAPES) and not missing and not raised_by_user(error)


def _reason(error: Exception) -> str:
    """The message of an error, without torch's list of the calls, or of all backends, that it would have accepted."""
    bare = isinstance(error, (KeyError, AssertionError)) or not str(error)
    message = format_error(error) if bare else str(error)
    return message.partition(", but expected one of:")[0].partition(" This could be because the operator doesn't")[0]


def check_step_was_taken(trainer: TrainerInterface, loss: Any, step: StepBatches) -> None:
    """Raise ConfigError if a trainer's own first optimizer_step neither calls the base class's nor counts.

    loss: what it returned.
    """
    if loss is None or trainer.progress.position != step.position:
        name = type(trainer).__name__
        raise ConfigError(f"{name}.optimizer_step must call super().optimizer_step(step), and return what it returns")


def check_epoch_was_counted(trainer: TrainerInterface) -> None:
    """Raise ConfigError if the trainer's own ``end_epoch`` does not call the base class's, which counts."""
    if trainer.progress.trained:
        raise ConfigError(f"{type(trainer).__name__}.end_epoch must call super().end_epoch(validation)")


def check_loss_was_called(trainer: TrainerInterface) -> None:
    """Raise ConfigError if the trainer's first step did not call the config's loss."""
    losses = losses_in(trainer.experiment.criterion)
    if not losses or any(loss.called for loss in losses):
        return
    raise ConfigError(
        f"loss: {type(trainer).__name__}.train_step does not call self.criterion, so the loss in the config has no "
        'effect; call it, or set "loss" to null'
    )


def check_backward_was_called(trainer: TrainerInterface, *, weighted: bool) -> None:
    """Raise ConfigError if the trainer's first step computed gradients without ``self.backward``.

    Allowed if nothing has to be weighted or scaled. weighted: whether ``self.backward`` weights gradients.
    """
    if not trainer.called_backward and (weighted or trainer.runtime.scaled):
        check_no_gradients(trainer)


def check_no_gradients(trainer: TrainerInterface) -> None:
    """Raise ConfigError if there are gradients that ``self.backward`` has not computed."""
    if any(parameter.grad is not None for parameter in trainer.training.parameters):
        raise ConfigError(
            f"{type(trainer).__name__}.train_step computes gradients without self.backward(loss), which weights them "
            "over micro-batches and processes and scales them for fp16; call it in place of loss.backward(), once for "
            "each loss"
        )
