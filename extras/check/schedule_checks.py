"""The learning rates of a whole run, before it starts; and constant ones, for the other checks."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from base.experiment import Training
from base.training.schedule import Schedule, ScheduledOptimizer
from extras.check.check_result import CheckResult
from utils.errors import ConfigError
from utils.tree import copied

MOST_STEPS = 50_000
"""A longer schedule is not computed: these take 0.6 s."""
LIKE_AN_END = 0.01
"""Difference, relative to the highest rate, up to which a rate counts as that of the first or last step."""


def check_schedules(training: Training) -> Iterator[CheckResult]:
    """The rates of each schedule, or why it fails before the end of the run; silent for those that follow losses.

    Steps them to the end of the run.
    """
    for optimizer in training.optimizers.values():
        schedule = optimizer.schedule
        if schedule.scheduler is None or schedule.follows_monitor or schedule.length > MOST_STEPS:
            continue
        rates = [schedule.rates()]
        try:
            while len(rates) < schedule.length:
                schedule.step_scheduler(None)
                rates.append(schedule.rates())
        except ConfigError as error:
            yield CheckResult("schedule", "FAIL", error.message)
        else:
            yield CheckResult("schedule", "ok", _description(optimizer, list(zip(*rates, strict=True))))


def _description(optimizer: ScheduledOptimizer, rates: Sequence[Sequence[float]]) -> str:
    """rates: by parameter group; those of the group with the highest rate are described."""
    schedule = optimizer.schedule
    name, shown = max(zip(optimizer.group_names, rates, strict=True), key=lambda group: max(group[1]))
    unit = "step" if schedule.per_step else "epoch"
    points = {0: f"{shown[0]:.4g} in the first {unit}"}
    for extreme in (max(shown), min(shown)):
        if min(abs(extreme - end) for end in (shown[0], shown[-1])) > LIKE_AN_END * max(shown):
            index = shown.index(extreme)
            points[index] = f"{extreme:.4g} in {unit} {index + 1:,}"
    if len(shown) > 1:
        points[len(shown)] = f"{shown[-1]:.4g} in the last of {len(shown):,}"
    of_group = f" of {name}" if len(rates) > 1 and name else ""
    return f"{type(schedule.scheduler).__name__}: lr{of_group} {', '.join(points[index] for index in sorted(points))}"


def unscheduled(optimizer: ScheduledOptimizer) -> ScheduledOptimizer:
    """An optimizer with a constant learning rate: its own, or the one that its schedule sets instead."""
    for group, initial in zip(optimizer.optimizer.param_groups, optimizer.schedule.initial, strict=True):
        group.update(copied(initial) | {"lr": group.get("initial_lr", initial["lr"])})
    schedule = Schedule(optimizer.optimizer, None, per_step=False, steps_per_epoch=1, length=1)
    return replace(optimizer, schedule=schedule)
