"""Metrics of torchmetrics: what is not a mean over samples."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from utils.errors import ConfigError
from utils.tree import map_tensors

if TYPE_CHECKING:
    from torchmetrics import Metric


class LibraryMetric:
    """A metric that is not a mean over samples, from torchmetrics."""

    def __init__(self, name: str, metric: "Metric") -> None:
        self.name = name
        self.metric = metric

    def compute(self) -> float:
        value = self.metric.compute()
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(f'metrics: "{self.name}" gives {shape}, not one number; "average": "macro" may help')
        return float(value)

    def reset(self) -> None:
        self.metric.reset()

    def state_dict(self) -> dict[str, Any]:
        return {"values": dict(self.metric.metric_state), "updates": self.metric.update_count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError if this is the state of another metric."""
        if state["values"].keys() != self.metric.metric_state.keys() or state["updates"] < 0:
            raise ValueError(f"{self.name} keeps {', '.join(self.metric.metric_state)}")
        self.metric.reset()
        device = self.metric.device
        for name, value in map_tensors(lambda tensor: tensor.to(device), state["values"]).items():
            setattr(self.metric, name, value)
        self._set_update_count(state["updates"])

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add what another process measured. Raises ValueError if torchmetrics cannot do that from its state."""
        if not state["updates"]:
            return
        device = self.metric.device
        updates = self.metric.update_count + state["updates"]
        self._set_update_count(updates)
        try:
            self.metric.merge_state(map_tensors(lambda tensor: tensor.to(device), state["values"]))
        except RuntimeError as error:
            raise ValueError(
                f"{self.name} cannot be resumed in the middle of an epoch by another number of processes: {error}"
            ) from error

    def _set_update_count(self, count: int) -> None:
        # torchmetrics counts updates to warn when nothing was measured, and has no public way to restore the count
        self.metric._update_count = count
