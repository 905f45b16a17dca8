"""What is averaged, and over what: the loss and metrics of a phase, and the loss of an optimizer step.

Values stay on the device and are read only when logged.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from base.metric import MetricFunction, StepResult, check_values, single_number
from base.training.library_metric import LibraryMetric, share_updates
from utils.distributed.process_group import ProcessGroup
from utils.errors import ConfigError
from utils.tree import map_tensors

HALF = (torch.float16, torch.bfloat16)


is_read_at_once = operator.attrgetter("is_cpu")
"""Whether the host reads a number in the step that computes it: on other devices, it would wait for the device."""


def to_scalar(value: Tensor | float) -> Tensor | float:
    """Prepare a number or tensor of shape () to be read later.

    On the CPU, returns a float: reading is free there, and keeping tensors would fragment memory. On other devices,
    returns the detached tensor.
    """
    if not isinstance(value, Tensor):
        return value
    return value.item() if is_read_at_once(value) else value.detach()


class Mean:
    """A weighted mean. Values are added in float64 and in order when the mean is read or saved.

    It has two sums: one over the open log interval, for this process only, and one over all closed intervals, for all
    processes.
    """

    MAX_PENDING = 1000

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.drop_interval()
        self.sum = 0.0
        self.weight = 0.0

    def drop_interval(self) -> None:
        self._pending: list[tuple[Tensor | float, Tensor | float, bool]] = []
        self.interval_sum = 0.0
        self.interval_weight = 0.0

    def add(self, value: Tensor | float, *, weight: Tensor | float, is_mean: bool = False) -> None:
        """Add a value with a weight, both from ``to_scalar``. is_mean: over what the weight counts; otherwise a sum."""
        self._pending.append((value, weight, is_mean))
        if len(self._pending) == self.MAX_PENDING:
            self.interval()

    def interval(self) -> tuple[float, float]:
        """Add what is pending. Returns the sum and weight of the open interval in this process."""
        values = read([value for value, _, _ in self._pending])
        weights = self.pending_weights()
        for value, weight, (_, _, is_mean) in zip(values, weights, self._pending, strict=True):
            self.interval_weight += weight
            if not is_mean:
                self.interval_sum += value
            elif weight:  # else the mean over nothing, NaN in some losses
                self.interval_sum += weight * value
        self._pending = []
        return self.interval_sum, self.interval_weight

    def pending_weights(self) -> list[float]:
        """The weights of the values that have not been read yet."""
        return read([weight for _, weight, _ in self._pending])

    def close_interval(self, total: float, weight: float) -> float:
        """Add the open interval, summed over all processes, to the total. Returns the interval's mean."""
        self.drop_interval()
        self.sum += total
        self.weight += weight
        return total / weight if weight else math.nan

    def compute(self) -> float:
        """The mean of all closed intervals since the reset."""
        return self.sum / self.weight if self.weight else math.nan

    def state_dict(self) -> dict[str, Any]:
        return {"interval": list(self.interval()), "whole": [self.sum, self.weight]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reset()
        self.interval_sum, self.interval_weight = map(float, state["interval"])
        self.sum, self.weight = map(float, state["whole"])

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add another process's open interval. The total is the same in all processes."""
        self.interval_sum += state["interval"][0]
        self.interval_weight += state["interval"][1]


def read(scalars: list[Any]) -> list[float]:
    """Results of ``to_scalar`` as floats, with a single transfer for all tensors."""
    on_device = [scalar for scalar in scalars if isinstance(scalar, Tensor)]
    if not on_device:
        return scalars
    numbers = iter(torch.stack([each.reshape(()) for each in on_device]).tolist())  # a loss may have shape (1,)
    return [next(numbers) if isinstance(scalar, Tensor) else scalar for scalar in scalars]


@dataclass(eq=False)
class Metrics:
    """The loss and metrics of one phase (training, validation or test).

    functions: per-sample metrics by name, (outputs, targets) -> float or bool of shape (B,).
    library: torchmetrics metrics by name.
    sum_loss: the loss is a sum over samples, not a mean. It is logged as the sum over an optimizer step's samples in
        training, and over the data set in evaluation.
    process_group: each process adds its own samples; sums are reduced when they are read.
    definitions: the config of each metric. A metric whose definition differs from a saved state's starts empty.
    logs: names of additional values that a step may log. Those that no step of the phase logs are left out.
    loss_weights: weights of the losses by name whose sum over all samples is the loss; empty: the steps' loss is used.
    """

    functions: Mapping[str, MetricFunction]
    library: Mapping[str, LibraryMetric]
    _: KW_ONLY
    sum_loss: bool = False
    process_group: ProcessGroup = field(default_factory=ProcessGroup)
    definitions: Mapping[str, Any] = field(default_factory=dict)
    logs: Sequence[str] = ()
    loss_weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        share_updates([*self.library.values()])
        self.means = {name: Mean() for name in ("loss", *self.functions, *self.logs)}
        self._all: dict[str, Mean | LibraryMetric] = {**self.means, **self.library}

    def update(self, result: StepResult, *, samples: int, share: float) -> None:
        """Add a micro-batch.

        samples: of this process; 0 for a batch that does not count, since other processes have its samples.
        share: the fraction of the optimizer step's, or the data set's, samples in this micro-batch.
        """
        if self.loss_weights and not hasattr(result.loss, "averaged_over"):  # the step returned something else
            self.loss_weights = {}
        if not samples:
            return
        if self.sum_loss:
            self.means["loss"].add(to_scalar(result.loss), weight=share)
        else:
            weight = samples if result.count is None else result.count
            self.means["loss"].add(to_scalar(result.loss), weight=weight, is_mean=True)
        if self.functions or self.library:
            with torch.set_grad_enabled(False):  # ``torch.no_grad()`` takes three times as long to enter and leave
                # squares and sums overflow in half precision, long before the result is out of range
                outputs, targets = in_float32(result.outputs), in_float32(result.targets)
                for name, function in self.functions.items():
                    values = check_values(name, function(outputs, targets), samples, outputs, targets)  # (B,)
                    self.means[name].add(to_scalar(in_float32(values).sum()), weight=samples)
                for metric in self.library.values():
                    if not metric.follows:
                        metric.update(outputs, targets)
        for name, value in result.log.items():
            if name not in self.logs:
                raise ConfigError(f'the trainer logs "{name}", which is missing from its class attribute "logs"')
            if value is None:  # not measured this time
                continue
            number = to_scalar(single_number(value, f'the trainer logs "{name}"'))
            count = getattr(value, "averaged_over", None)
            weight = samples if count is None else to_scalar(count)
            self.means[name].add(number, weight=weight, is_mean=True)

    def close_interval(self) -> dict[str, float]:
        """The means since the last call, without torchmetrics, whose values are known only at the end of a phase."""
        # the sum and the weight of each mean, in turn
        own_sums = [number for mean in self.means.values() for number in mean.interval()]
        totals = self.process_group.all_reduce_sum(own_sums)
        means = {}
        for (name, mean), total, weight in zip(self.means.items(), totals[::2], totals[1::2], strict=True):
            value = mean.close_interval(total, weight)
            if weight or name not in self.logs:
                means[name] = value
        return means

    def compute(self) -> dict[str, float]:
        """Every value over everything added since the reset."""
        self.close_interval()
        unlogged = {name for name in self.logs if not self.means[name].weight}
        values = {name: metric.compute() for name, metric in self._all.items() if name not in unlogged}
        # if the losses are averaged over different numbers, the mean of their sums is not the sum of their means
        parts = [weight * values[name] for name, weight in self.loss_weights.items() if name in values]
        return values | {"loss": sum(parts)} if parts else values

    def reset(self) -> None:
        for metric in self._all.values():
            metric.reset()

    def is_finite(self) -> bool:
        """Whether every loss of the open interval was finite, in all processes."""
        total, _ = self.means["loss"].interval()
        return math.isfinite(self.process_group.all_reduce_sum([total])[0])  # not finite if any part is not

    def state_dict(self) -> dict[str, Any]:
        """The states of all processes. All must call it; the main process gets the result."""
        own = {name: metric.state_dict() for name, metric in self._all.items()}
        return {"processes": self.process_group.gather(own), "definitions": self.definitions}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises RuntimeError if a torchmetrics metric cannot be merged for a different number of processes."""
        rank = self.process_group.rank
        same = len(state["processes"]) == self.process_group.world_size
        for name, metric in self._all.items():
            saved = [part[name] for part in state["processes"] if name in part]
            # a metric that was added or changed on resume starts here
            if not saved or state["definitions"].get(name) != self.definitions.get(name):
                continue
            metric.load_state_dict(saved[rank] if same else saved[0])
            if same:
                continue
            for other in saved[1:]:
                metric.merge(other)
            if rank:  # the main process now has the states of all
                metric.drop_interval() if isinstance(metric, Mean) else metric.reset()


def in_float32(nest: Any) -> Any:
    """A nest of tensors, those in half precision in float32."""
    if not isinstance(nest, Tensor):
        return map_tensors(in_float32, nest)
    if nest.dtype not in HALF:
        return nest
    converted: Any = nest.float()
    converted.given_to_loss = getattr(nest, "given_to_loss", False)
    return converted


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
        self.waiting: list[Tensor] = []
        """Losses of the current micro-batch whose backward pass waits for the weight that ``add`` returns."""
        self.has_block = False
        """Whether the current micro-batch has used a block of the single optimizer, which has no name."""

    def take_waiting(self) -> Tensor:
        """The losses that wait, summed: DDP allows one backward pass per forward pass."""
        [first, *others], self.waiting = self.waiting, []
        return sum(others, first)

    def add(self, loss: Tensor, count: Tensor | float | None, samples: int) -> Tensor | float:
        """Add a micro-batch of this many samples. Returns the weight of its gradients. count: None: samples."""
        self.counts_samples &= count is None
        self.has_block = False
        if count is None or not samples:
            count = samples
        if self.alone:
            self.loss = to_scalar(loss) if isinstance(count, Tensor) or count > 0 else 0.0
            return 1.0
        weight = 1.0 if self.sum_loss and samples else count / self.samples
        self.count += count
        if isinstance(count, Tensor):
            self.loss += (weight * loss.detach()).masked_fill(count == 0, 0.0)  # may be NaN if nothing counts
        elif count > 0:
            self.loss += weight * to_scalar(loss)
        return weight

    def finish(self, parameters: list[nn.Parameter], process_group: ProcessGroup) -> Tensor | float:
        """Divide the gradients by the total count, and return this process's part of the loss."""
        if self.alone or self.sum_loss or self.counts_samples:
            return self.loss
        count = self.count
        if process_group.world_size > 1:
            [count] = process_group.all_reduce_sum([float(count)])
        scale: Tensor | float = self.samples / divisor(count)
        if not isinstance(scale, Tensor) and scale == 1.0:
            return self.loss
        if gradients := [each.grad for each in parameters if each.grad is not None]:
            torch._foreach_mul_(gradients, scale)  # a few kernels, for any number of parameters
        return scale * self.loss


def divisor(count: Tensor | float) -> Any:
    """A count that is safe to divide by: at least 1e-12, far below any sum of class weights."""
    return count.clamp(min=1e-12) if isinstance(count, Tensor) else max(count, 1e-12)
