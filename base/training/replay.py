"""A schedule whose settings, or whose optimizer's, a resume has changed: as if they had been so from the first step."""

import warnings
from collections.abc import Sequence

from torch.optim.lr_scheduler import ReduceLROnPlateau

from base.training.schedule import Schedule


def lay_out(schedule: Schedule, epochs: int, epoch_steps: int, monitored: Sequence[float]) -> None:
    """Recompute the learning rates and the other settings of the optimizer, after ``load_state_dict``.

    epochs, epoch_steps: how far the run is. monitored: the values that ReduceLROnPlateau would have seen.
    """
    for group, initial in zip(schedule.optimizer.param_groups, schedule.initial, strict=True):
        group.pop("initial_lr", None)
        group.update(initial)
    if schedule.make is None:
        return
    schedule.scheduler = schedule.make(schedule.optimizer)
    schedule.moves = 0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")  # replayed without optimizer steps
        if isinstance(schedule.scheduler, ReduceLROnPlateau):
            for value in monitored:
                schedule.move(value)
        else:
            for _ in range(min(_moves(schedule, epochs, epoch_steps), schedule.length)):
                schedule.move(None)
    schedule.last_used = schedule.saved["used"]


def _moves(schedule: Schedule, epochs: int, epoch_steps: int) -> int:
    """How often the schedule would have moved."""
    before, now = schedule.saved["made_from"], schedule.made_from()
    if not schedule.per_step:
        return epochs
    if before["settings"] and all(before[key] == now[key] for key in ("per_step", "steps_per_epoch")):
        moves: int = schedule.saved["moves"]  # fewer than there were steps if fp16 skipped some
        return moves
    return epochs * schedule.steps_per_epoch + epoch_steps
