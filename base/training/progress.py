"""Progress of a run: the counters from which the position in the data follows, and the best value."""

import math
from dataclasses import asdict
from typing import Any

from pydantic import ConfigDict, NonNegativeInt
from pydantic.dataclasses import dataclass

from base.data.batches import Position


@dataclass(config=ConfigDict(strict=True))
class Progress:
    """Counters. They determine the position in the data, which is stored nowhere else."""

    epochs: NonNegativeInt = 0
    """Finished epochs."""
    steps: NonNegativeInt = 0
    """Optimizer steps in the whole run."""
    epoch_steps: NonNegativeInt = 0
    """Optimizer steps in the current epoch."""
    passes: NonNegativeInt = 0
    """Complete passes over the training data."""
    samples: NonNegativeInt = 0
    """Samples used in the current pass."""
    trained: bool = False
    """The epoch's training steps are done, but its validation is not."""
    validating: bool = False
    """A validation within the epoch has begun, and is not done."""
    best: float | None = None
    """The best monitored value."""
    best_epoch: NonNegativeInt = 0
    best_step: NonNegativeInt | None = None
    """Optimizer steps at the end of the best epoch, which name its checkpoint."""
    stale_epochs: NonNegativeInt = 0
    """Epochs since the best one."""

    @property
    def position(self) -> Position:
        return Position(self.passes, self.samples)

    def step(self, position: Position, *, steps_per_epoch: int | None) -> None:
        """Count an optimizer step that used the data up to this position. steps_per_epoch: None: one pass per epoch."""
        self.steps += 1
        self.epoch_steps += 1
        self.passes, self.samples = position
        # set here, not after the loop: a checkpoint at the last step must record that it is the last
        self.trained = position.samples == 0 if steps_per_epoch is None else self.epoch_steps >= steps_per_epoch

    def update_best(
        self, value: float, *, lower_is_better: bool, epoch: int | None = None, step: int | None = None
    ) -> bool:
        """Update the best value with an epoch's; returns whether it is the best so far.

        A value that is not finite is never the best. epoch, step: counts at the end of the epoch; None: now.
        """
        improves = self.best is None or (value < self.best if lower_is_better else value > self.best)
        better = math.isfinite(value) and improves
        if better:
            self.best, self.stale_epochs = value, 0
            self.best_epoch, self.best_step = epoch or self.epochs, step or self.steps
        else:
            self.stale_epochs += 1
        return better

    def reset_best(self) -> None:
        """Reset before the epochs are compared by another value."""
        self.best, self.best_epoch, self.best_step, self.stale_epochs = None, 0, None, 0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError for a missing, unknown or impossible value."""
        if state.keys() != asdict(self).keys():
            raise ValueError(f"should have the keys {', '.join(asdict(self))}")
        vars(self).update(asdict(Progress(**state)))
