"""The learning rate schedule: when it steps, and how long it is."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from utils.errors import ConfigError
from utils.tree import copied, stored_values
from utils.user_code import format_error_with_source

ROUNDING = 1e-12
"""How far below 0 torch's schedules end by rounding."""
SchedulerFactory = Callable[[Optimizer], LRScheduler]


@dataclass
class ScheduledOptimizer:
    optimizer: Optimizer
    schedule: "Schedule"
    parameters: list[nn.Parameter]
    name: str = ""
    """Its name, if there are several."""
    group_names: Sequence[str] = ("",)
    """Names under which the learning rates of its parameter groups are logged."""
    clip_norm: float | None = None
    clip_value: float | None = None

    @property
    def clips(self) -> bool:
        return self.clip_norm is not None or self.clip_value is not None

    def clip_gradients(self, *, measure: bool) -> Tensor | None:
        """Clip the gradients as configured. Returns their norm before that, shape (); None if nothing is clipped.

        measure: whether the norm is needed. Clipping by norm computes it anyway.
        """
        norm: Tensor | None = None
        if self.clip_value is not None:
            norm = gradient_norm(self.parameters) if measure else None
            try:
                nn.utils.clip_grad_value_(self.parameters, self.clip_value)
            except NotImplementedError as error:
                raise ConfigError(
                    "clip_grad_value cannot clip sparse gradients, such as those of nn.Embedding(sparse=True); "
                    "use clip_grad_norm, or leave out sparse=True"
                ) from error
        if self.clip_norm is not None:
            clipped = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
            norm = clipped if norm is None else norm
        return norm


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The norm of all gradients of some parameters, shape ()."""
    gradients = (each.grad for each in parameters if each.grad is not None)
    return nn.utils.get_total_norm([stored_values(each) for each in gradients])


@dataclass(eq=False)
class Schedule:
    """A torch scheduler that steps after each optimizer step or after each epoch.

    make: builds the scheduler; None: constant learning rate, with per_step False.
    per_step: whether it steps after each optimizer step. length: of the run, in these steps or else in epochs.
    settings: the scheduler's config, for ``ScheduleState``.
    """

    optimizer: Optimizer
    make: SchedulerFactory | None
    _: KW_ONLY
    per_step: bool
    steps_per_epoch: int
    length: int
    settings: Any = None

    def __post_init__(self) -> None:
        self.initial = [  # learning rate, momentum and so on of each parameter group
            {key: copied(value) for key, value in group.items() if key not in ("params", "initial_lr")}
            for group in self.optimizer.param_groups
        ]
        # otherwise torch warns of a scheduler that steps before its optimizer has: one of several optimizers may step
        # later than others, and a schedule may be replayed without it
        self.optimizer._opt_called = True  # type: ignore[attr-defined]
        self.start()
        self.last_used: list[float] | None = None

    def start(self) -> None:
        """Create the scheduler, which sets the learning rates of the first step."""
        self.scheduler_steps = 0
        self.scheduler = self.make(self.optimizer) if self.make else None
        if self.scheduler:
            self._check_rates()

    def after_step(self, *, stepped: bool) -> None:
        """stepped: whether the optimizer stepped, rather than fp16 skipping the step."""
        self.last_used = None
        if stepped and self.per_step:
            self.step_scheduler(None)

    def last_rates(self) -> list[float]:
        """The learning rate of each parameter group in the last optimizer step."""
        return self.last_used or self.rates()

    def after_epoch(self, monitored: float | None) -> None:
        """monitored: for ReduceLROnPlateau, which waits for the next epoch if it was not measured in this one."""
        if self.scheduler and not self.per_step and not (self.follows_monitor and monitored is None):
            self.step_scheduler(monitored)

    def rates(self) -> list[float]:
        """The learning rate of each parameter group in the next optimizer step."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    @property
    def follows_monitor(self) -> bool:
        return isinstance(self.scheduler, ReduceLROnPlateau)

    def step_scheduler(self, monitored: float | None) -> None:
        assert self.scheduler is not None
        self.last_used = self.rates()
        self.scheduler_steps += 1
        arguments: Any = [monitored] if self.follows_monitor else []
        is_last = self.scheduler_steps >= self.length  # no step uses its rates
        try:
            self.scheduler.step(*arguments)
        except Exception as error:  # of torch or the user's code, for which the schedule has ended
            if not is_last:
                raise self._error("failed", f"\n{format_error_with_source(error)}") from error
        if not is_last:
            self._check_rates()

    def _check_rates(self) -> None:
        """Raise ConfigError for a learning rate that no optimizer can use, or that would increase the loss."""
        for group in self.optimizer.param_groups:
            rate = group["lr"]
            if isinstance(rate, Tensor):
                continue
            if not isinstance(rate, Real) or not -ROUNDING <= float(rate) < math.inf:
                raise self._error(f"gives the learning rate {rate!r}", " Expected a finite number >= 0")
            group["lr"] = float(rate)  # as a resumed run has it: NumPy's numbers round their products to other bits

    def _error(self, what: str, why: str) -> ConfigError:
        unit = "step" if self.per_step else "epoch"
        cause = f" Does it count on fewer {unit}s than the run has?" if self.scheduler_steps else ""
        message = f"{type(self.scheduler).__name__} {what} after {unit} {self.scheduler_steps:,} of {self.length:,}"
        return ConfigError(f"{message}.{cause}{why}", ("lr_scheduler",))
