"""What to say when the first batch fails, looks wrong, or a loss is not finite."""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from base.data.batches import Batches, BatchRange
from base.data.sample_random import as_tensor
from base.metric import StepResult
from base.training.broadcast import check_next_step, name_of
from base.training.loss import no_loss
from base.training.progress import Progress
from utils.distributed import current
from utils.errors import ConfigError, TrainingError, UserError
from utils.random import isolated
from utils.text import listed
from utils.tree import describe_batch
from utils.user_code import format_error, user_line

FORWARD_ERRORS = (RuntimeError, ValueError, TypeError, IndexError)
ONE_SAMPLE = "Expected more than 1 value per channel when training"  # torch's words
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
SUM_TOLERANCE = 0.02  # of the probabilities of a sample, in bf16 too


def watch_first_batch(trainer: Any, batches: Batches, metrics: Any, step: str, phase: str) -> None:
    """Have the next batch of a BaseTrainer checked as the first one of these batches, unless one of them was before.

    step: "train_step" or "eval_step", which the batch goes through. phase: "training" or "evaluation".
    """
    if batches in trainer.watched:
        return
    trainer.watched.append(batches)
    trainer.first_batch_passed = False
    metrics.phase_to_check = phase
    check_next_step(trainer, step, phase)


def forward_error(trainer: Any, error: Exception, batch: Any) -> Exception:
    """The error to raise for one in a BaseTrainer's step: in the first batch, most often two parts of the config do not
    fit each other.
    """
    if ONE_SAMPLE in str(error):
        return one_sample_error(error)
    if trainer.first_batch_passed:
        return error
    class_names = trainer.experiment.data.class_names
    classes = f" The data have {len(class_names)} classes." if class_names else ""
    line = user_line(error) or f"  {format_error(error)}"
    return current().peer_failure(error) or UserError(
        f"the first batch ({describe_batch(batch)}) failed in the model, the loss or a metric: {error}\n"
        f"{line}\nDo the shapes of data_loader, model and loss in the config fit each other?{classes}"
    )


def check_smallest_batch(trainer: Any) -> None:
    """Raise UserError, before the first step, if the last training batch is one sample that BatchNorm cannot take.

    With several processes a forward pass is not for one of them alone to try; the step itself then fails.
    """
    batches, model = trainer.training.batches, trainer.experiment.model
    size = batches.smallest_batch()
    norms = any(isinstance(module, BATCH_NORMS) for module in model.modules())
    if size != 1 or batches.batch_size == 1 or not norms or trainer.runtime.process_group.world_size > 1:
        return
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    stop = batches.samples_per_pass
    compiled = trainer.runtime.settings.compile  # which would take longer than all the rest
    eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    with isolated("smallest batch"), torch.no_grad(), eager:
        [micro_batch] = batches.load([BatchRange(0, stop - 1, stop)])
        model.train()
        try:
            trainer.eval_step(trainer.runtime.to_device(micro_batch.data))
        except ValueError as error:
            if ONE_SAMPLE in str(error):
                raise one_sample_error(error, samples=stop, batch_size=batches.batch_size) from error
        except Exception:
            pass  # the first batch reports any other mistake
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)


def one_sample_error(error: Exception, *, samples: int = 0, batch_size: int = 0) -> UserError:
    where = f"the last batch of an epoch ({samples:,} samples in batches of {batch_size})" if samples else "this batch"
    return UserError(
        f"{where} is one sample, of which BatchNorm cannot take the variance in training: {error}\n"
        "Set data_loader.args.drop_last=true to leave a short last batch out, or another data_loader.args.batch_size."
    )


def trainer_warnings(trainer: Any, result: StepResult) -> Iterator[str]:
    """What is surely a mistake in a BaseTrainer's first batch that went through all the same.

    Raises ConfigError if the step has not called the loss of the config.
    """
    check_loss_was_called(trainer)
    if warning := untrained_parameters(trainer):
        yield warning
    if getattr(trainer.criterion, "counts_differ", False):
        yield (
            f"the losses {', '.join(trainer.criterion.losses)} are means over different numbers of targets, so that "
            "over several batches, micro-batches or processes their sum is weighted by samples"
        )
    if trainer.supervised:
        yield from first_batch_warnings(result, trainer.criterion, trainer.experiment.data.class_names)


def first_batch_warnings(result: StepResult, criterion: Any, class_names: Sequence[str] | None) -> Iterator[str]:
    """What is surely a mistake in a first batch that went through all the same."""
    warnings = (surplus_outputs(result, class_names), not_probabilities(result, criterion))
    yield from filter(None, warnings)


