"""Ends the training at a loss that is not finite, and names its step."""

import math
from collections.abc import Iterable, Sequence

from torch import Tensor

from base.data.batches import Batches, BatchRange
from base.data.sample_random import as_tensor
from base.training.trainer_interface import TrainerInterface
from utils.errors import DivergedError
from utils.extras import find_extra
from utils.text import count, listed


class FiniteLosses:
    """The losses since they were last checked. To check one at every step, the host would wait for the device."""

    def __init__(self) -> None:
        self._steps: list[tuple[Tensor | float, Sequence[BatchRange]]] = []

    def add(self, loss: Tensor | float, ranges: Sequence[BatchRange]) -> None:
        """Add this process's part of the loss of a step, by ``to_scalar``, over these batches."""
        self._steps.append((loss, ranges))

    def check(self, trainer: TrainerInterface) -> None:
        """Raise DivergedError naming the first step whose loss is not finite, and its samples."""
        steps, self._steps = self._steps, []
        if trainer.train_metrics.is_finite():
            return
        batches, checkpoints = trainer.training.batches, trainer.outputs.checkpointer.folder
        losses = trainer.runtime.process_group.all_reduce_sum([float(loss) for loss, _ in steps])
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


def samples_of(batches: Batches, ranges: Iterable[BatchRange]) -> str:
    """The samples in some batches for a message: "samples 3, 14, ..."."""
    indices = [int(index) for each in ranges for index in as_tensor(batches.sample_indices(each))]
    return f"samples {', '.join(map(str, indices[:8]))}{', ...' if len(indices) > 8 else ''}"
