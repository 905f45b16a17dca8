"""Means over samples and other metrics of a phase, left on the device and read only when they are logged."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from utils.errors import ConfigError

if TYPE_CHECKING:
    from torchmetrics import Metric

MetricFunction = Callable[[Tensor, Tensor], Tensor]


class StepResult(NamedTuple):
    """What a training or evaluation step gives."""

    loss: Tensor
    """Of shape ()."""
    outputs: Tensor
    """Of shape (B, ...)."""
    targets: Tensor
    """Of shape (B, ...)."""


def keep(value: Tensor) -> "Tensor | float":
    """A value of shape () to look at later: a number on the CPU, where reading costs nothing and tensors that stay
    would split up the memory that each step reuses; elsewhere a tensor, since reading would wait for the device.
    """
    return value.item() if value.is_cpu else value.detach()


class Mean:
    """A weighted mean, summed in double and in the order of adding, whenever it is read or saved."""

    REMEMBERED = 1000

    def __init__(self) -> None:
        self._pending: list[tuple[Tensor, float]] = []
        self.window_sum, self.window_weight = 0.0, 0.0
        self.sum, self.weight = 0.0, 0.0

    def add(self, value: "Tensor | float", *, factor: float = 1.0, weight: float = 1.0) -> None:
        """Add factor * value, which counts for as many as weight. value: what ``keep`` gave."""
        self.window_weight += weight
        if not isinstance(value, Tensor):
            self.window_sum += factor * value
            return
        self._pending.append((value, factor))
        if len(self._pending) == self.REMEMBERED:
            self._add_up()

    def close_window(self) -> float:
        """The mean since the last call; from now on it is part of the whole."""
        self._add_up()
        total, weight = self.window_sum, self.window_weight
        self.sum, self.weight = self.sum + total, self.weight + weight
        self.window_sum = self.window_weight = 0.0
        return total / weight if weight else float("nan")

    def compute(self) -> float:
        """The mean of all that was added since the reset."""
        self.close_window()
        return self.sum / self.weight if self.weight else float("nan")

    def finite(self) -> bool:
        """Whether everything that was added to this window is finite."""
        self._add_up()
        return math.isfinite(self.window_sum)

    def reset(self) -> None:
        self._pending = []
        self.window_sum = self.window_weight = self.sum = self.weight = 0.0

    def state_dict(self) -> dict[str, Any]:
        self._add_up()
        return {"window": [self.window_sum, self.window_weight], "whole": [self.sum, self.weight]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reset()
        self.window_sum, self.window_weight = state["window"]
        self.sum, self.weight = state["whole"]

    def _add_up(self) -> None:
        if self._pending:
            values = torch.stack([value for value, _ in self._pending]).tolist()
            for value, (_, factor) in zip(values, self._pending, strict=True):
                self.window_sum += factor * value
            self._pending = []


class LibraryMetric:
    """A metric that is no mean over samples, from torchmetrics."""

    def __init__(self, name: str, metric: "Metric") -> None:
        self.name, self.metric = name, metric

    def compute(self) -> float:
        value = self.metric.compute()
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(f'metrics: "{self.name}" gives {shape}, not one number; "average": "macro" may help')
        return float(value)

    def reset(self) -> None:
        self.metric.reset()

    def state_dict(self) -> dict[str, Any]:
        return {"values": dict(self.metric.metric_state), "updates": self.metric._update_count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.metric.reset()
        for name, value in state["values"].items():
            moved = (
                [item.to(self.metric.device) for item in value]
                if isinstance(value, list)
                else value.to(self.metric.device)
            )
            setattr(self.metric, name, moved)
        self.metric._update_count = state["updates"]


class Metrics:
    """The loss and the metrics of one phase (training, validation or test).

    functions: per-sample metrics by name, (outputs, targets) -> float of shape (B,).
    library: torchmetrics' metrics by name.
    sum_loss: the loss is a sum over the samples, not a mean. It is then logged as the sum over an optimizer step's
        samples in training, over the data set in evaluation.
    """

    def __init__(
        self,
        functions: Mapping[str, MetricFunction],
        library: Mapping[str, "Metric"],
        *,
        device: torch.device,
        sum_loss: bool = False,
    ) -> None:
        self.functions = dict(functions)
        self.sum_loss = sum_loss
        self.means = {name: Mean() for name in ("loss", *functions)}
        self.library = {name: LibraryMetric(name, metric.to(device)) for name, metric in library.items()}

    def update(self, result: StepResult, *, samples: int, share: float) -> "Tensor | float":
        """Add a batch. share: this batch's share of the samples of its optimizer step, or of the data set.

        Returns the batch's loss, as ``keep`` gives it.
        """
        loss, outputs, targets = result
        kept = keep(loss)
        if self.sum_loss:
            self.means["loss"].add(kept, weight=share)
        else:
            self.means["loss"].add(kept, factor=samples, weight=samples)
        if self.functions or self.library:
            self._measure(outputs, targets, samples)
        return kept

    def _measure(self, outputs: Tensor, targets: Tensor, samples: int) -> None:
        with torch.no_grad():
            for name, function in self.functions.items():
                values = function(outputs, targets)
                if values.shape != (samples,):
                    raise ConfigError(
                        f'metrics: "{name}" gave shape {tuple(values.shape)} for {samples} samples; '
                        f"a metric function gives one number a sample, shape ({samples},)"
                    )
                self.means[name].add(keep(values.sum()), weight=samples)
            for metric in self.library.values():
                metric.metric.update(outputs, targets)

    def close_window(self) -> dict[str, float]:
        """The means since the last call; torchmetrics' are known only at the end."""
        return {name: mean.close_window() for name, mean in self.means.items()}

    def compute(self) -> dict[str, float]:
        """Every value over all that was added since the reset."""
        return {name: metric.compute() for name, metric in self._all().items()}

    def reset(self) -> None:
        for metric in self._all().values():
            metric.reset()

    def finite(self) -> bool:
        """Whether every loss of the window was finite."""
        return self.means["loss"].finite()

    def state_dict(self) -> dict[str, Any]:
        return {name: metric.state_dict() for name, metric in self._all().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, metric in self._all().items():
            if name in state:  # a metric that was added on resume begins here
                metric.load_state_dict(state[name])

    def _all(self) -> "dict[str, Mean | LibraryMetric]":
        return {**self.means, **self.library}