def check_loss_was_called(trainer: Any) -> None:
    """Raise ConfigError if a BaseTrainer's first step has not called the loss of the config."""
    if trainer.calls_loss or trainer.criterion is no_loss:
        return
    name = type(trainer).__name__
    raise ConfigError(
        f"loss: {name}.train_step does not call self.criterion, so the loss in the config has no effect; call it, "
        'or set "loss" to null'
    )


def untrained_parameters(trainer: Any) -> str | None:
    """What to say of parameters that require a gradient and are in no optimizer: they would never change."""
    trained = {id(parameter) for parameter in trainer.training.parameters}
    modules = {"model": trainer.experiment.model}
    modules |= {name: part for name, part in vars(trainer).items() if isinstance(part, nn.Module) and name != "model"}
    names = [
        f"{name}.{inner}"
        for name, module in modules.items()
        for inner, parameter in module.named_parameters()
        # a frozen model of the trainer's own has no gradient
        if parameter.requires_grad and id(parameter) not in trained and (name == "model" or parameter.grad is not None)
    ]
    if not names:
        return None
    return (
        f"no optimizer has {listed(names)}, so that they never change. Make them in the model's "
        "constructor, or set requires_grad to False"
    )


def surplus_outputs(result: StepResult, class_names: Sequence[str] | None) -> str | None:
    """A classifier with more outputs, (B, C), than the data have classes, which trains all the same."""
    outputs, targets = result.outputs, result.targets
    if not (class_names and isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        return None
    if outputs.dim() != 2 or targets.dim() != 1 or targets.is_floating_point() or outputs.shape[1] <= len(class_names):
        return None
    return (
        f"the model has {outputs.shape[1]} outputs, but the data have {len(class_names)} classes; "
        f"did you mean model.args.num_classes={len(class_names)}?"
    )


def not_probabilities(result: StepResult, criterion: Any) -> str | None:
    """Targets of cross_entropy in the shape of the outputs, (B, C), that are not class probabilities.

    Rows of zeros are allowed: that is how samples are ignored.
    """
    outputs, targets = result.outputs, result.targets
    name = name_of(criterion)
    both = isinstance(outputs, Tensor) and isinstance(targets, Tensor) and outputs.shape == targets.shape
    if name not in ("cross_entropy", "CrossEntropyLoss") or not both or targets.dim() < 2:
        return None
    others = "use mse_loss for numbers, BCEWithLogitsLoss for classes that do not exclude each other"
    if outputs.shape[1] == 1:
        return f"{name} of a single output is always 0; {others}"
    sums = targets.detach().float().sum(1).flatten()  # (B, C, ...) -> (B * ...)
    deviation = (sums - 1).abs() * (sums != 0)
    if not bool((targets < 0).any() | (deviation > SUM_TOLERANCE).any()):
        return None
    return (
        f"{name} expects class probabilities, but these targets are not (range {float(targets.min()):.4g} to "
        f"{float(targets.max()):.4g}, one row sums to {float(sums[deviation.argmax()]):.4g}). "
        f"Class indices are int64 of shape (B,); {others}"
    )


def non_finite_warning(name: str, value: float, epoch: int) -> str:
    """name, value: the monitored one."""
    shown = "NaN" if math.isnan(value) else f"{value:g}"
    return (
        f"{name}, which trainer.monitor watches, is {shown} in epoch {epoch}: such an epoch is never the best, and "
        f"best.pth is not written for it. Find out what makes it so, or set trainer.monitor to another value"
    )


def raise_non_finite(trainer: Any, losses: Sequence[float], before: Progress) -> None:
    """Raise TrainingError that names the first step of a BaseTrainer whose loss is not finite, and its samples.

    losses: this process's parts of those of the steps since ``before``.
    """
    batches, checkpoints = trainer.training.batches, trainer.outputs.checkpointer.folder
    summed = trainer.runtime.process_group.all_reduce_sum(losses)
    # the losses end where the check was asked for, the epoch may have steps after that
    steps = enumerate(zip(summed, trainer.remaining_steps(before), strict=False), start=before.steps + 1)
    found = next(((step, loss, ranges) for step, (loss, ranges) in steps if not math.isfinite(loss)), None)
    if found is None:
        return
    step, loss, ranges = found
    indices = torch.cat([as_tensor(batches.sample_indices(batch_range)) for batch_range in ranges])
    samples = ", ".join(map(str, indices[:8].tolist())) + (", ..." if len(indices) > 8 else "")
    message = (
        f"the loss is {loss} at step {step} (epoch {trainer.progress.epochs + 1}, samples {samples}).\n"
        "Try a lower learning rate (--lr), trainer.clip_grad_norm=1 or runtime.precision=fp32, and check these samples "
        "for values that are not finite and for targets that the loss does not accept."
    )
    if any(checkpoints.glob("step-*")):
        message += f"\nThe checkpoints in {checkpoints} are from before that step."
    raise TrainingError(message)
