"""The learning rates of a whole run, before it starts."""

import copy
from collections.abc import Iterator

from base.experiment import Training
from base.training.schedule import Schedule, ScheduledOptimizer
from extras.check.check_result import CheckResult
from utils.errors import ConfigError

MOST_STEPS = 50_000
"""A longer schedule is not computed: these take 0.6 s."""
LIKE_AN_END = 0.01
"""Difference, relative to the highest rate, up to which a rate counts as that of the first or last step."""


def check_schedules(training: Training) -> Iterator[CheckResult]:
    """The rates of each schedule, or why it fails before the end of the run; silent for those that follow losses."""
    for optimizer in training.optimizers.values():
        schedule = optimizer.schedule
        if schedule.make is None or schedule.follows_monitor or schedule.length > MOST_STEPS:
            continue
        try:
            if rates := _rates(schedule):
                yield CheckResult("schedule", "ok", _description(optimizer, rates))
        except ConfigError as error:
            yield CheckResult("schedule", "FAIL", str(error).removeprefix("lr_scheduler: "))


def _rates(schedule: Schedule) -> list[list[float]]:
    """The learning rates of each parameter group in each step or epoch. Raises ConfigError.

    Empty for an optimizer that keeps its groups elsewhere, as one that wraps another: it cannot be copied without them.
    """
    original = schedule.optimizer
    groups = zip(original.param_groups, schedule.initial, strict=True)
    settings = [{"params": group["params"], **copy.deepcopy(initial)} for group, initial in groups]
    optimizer = object.__new__(type(original))  # copy.copy would add to the original's defaults, which it shares
    vars(optimizer).update(vars(original), param_groups=settings, defaults=dict(original.defaults))
    if optimizer.param_groups is not settings:
        return []
    whole = Schedule(optimizer, schedule.make, per_step=schedule.per_step, steps_per_epoch=1, length=schedule.length)
    rates = [whole.rates()]
    while len(rates) < schedule.length:
        whole.step_scheduler(None)
        rates.append(whole.rates())
    return list(map(list, zip(*rates, strict=True)))


def _description(optimizer: ScheduledOptimizer, rates: list[list[float]]) -> str:
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
