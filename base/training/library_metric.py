"""Metrics of torchmetrics, which need not be means over samples."""

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from torch import Tensor

from base.training.broadcast import NoBroadcast, check_same_shape
from utils.distributed import current
from utils.errors import ConfigError, UserError
from utils.tree import map_tensors
from utils.user_code import format_error_with_source

if TYPE_CHECKING:
    from torchmetrics import Metric


class LibraryMetric:
    """A torchmetrics metric, which need not be a mean over samples."""

    def __init__(self, name: str, metric: "Metric") -> None:
        self.name = name
        self.metric = metric

    def compute(self) -> float:
        try:
            value = self.metric.compute()
        except Exception as error:  # from a library or the user's code
            if isinstance(error, UserError) or current().peer_failure(error):
                raise
            raise ConfigError(
                f'metrics: "{self.name}" cannot be computed: {format_error_with_source(error)}\n'
                "Change its arguments, or remove it from the config."
            ) from error
        if isinstance(value, Tensor) and value.numel() == 1:
            return float(value)
        if isinstance(value, (int, float)):
            return value
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(
            f'metrics: "{self.name}" gives {shape}, not a single number; try "average": "macro", or write a metric of '
            "your own that reduces it to one number"
        )

    def dry_run(self, outputs: Any, targets: Any, phase: str) -> None:
        """Update and compute a copy on one batch. Raises ConfigError if the result is not a number."""
        copy = deepcopy(self.metric)
        copy.reset()
        copy.distributed_available_fn = lambda: False  # other processes may have no samples in this batch
        trial = LibraryMetric(self.name, copy)
        what = f'the metric "{self.name}"'
        elementwise = type(copy).__module__.startswith("torchmetrics.regression")
        if elementwise and isinstance(outputs, Tensor) and isinstance(targets, Tensor):
            check_same_shape(what, phase, outputs.shape, targets.shape)
        own = not type(copy).__module__.startswith("torchmetrics.")
        with warnings.catch_warnings(action="ignore"):  # from metrics for which one batch is too small
            with NoBroadcast(what, phase, outputs, targets) if own else nullcontext():
                copy.update(outputs, targets)
            try:
                trial.compute()
            except ConfigError:
                copy.update(outputs, targets)  # some need two samples, but the batch may have one
                trial.compute()

    def reset(self) -> None:
        self.metric.reset()

    def state_dict(self) -> dict[str, Any]:
        return {"values": dict(self.metric.metric_state), "updates": self.metric.update_count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError if the state is from another metric."""
        if state["values"].keys() != self.metric.metric_state.keys() or state["updates"] < 0:
            raise ValueError(f"{self.name} keeps {', '.join(self.metric.metric_state)}")
        self.metric.reset()
        device = self.metric.device
        for name, value in map_tensors(lambda tensor: tensor.to(device), state["values"]).items():
            setattr(self.metric, name, value)
        self._set_update_count(state["updates"])

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add another process's state. Raises ValueError if torchmetrics cannot merge it."""
        if not state["updates"]:
            return
        device = self.metric.device
        updates = self.metric.update_count + state["updates"]
        self._set_update_count(updates)
        try:
            self.metric.merge_state(map_tensors(lambda tensor: tensor.to(device), state["values"]))
        except RuntimeError as error:
            raise ValueError(
                f"{self.name} cannot be resumed in the middle of an epoch with a different number of processes: {error}"
            ) from error

    def _set_update_count(self, count: int) -> None:
        # torchmetrics counts updates to warn if there were none, and has no public way to restore the count
        self.metric._update_count = count
