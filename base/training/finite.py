"""Ends the training at a loss that is not finite, and names its step."""

import math
from collections.abc import Iterable
from copy import copy
from typing import Any

from torch import Tensor

from base.data.batches import Batches, BatchRange
from base.data.sample_random import as_tensor
from base.training.progress import Progress
from utils.errors import DivergedError
from utils.extras import find_extra
from utils.text import count, listed


class FiniteLosses:
    """The losses since they were last checked. To check one at every step, the host would wait for the device."""

    def __init__(self) -> None:
        self.begin(Progress())

    def begin(self, progress: Progress) -> None:
        """Start an epoch, or the rest of one, after these steps."""
        self._losses: list[Tensor | float] = []  # this process's parts
        self._start = copy(progress)

    def add(self, loss: Tensor | float) -> None:
        """Add the loss of a step, by ``to_scalar``."""
        self._losses.append(loss)

    def check(self, trainer: Any) -> None:
        """Raise DivergedError naming a BaseTrainer's first step whose loss is not finite, and its samples."""
        losses, start = self._losses, self._start
        self.begin(trainer.progress)
        if trainer.train_metrics.is_finite():
            return
        batches, checkpoints = trainer.training.batches, trainer.outputs.checkpointer.folder
        summed = trainer.runtime.process_group.all_reduce_sum([float(loss) for loss in losses])
        # the losses end at the step of the check; the epoch may have later steps
        steps = enumerate(zip(summed, trainer.remaining_steps(start), strict=False), start=start.steps + 1)
        found = next(((step, loss, ranges) for step, (loss, ranges) in steps if not math.isfinite(loss)), None)
        if found is None:
            return
        step, loss, ranges = found
        where = f"epoch {trainer.progress.epochs + 1}, {samples_of(batches, ranges)}"
        advice = (
            "Try a lower learning rate (--lr), trainer.clip_grad_norm=1 or runtime.precision=fp32. If it is the first "
            "step, look for a log, sqrt or division at 0, and for targets that the loss does not accept."
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
