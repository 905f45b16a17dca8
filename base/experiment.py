"""The parts of a run, built and ready; what a trainer gets."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from base.base_data_loader import BaseDataLoader
from base.data.batches import Batches
from base.training.metrics import Metrics
from base.training.observer import Observer
from base.training.schedule import Schedule
from logger.console import Console
from logger.writers import Writers
from utils.checkpoint.checkpointer import Checkpointer
from utils.runtime import Runtime
from utils.signals import SignalWatch


@dataclass
class Experiment:
    """What training and testing have in common."""

    fixed: dict[str, Any]
    """What of the config cannot change in the run, by dotted key. A checkpoint has it too."""
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
    validation: Batches | None
    optimizer: Optimizer
    schedule: Schedule
    parameters: list[nn.Parameter]
    """Those that the optimizer trains."""
    needs_closure: bool
    """Whether the optimizer evaluates the loss itself, as LBFGS does."""


@dataclass
class Outputs:
    """Where the results of a training run go."""

    writers: Writers
    checkpointer: Checkpointer
    observer: Observer
    on_first_step: Callable[[], None] = lambda: None
    """Called when this process has taken its first optimizer step, or saves."""
