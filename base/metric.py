"""Means over samples and other metrics of a phase, summed on the device and read only when they are logged."""

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


class Mean:
    """A weighted mean. What is added since the last reading (the window) is summed on the device."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.window_sum = torch.zeros((), device=device, dtype=dtype)
        self.window_weight = 0.0
        self.sum, self.weight = 0.0, 0.0

    def add(self, value: Tensor, *, factor: float = 1.0, weight: float = 1.0) -> None:
        """Add factor * value, which counts for as many as weight."""
        self.window_sum.add_(value, alpha=factor)
        self.window_weight += weight

    def close_window(self) -> float:
        """The mean since the last call; from now on it is part of the whole."""
        total, weight = float(self.window_sum), self.window_weight
        self.sum, self.weight = self.sum + total, self.weight + weight
        self.window_sum.zero_()
        self.window_weight = 0.0
        return total / weight if weight else float("nan")

    def compute(self) -> float:
        """The mean of all that was added since the reset."""
        self.close_window()
        return self.sum / self.weight if self.weight else float("nan")

    def reset(self) -> None:
        self.window_sum.zero_()
        self.window_weight = self.sum = self.weight = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"window": [self.window_sum, self.window_weight], "whole": [self.sum, self.weight]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        window_sum, self.window_weight = state["window"]
        self.window_sum.copy_(window_sum)
        self.sum, self.weight = state["whole"]


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
        dtype: torch.dtype,
        sum_loss: bool = False,
    ) -> None:
        self.functions = dict(functions)
        self.sum_loss = sum_loss
        self.means = {name: Mean(device, dtype) for name in ("loss", *functions)}
        self.library = {name: LibraryMetric(name, metric.to(device)) for name, metric in library.items()}

    def update(self, result: StepResult, *, samples: int, share: float) -> None:
        """Add a batch. share: this batch's share of the samples of its optimizer step, or of the data set."""
        loss, outputs, targets = result
        with torch.no_grad():
            if self.sum_loss:
                self.means["loss"].add(loss.detach(), weight=share)
            else:
                self.means["loss"].add(loss.detach(), factor=samples, weight=samples)
            for name, function in self.functions.items():
                values = function(outputs, targets)
                if values.shape != (samples,):
                    raise ConfigError(
                        f'metrics: "{name}" gave shape {tuple(values.shape)} for {samples} samples; '
                        f"a metric function gives one number a sample, shape ({samples},)"
                    )
                self.means[name].add(values.sum(), weight=samples)
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
        return bool(torch.isfinite(self.means["loss"].window_sum))

    def state_dict(self) -> dict[str, Any]:
        return {name: metric.state_dict() for name, metric in self._all().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, metric in self._all().items():
            if name in state:  # a metric that was added on resume begins here
                metric.load_state_dict(state[name])

    def _all(self) -> "dict[str, Mean | LibraryMetric]":
        return {**self.means, **self.library}
