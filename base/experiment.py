"""The parts of a run, built and ready, as passed to a trainer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from base.base_data_loader import BaseDataLoader
from base.data.batches import Batches
from base.data.stream import StreamBatches
from base.training.metrics import Metrics
from base.training.observer import Observer
from base.training.parameters import Frozen
from base.training.schedule import ScheduledOptimizer
from base.training.schedule_state import ScheduleState
from base.training.state import part_name
from logger.console import Console
from logger.writers import Writers
from utils.checkpoint.checkpointer import Checkpointer
from utils.optimizers import needs_closure
from utils.runtime import Runtime
from utils.signals import SignalWatch


@dataclass
class Experiment:
    """The parts shared by training and testing."""

    saved_config: dict[str, Any]
    """The config as every checkpoint stores it, so that a resume can tell what has changed since."""
    seed: int
    runtime: Runtime
    data: BaseDataLoader
    model: nn.Module
    criterion: Callable[[Tensor, Tensor], Tensor]
    """The loss, (outputs, targets) -> shape ()."""
    sum_loss: bool
    """Whether the loss is a sum over the samples rather than a mean."""
    make_metrics: Callable[..., Metrics]
    """Creates empty metrics for one phase; with ``training=True``, without those that training leaves out."""
    console: Console
    signals: SignalWatch
    supervised: bool = True
    """The trainer's ``supervised``: whether outputs are compared with targets."""


@dataclass
class Training:
    """The parts only training needs."""

    batches: Batches
    validation: dict[str, Batches]
    """By the names in the config; a single set has the name "". Empty if there is none."""
    optimizers: dict[str, ScheduledOptimizer]
    """By the names in the config; a single optimizer has the name ""."""
    frozen: Frozen
    loaders: list[BaseDataLoader]
    """The data loader, and those of validation sets that have their own."""

    def __post_init__(self) -> None:
        self.scheduled = next(iter(self.optimizers.values()))
        self.optimizer = self.scheduled.optimizer
        """The only optimizer, if there is just one."""
        self.several = "" not in self.optimizers
        self.parameters = [each for optimizer in self.optimizers.values() for each in optimizer.parameters]
        self.needs_closure = any(needs_closure(each.optimizer) for each in self.optimizers.values())
        """Whether an optimizer evaluates the loss itself, as LBFGS does."""
        of_model = set(map(id, self.frozen.model.parameters()))
        self.loss_parameters = [parameter for parameter in self.parameters if id(parameter) not in of_model]
        """Parameters of the loss, whose gradients DDP and FSDP do not reduce."""
        self.schedule_states = {name: ScheduleState(each.schedule) for name, each in self.optimizers.items()}

    def __bool__(self) -> bool:
        raise TypeError("self.training is the data and the optimizers of the run; use self.model.training instead")

    def stateful(self) -> dict[str, Any]:
        """Optimizers and schedules for a checkpoint, as "optimizer" or, of several, "optimizer.NAME"."""
        parts = dict[str, Any]()
        for name, each in self.optimizers.items():
            parts[part_name("optimizer", name)] = each.optimizer
            parts[part_name("schedule", name)] = self.schedule_states[name]
        return parts

    @property
    def validation_samples(self) -> int:
        return sum(batches.num_samples for batches in self.validation.values())

    def close_workers(self, *, streams: bool = True) -> None:
        """End the worker processes; the next batches start new ones. streams: also those that read streams."""
        for batches in (self.batches, *self.validation.values()):
            if streams or not isinstance(batches, StreamBatches):
                batches.close()

    def rates(self) -> dict[str, float]:
        """The learning rates in the last step, by parameter group."""
        rates = dict[str, float]()
        for each in self.optimizers.values():
            rates |= zip(each.group_names, each.schedule.last_rates(), strict=True)
        return rates


@dataclass
class Outputs:
    """Destinations of a training run's results."""

    writers: Writers
    checkpointer: Checkpointer
    observer: Observer
    on_first_step: Callable[[], None] = lambda: None
    """Called when this process has taken its first optimizer step, or saves."""
