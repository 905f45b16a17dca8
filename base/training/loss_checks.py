"""Checks of the losses since the last check. At every step, the host would wait for the device."""

import math
from collections.abc import Iterable

from base.data.batches import Batches, BatchRange
from base.training.metrics import read
from base.training.trainer_interface import TrainerInterface
from utils.errors import DivergedError
from utils.extras import find_extra
from utils.text import count, listed

ROUNDING = 1e-5
"""Relative, of counts such as sums of class weights."""


def check_losses(trainer: TrainerInterface) -> None:
    """Raise DivergedError if a loss is not finite. All processes must call this, before the metrics are read.

    Warns once if losses by name are averaged over different numbers, so that no weight of a micro-batch is exact.
    """
    _check_finite(trainer)
    _check_counts(trainer)


def _check_finite(trainer: TrainerInterface) -> None:
    """Raise DivergedError naming the first step whose loss is not finite, and its samples."""
    steps, trainer.unchecked_losses = trainer.unchecked_losses, []
    if trainer.train_metrics.is_finite():  # without batches in which nothing counts, whose loss may be NaN
        return
    batches, checkpoints = trainer.training.batches, trainer.outputs.checkpointer.folder
    losses = trainer.runtime.process_group.all_reduce_sum(read([loss for loss, _ in steps]))
    index = next((index for index, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if index is None:
        return
    step = trainer.progress.steps - len(steps) + index + 1
    loss, (_, ranges) = losses[index], steps[index]
    where = f"epoch {trainer.progress.epochs + 1}, {samples_of(batches, ranges)}"
    precision = ", or runtime.precision=fp32" if trainer.runtime.dtype else ""
    advice = (
        f"Try a lower learning rate (--lr), or trainer.clip_grad_norm=1{precision}. If it is the first step, look "
        "for a log, sqrt or division at 0, and for targets that the loss does not accept."
    )
    extra = find_extra("advice")
    if extra and (broken := extra.broken_samples(batches, ranges)):
        what = f"values of {count(len(broken), 'sample')} among these are not finite: {listed(broken)}"
        advice = f"The cause is in the data: {what}."
    message = f"the loss is {loss} at step {step} ({where}).\n{advice}"
    if any(checkpoints.glob("step-*")):
        message += f"\nThe checkpoints in {checkpoints} are from before that step."
    raise DivergedError(message)


def _check_counts(trainer: TrainerInterface) -> None:
    """Warn once if the gradients of losses by name are not those of one large batch.

    The gradient of their sum gets one weight per micro-batch. This is wrong for some of the losses if the micro-batch
    has a larger share of one loss's count than of another's.
    """
    losses, process_group = getattr(trainer.experiment.criterion, "losses", {}), trainer.runtime.process_group
    divided = trainer.settings.accumulate_steps > 1 or process_group.world_size > 1
    if not divided or len(losses) < 2 or trainer.experiment.sum_loss or trainer.warned_of_counts:
        return
    counts = [trainer.train_metrics.means[name].pending_weights() for name in losses]  # of each micro-batch
    totals = process_group.all_reduce_sum([sum(each) for each in counts])
    shares = [[count / total for count in each] for each, total in zip(counts, totals, strict=True) if total]
    differs = any(min(each) < (1 - ROUNDING) * max(each) for each in zip(*shares, strict=False))
    trainer.warned_of_counts = process_group.all_reduce_sum([differs])[0] > 0
    if trainer.warned_of_counts:
        trainer.experiment.console.warn(
            f"the losses {', '.join(losses)} are averaged over different numbers of targets, in proportions that "
            "differ between micro-batches: their gradients are not exactly those of one large batch. They are with "
            'one micro-batch per step in one process, with reduction "sum" in all these losses, or with a single loss '
            "that counts for all terms (docs/training.md: Several losses)"
        )


def samples_of(batches: Batches, ranges: Iterable[BatchRange]) -> str:
    """The samples in some batches for a message: "samples 3, 14, ..."."""
    indices = [int(index) for each in ranges for index in batches.sample_indices(each)]
    return f"samples {', '.join(map(str, indices[:8]))}{', ...' if len(indices) > 8 else ''}"
