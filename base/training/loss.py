"""What a loss is averaged over, and the loss of an optimizer step over micro-batches and processes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from base.metric import StepResult
from base.training.broadcast import outputs_and_targets
from base.training.metrics import to_scalar
from utils.distributed.process_group import ProcessGroup
from utils.errors import ConfigError

SMALLEST = 1e-12  # replaces 0; a sum of class weights may be small

Loss = Callable[..., Tensor]
"""(outputs, targets) -> shape ()."""
Count = Callable[[Tensor, Tensor], Tensor | float]
"""(outputs, targets) -> what the loss is averaged over, shape ()."""


class CountedLoss:
    """A loss that is not averaged over samples, with what its last value was averaged over.

    loss: the mean. count: what a batch is averaged over. total: the same loss as a sum, which divided by the count is 0
    instead of NaN if nothing counts; None: uses ``loss`` as it is.
    """

    def __init__(self, loss: Callable[..., Tensor], count: Count, total: Callable[..., Tensor] | None = None) -> None:
        self.loss, self.total = loss, total
        self.func = getattr(loss, "func", loss)
        self._count = count
        self.last_count: Tensor | float | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        outputs, targets = outputs_and_targets(args, kwargs)
        count = self._count(outputs, targets)
        self.last_count = count = to_scalar(count) if isinstance(count, Tensor) else count
        if self.total is None or (not isinstance(count, Tensor) and count > 0):
            return with_count(self.loss(*args, **kwargs), count)
        return with_count(self.total(*args, **kwargs) / _at_least(count, SMALLEST), count)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["loss"], name)


def count_targets(outputs: Tensor, targets: Tensor, *, weight: Tensor | None, ignore: int) -> Tensor | float:
    """The divisor of ``torch.nn.functional.cross_entropy``: the sum of the weights of all targets not ignored.

    outputs: (B, C, ...); targets: class indices, int64 of shape (B, ...), or probabilities in the shape of outputs,
    which all count.
    """
    if targets.is_floating_point():
        return targets.numel() // targets.shape[1] if targets.dim() > 1 else len(targets)
    kept = targets != ignore
    if weight is None:
        return to_scalar(kept.count_nonzero())  # in half the time of sum()
    return to_scalar((weight[torch.where(kept, targets, 0)] * kept).sum())


class StepLoss:
    """Accumulates the loss of one optimizer step over its micro-batches and all processes.

    The loss equals that of one large batch: the sum over micro-batches of count * loss, divided by the sum of the
    counts, which is known only at the end. Until then, the counts are divided by ``samples`` instead.

    samples: of the step. alone: the step has one micro-batch in one process, so its loss is the micro-batch's.
    """

    def __init__(self, samples: int, *, alone: bool, sum_loss: bool) -> None:
        self.samples, self.alone, self.sum_loss = samples, alone, sum_loss
        self.loss: Tensor | float = 0.0
        self.count: Tensor | float = 0.0
        self.counts_samples = True

    def add(self, loss: Tensor, count: Tensor | float | None, samples: int) -> Tensor | float:
        """Add a micro-batch of this many samples. Returns the weight of its gradients. count: None: samples."""
        self.counts_samples &= count is None
        if count is None or not samples:
            count = samples
        weight = 1.0 if self.alone or (self.sum_loss and samples) else count / self.samples
        self.count += count
        if isinstance(count, Tensor) and not self.alone:
            self.loss += torch.where(count > 0, weight * to_scalar(loss), 0.0)  # some are NaN if nothing counts
        elif isinstance(count, Tensor) or count > 0:
            self.loss += to_scalar(loss) if self.alone else weight * to_scalar(loss)
        return weight

    def finish(self, parameters: list[nn.Parameter], process_group: ProcessGroup) -> Tensor | float:
        """Divide the gradients by the total count, and return this process's part of the loss."""
        if self.alone or self.sum_loss or self.counts_samples:
            return self.loss
        count = self.count
        if process_group.world_size > 1:
            [count] = process_group.all_reduce_sum([float(count)])
        scale: Tensor | float = self.samples / _at_least(count, SMALLEST)
        if not isinstance(scale, Tensor) and scale == 1.0:
            return self.loss
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
        return scale * self.loss


def completed(result: StepResult, loss: Loss, *, taken: Tensor | float | None = None) -> StepResult:
    """Add to the result of a step what the loss was averaged over and the losses it is a sum of.

    loss: the trainer's; clears what its last call stored. taken: the count that was taken from it within the step.
    """
    count: Any = count_of([result.loss], loss)
    count = taken if count is None else count
    count = count if result.count is None else result.count
    if isinstance(count, Tensor):
        count = to_scalar(count)
    if take_parts := getattr(loss, "take_parts", None):
        return result._replace(count=count, log={**take_parts(), **result.log})
    return result if count is result.count else result._replace(count=count)


def no_loss(*_: Any) -> Tensor:
    """Takes the place of a loss that the config does not have."""
    raise ConfigError('the trainer calls self.criterion, but the config has no loss; set the key "loss"')


def last_count(loss: Loss) -> Tensor | float | None:
    """What a loss's last value was averaged over, returned once; None: samples."""
    count: Tensor | float | None = getattr(loss, "last_count", None)
    if count is not None:
        loss.last_count = None  # type: ignore[attr-defined]
    return count


def with_count(loss: Tensor, count: Tensor | float | None) -> Tensor:
    """The loss, with what it was averaged over as an attribute; None: samples."""
    if isinstance(loss, Tensor):  # train_step may still turn anything else into one
        loss.averaged_over = count  # type: ignore[attr-defined]
    return loss


def count_of(losses: Sequence[Tensor], loss: Loss) -> Tensor | float | None:
    """What some values of a loss were averaged over; None: samples. loss: clears what its last call stored.

    Values computed from the loss's, such as weighted ones, were averaged over what its last value was.
    """
    last = last_count(loss)
    own = [each.averaged_over for each in losses if hasattr(each, "averaged_over")]
    return own[-1] if own else last


def _at_least(value: Tensor | float, least: float) -> Any:
    return value.clamp(min=least) if isinstance(value, Tensor) else max(value, least)
