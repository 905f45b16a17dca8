"""Means over samples and other metrics of a phase, left on the device and read only when they are logged."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from base.metric import MetricFunction, StepResult
from utils.distributed.process_group import ProcessGroup
from utils.errors import ConfigError

if TYPE_CHECKING:
    from torchmetrics import Metric


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

    def window(self) -> tuple[float, float]:
        """The sum and the weight since the last window was closed, of this process."""
        self._add_up()
        return self.window_sum, self.window_weight

    def drop_window(self) -> None:
        self._pending, self.window_sum, self.window_weight = [], 0.0, 0.0

    def close_window(self, total: float, weight: float) -> float:
        """The mean of a window, of all processes; from now on it is part of the whole."""
        self.drop_window()
        self.sum, self.weight = self.sum + total, self.weight + weight
        return total / weight if weight else float("nan")

    def compute(self) -> float:
        """The mean of all windows since the reset."""
        return self.sum / self.weight if self.weight else float("nan")

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

    def merge(self, state: Mapping[str, Any]) -> None:
        """Take over what another process had added to the window; the whole is the same in all."""
        self.window_sum += state["window"][0]
        self.window_weight += state["window"][1]

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

    def merge(self, state: Mapping[str, Any]) -> None:
        """Take over what another process had measured. Raises ValueError where that cannot be told from its state."""
        if not state["updates"]:
            return
        from torchmetrics.utilities import dim_zero_cat, dim_zero_max, dim_zero_min, dim_zero_sum

        joins: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
            dim_zero_sum: torch.add,
            dim_zero_max: torch.maximum,
            dim_zero_min: torch.minimum,
            dim_zero_cat: lambda own, other: torch.cat([own, other]),
        }
        for name, value in state["values"].items():
            own, join = getattr(self.metric, name), joins.get(self.metric._reductions[name])
            if isinstance(own, list):
                own.extend(item.to(self.metric.device) for item in value)
            elif join is None:
                raise ValueError(f"{self.name} cannot go on in the middle of an epoch with another number of processes")
            else:
                setattr(self.metric, name, join(own, value.to(self.metric.device)))
        self.metric._update_count += state["updates"]


class Metrics:
    """The loss and the metrics of one phase (training, validation or test).

    functions: per-sample metrics by name, (outputs, targets) -> float of shape (B,).
    library: torchmetrics' metrics by name.
    sum_loss: the loss is a sum over the samples, not a mean. It is then logged as the sum over an optimizer step's
        samples in training, over the data set in evaluation.
    processes: each adds its own part of the samples; they are put together when they are read.
    """

    def __init__(
        self,
        functions: Mapping[str, MetricFunction],
        library: Mapping[str, "Metric"],
        *,
        device: torch.device,
        sum_loss: bool = False,
        processes: ProcessGroup | None = None,
    ) -> None:
        self.processes = processes or ProcessGroup()
        self.functions = dict(functions)
        self.sum_loss = sum_loss
        self.means = {name: Mean() for name in ("loss", *functions)}
        self.library = {name: LibraryMetric(name, metric.to(device)) for name, metric in library.items()}
        self._totals: Sequence[float] | None = None

    def update(self, result: StepResult, *, samples: int, share: float) -> "Tensor | float":
        """Add a batch. share: this batch's share of the samples of its optimizer step, or of the data set.
        samples: 0 for a batch that counts for nothing, since other processes have all of its samples.

        Returns the batch's part of the loss of the step, as ``keep`` gives it.
        """
        loss, outputs, targets = result
        self._totals = None
        if not samples:
            return 0.0
        kept = keep(loss)
        if self.sum_loss:
            self.means["loss"].add(kept, weight=share)
        else:
            self.means["loss"].add(kept, factor=samples, weight=samples)
        if self.functions or self.library:
            self._measure(outputs, targets, samples)
        return kept if self.sum_loss or share == 1.0 else share * kept

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
        totals = iter(self._window())
        self._totals = None
        return {name: mean.close_window(next(totals), next(totals)) for name, mean in self.means.items()}

    def compute(self) -> dict[str, float]:
        """Every value over all that was added since the reset."""
        self.close_window()
        return {name: metric.compute() for name, metric in self._all().items()}

    def reset(self) -> None:
        self._totals = None
        for metric in self._all().values():
            metric.reset()

    def finite(self) -> bool:
        """Whether every loss of the window was finite, in all processes."""
        return math.isfinite(self._window()[0])  # one that is not leaves no finite sum

    def _window(self) -> Sequence[float]:
        """The sum and the weight of each mean's window, the loss's first, of all processes: asked for once."""
        if self._totals is None:
            own = [number for mean in self.means.values() for number in mean.window()]
            self._totals = self.processes.all_reduce_sum(own)
        return self._totals

    def state_dict(self) -> dict[str, Any]:
        """The state of each process. All must ask; the main one gets it."""
        return {"processes": self.processes.gather({name: part.state_dict() for name, part in self._all().items()})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        saved = state["processes"]
        self._totals = None
        rank, same = self.processes.rank, len(saved) == self.processes.world_size
        for name, metric in self._all().items():
            parts = [part[name] for part in saved if name in part]  # a metric that was added on resume begins here
            if not parts:
                continue
            metric.load_state_dict(parts[rank] if same else parts[0])
            if not same:
                self._share_out(metric, parts)

    def _share_out(self, metric: "Mean | LibraryMetric", parts: list[Any]) -> None:
        """Where there were other numbers of processes, the main one takes what all of them had."""
        for other in parts[1:]:
            metric.merge(other)
        if self.processes.rank:
            metric.drop_window() if isinstance(metric, Mean) else metric.reset()

    def _all(self) -> "dict[str, Mean | LibraryMetric]":
        return {**self.means, **self.library}
