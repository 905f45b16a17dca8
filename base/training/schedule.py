"""The learning rate schedule: when it moves, and over what length."""

import warnings
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

SchedulerFactory = Callable[[Optimizer], LRScheduler]


class Schedule:
    """A torch scheduler that moves after each optimizer step or after each epoch.

    make: builds the scheduler; None: the rate is constant. length: of the run, in steps or epochs as the interval is.
    """

    def __init__(self, optimizer: Optimizer, make: SchedulerFactory | None, *, per_step: bool, length: int) -> None:
        self.optimizer, self.make = optimizer, make
        self.per_step, self.length = per_step, length
        self.moves = 0
        self.initial = [dict(_settings(group)) for group in optimizer.param_groups]
        self.scheduler = make(optimizer) if make else None
        self._used: list[float] | None = None

    def after_step(self, *, moved: bool) -> None:
        """moved: whether the optimizer stepped, and fp16 did not skip it."""
        self._used = None
        if moved and self.per_step and self.scheduler:
            self._move(None)

    def used(self) -> list[float]:
        """The learning rate of each parameter group in the last optimizer step."""
        return self._used or self.rates()

    def after_epoch(self, monitored: float | None) -> None:
        if self.scheduler and not self.per_step:
            self._move(monitored)

    def rates(self) -> list[float]:
        """The learning rate of each parameter group in the next optimizer step."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        scheduler = self.scheduler.state_dict() if self.scheduler else None
        return {"scheduler": scheduler, "moves": self.moves, "length": self.length, "used": self.used()}

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Resume from a state, after the optimizer has. If the run has another length now, the schedule is computed for
        it from the first step on. Returns whether that changed the learning rates.
        """
        self._used = state["used"]
        if self.scheduler is None or state["scheduler"] is None:
            return False
        if state["length"] == self.length or isinstance(self.scheduler, ReduceLROnPlateau):
            self.moves = state["moves"]
            self.scheduler.load_state_dict(state["scheduler"])
            return False
        before = self.rates()
        self._replay(state["moves"])
        return self.rates() != before

    def _move(self, monitored: float | None) -> None:
        assert self.scheduler is not None
        self._used = self.rates()
        self.moves += 1
        if isinstance(self.scheduler, ReduceLROnPlateau):
            assert monitored is not None
            self.scheduler.step(monitored)
        else:
            self.scheduler.step()

    def _replay(self, moves: int) -> None:
        assert self.make is not None
        for group, initial in zip(self.optimizer.param_groups, self.initial, strict=True):
            group.pop("initial_lr", None)
            group.update(initial)
        self.scheduler = self.make(self.optimizer)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")  # replayed without optimizer steps
            for _ in range(moves):
                self.scheduler.step()
        self.moves = moves


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """A parameter group without its parameters: learning rate, momentum and so on."""
    return {key: value for key, value in group.items() if key not in ("params", "initial_lr")}
