"""The parts of a run, built and ready; what a trainer gets."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from base.base_data_loader import BaseDataLoader
from base.data.batches import Batches
from base.training.metrics import Metrics
from base.training.observer import Observer
from base.training.parameters import Frozen
from base.training.schedule import ScheduledOptimizer
from logger.console import Console
from logger.writers import Writers
from utils.checkpoint.checkpointer import Checkpointer
from utils.optimizers import needs_closure
from utils.runtime import Runtime
from utils.signals import SignalWatch


@dataclass
class Experiment:
    """What training and testing have in common."""

    fixed: dict[str, Any]
    """The values in the config that cannot change during the run, by dotted key; every checkpoint has them too."""
    seed: int
    runtime: Runtime
    data: BaseDataLoader
    model: nn.Module
    criterion: Callable[[Tensor, Tensor], Tensor]
    """The loss, (outputs, targets) -> shape ()."""
    sum_loss: bool
    """Whether the loss is a sum over the samples and not their mean."""
    make_metrics: Callable[[], Metrics]
    """Makes the empty metrics of one phase."""
    console: Console
    signals: SignalWatch
    supervised: bool = True
    """What the trainer says of itself: whether the model's outputs are compared with the targets."""


@dataclass
class Training:
    """What only training needs."""

    batches: Batches
    validation: dict[str, Batches]
    """By the names in the config; that of a single one is "". Empty: there is none."""
    optimizers: dict[str, ScheduledOptimizer]
    """By their names in the config; that of a single one is ""."""
    frozen: Frozen

    def __post_init__(self) -> None:
        self.scheduled = next(iter(self.optimizers.values()))
        self.optimizer = self.scheduled.optimizer
        """The single one."""
        self.several = len(self.optimizers) > 1 or "" not in self.optimizers
        """Whether ``train_step`` says when each optimizer takes a step."""
        self.parameters = [each for optimizer in self.optimizers.values() for each in optimizer.parameters]
        """Those that any optimizer trains."""
        self.needs_closure = any(needs_closure(each.optimizer) for each in self.optimizers.values())
        """Whether an optimizer evaluates the loss itself, as LBFGS does."""
        of_model = set(map(id, self.frozen.model.parameters()))
        self.beside_model = [parameter for parameter in self.parameters if id(parameter) not in of_model]
        """Those of the loss, whose gradients DDP and FSDP do not exchange."""

    def stateful(self) -> dict[str, Any]:
        """What a checkpoint keeps of each optimizer and schedule, as "optimizer", or "optimizer.NAME" of several."""
        parts = dict[str, Any]()
        for name, each in self.optimizers.items():
            suffix = f".{name}" if name else ""
            parts |= {f"optimizer{suffix}": each.optimizer, f"schedule{suffix}": each.schedule}
        return parts

    @property
    def validation_samples(self) -> int:
        return sum(batches.num_samples for batches in self.validation.values())

    def rates(self) -> dict[str, float]:
        """The learning rates of the last step, by the names of the parameter groups."""
        return {name: rate for each in self.optimizers.values() for name, rate in each.used_rates().items()}

    def move_schedules(self, monitored: float | None) -> None:
        """After an epoch. monitored: the value that ReduceLROnPlateau follows."""
        for optimizer in self.optimizers.values():
            optimizer.schedule.after_epoch(monitored)


@dataclass
class Outputs:
    """Where the results of a training run go."""

    writers: Writers
    checkpointer: Checkpointer
    observer: Observer
    on_first_step: Callable[[], None] = lambda: None
    """Called when this process has taken its first optimizer step, or saves."""
