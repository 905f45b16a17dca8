"""A weighted sum of losses by name."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from base.training.loss import Loss, last_count
from base.training.parameters import stateful_loss


class LossSum(nn.Module):
    """A weighted sum of losses by name.

    Where the outputs are a dict, or the targets, a loss whose name is in it gets that part alone.
    """

    def __init__(self, losses: Mapping[str, Loss], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.losses, self.weights = dict(losses), dict(weights)
        # under their names, so that what they learn is trained and saved
        modules = {name: stateful_loss(loss) for name, loss in losses.items()}
        for name, module in modules.items():
            self.add_module(name, module)
        self.last_count: Tensor | float | None = None
        self.counts_differ = False
        """Whether the losses are means over different numbers, of which no single one is right for their sum."""
        self._parts = dict[str, Tensor]()

    def forward(self, outputs: Any, targets: Any) -> Tensor:
        values, counts = dict[str, Tensor](), list[Tensor | float | None]()
        for name, loss in self.losses.items():
            part = _part(targets, name)
            values[name] = loss(_part(outputs, name), part)
            count = last_count(loss)
            if isinstance(count, (int, float)) and isinstance(part, Tensor) and count == part.numel():
                count = None  # every target counts, so that the mean is one over samples
            counts.append(count)
        on_host = {count for count in counts if not isinstance(count, Tensor)}
        self.counts_differ |= len(on_host) > 1
        self.last_count = counts[0] if len(on_host) <= 1 else None
        self._parts = {name: value.detach() for name, value in values.items()}
        total: Tensor = sum(self.weights[name] * value for name, value in values.items())  # type: ignore[assignment]
        return total

    def take_parts(self) -> dict[str, Tensor]:
        """The values of the losses in the last call, given once."""
        parts, self._parts = self._parts, {}
        return parts


def _part(nest: Any, name: str) -> Any:
    return nest[name] if isinstance(nest, Mapping) and name in nest else nest
