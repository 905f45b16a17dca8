"""The observer that warns."""

import math
from collections.abc import Iterable

from base.base_trainer import BaseTrainer
from base.metric import StepResult
from base.training.observer import Observer
from extras.advice.first_batch import first_batch_warnings
from extras.advice.first_step import IdleOptimizers, OwnOptimizers, differing_part_warnings


class Advice(Observer):
    """Warns about likely mistakes. Every process needs one: comparing their states is a collective operation."""

    def __init__(self) -> None:
        self._own_optimizers = OwnOptimizers([])
        self._idle_optimizers: IdleOptimizers | None = None
        self._warned_of_non_finite = False
        self._warned_of_no_targets = False

    def begin(self, trainer: BaseTrainer) -> None:
        self._own_optimizers = OwnOptimizers(trainer.training.optimizers.values())

    def first_batch(self, trainer: BaseTrainer, result: StepResult) -> None:
        _warn(trainer, first_batch_warnings(trainer, result))

    def first_step(self, trainer: BaseTrainer) -> None:
        _warn(trainer, self._own_optimizers.warnings())
        _warn(trainer, differing_part_warnings(trainer))
        if trainer.several_optimizers and trainer.progress.epochs == 0:
            self._idle_optimizers = IdleOptimizers(trainer)

    def end_epoch(self, trainer: BaseTrainer, values: dict[str, float]) -> None:
        monitored = trainer.monitored(values)
        if monitored is not None and not math.isfinite(monitored) and not self._warned_of_non_finite:
            self._warned_of_non_finite = True
            _warn(trainer, [_non_finite_warning(trainer, monitored)])
        if math.isnan(values.get("loss", 0.0)) and not self._warned_of_no_targets:
            self._warned_of_no_targets = True
            _warn(trainer, [_no_targets_warning(trainer)])
        if self._idle_optimizers:
            _warn(trainer, self._idle_optimizers.warnings())
            self._idle_optimizers = None


def _warn(trainer: BaseTrainer, warnings: Iterable[str]) -> None:
    for warning in warnings:
        trainer.console.warn(warning)


def _non_finite_warning(trainer: BaseTrainer, value: float) -> str:
    """value: of the monitored value."""
    name = (trainer.settings.monitor or "").split()[1]
    shown = "NaN" if math.isnan(value) else f"{value:g}"
    return (
        f"{name}, the value of trainer.monitor, is {shown} in epoch {trainer.progress.epochs}: such an epoch is never "
        "the best, so best.pth is not written for it. Find the cause, or set trainer.monitor to another value"
    )


def _no_targets_warning(trainer: BaseTrainer) -> str:
    return (
        f"the loss of epoch {trainer.progress.epochs} is the mean over nothing, so nothing was learnt: no target "
        "counted. Are all of them the loss's ignore_index (-100 unless it is set), or masked?"
    )
