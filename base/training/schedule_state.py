"""What a checkpoint keeps of a learning rate schedule, and how a resumed run follows one that has changed."""

from collections.abc import Sequence
from typing import Any

from base.training.schedule import Schedule
from utils.arguments import parameters
from utils.nested_arguments import with_defaults
from utils.optimizers import start_state
from utils.registry import SCHEDULERS
from utils.tree import copied

SCHEDULED = ("lr", "momentum", "betas")
"""What torch's schedules change."""


class ScheduleState:
    """The state of a schedule, with everything its learning rates depend on."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self._settings = _filled(schedule.settings)
        self.saved: dict[str, Any] = {}
        """The state that was loaded."""

    def state_dict(self) -> dict[str, Any]:
        return {
            "scheduler": self.schedule.scheduler.state_dict() if self.schedule.scheduler else None,
            "moves": self.schedule.scheduler_steps,
            "used": self.schedule.last_rates(),
            "made_from": self.made_from(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state, after the optimizer has. Call ``lay_out`` next if ``changed``."""
        if type(state["moves"]) is not int or not 0 <= state["moves"] < 2**63:
            raise ValueError(f"moves: {state['moves']!r} is not a number of steps")
        made_from = state["made_from"]
        self.saved = {**state, "made_from": {**made_from, "settings": _filled(made_from["settings"])}}
        self.schedule.last_used = [float(rate) for rate in state["used"]]
        self.schedule.scheduler_steps = state["moves"]
        if not self.changed and self.schedule.scheduler:
            self.schedule.scheduler.load_state_dict(dict(state["scheduler"]))  # torch removes keys

    @property
    def changed(self) -> bool:
        """Whether the loaded state is from a different schedule, or from other optimizer arguments."""
        return bool(self.saved) and self.saved["made_from"] != self.made_from()

    def made_from(self) -> dict[str, Any]:
        """Everything the learning rates depend on."""
        kernels = ("fused", "foreach")  # machine-dependent, without effect on the result
        return {
            "settings": self._settings,
            "per_step": self.schedule.per_step,
            "steps_per_epoch": self.schedule.steps_per_epoch if self.schedule.per_step else None,
            "length": self.schedule.length if self.schedule.scheduler and not self.schedule.follows_monitor else None,
            "initial": [
                {key: value for key, value in group.items() if key not in kernels} for group in self.schedule.initial
            ],
        }

    def lay_out(self, epochs: int, epoch_steps: int, monitored: Sequence[float]) -> None:
        """Recompute the learning rates and other optimizer settings as if they had applied from the first step.

        epochs, epoch_steps: progress of the run. monitored: values that ReduceLROnPlateau would have seen.
        """
        before, now = self.saved["made_from"], self.made_from()
        arguments = parameters(type(self.schedule.optimizer))  # some keep a state of their own beside them
        groups = self.schedule.optimizer.param_groups
        for group, initial, saved in zip(groups, self.schedule.initial, before["initial"], strict=True):
            group.pop("initial_lr", None)
            for key, value in initial.items():
                # an argument may have another name in the groups, or belong to an optimizer inside
                if key in arguments or key in SCHEDULED or key not in saved or saved[key] != value:
                    group[key] = copied(value)
        start_state(self.schedule.optimizer)  # for arguments such as amsgrad
        if self.schedule.make is None:
            return
        self.schedule.start()
        if not self.schedule.per_step:
            moves = epochs
        elif before["settings"] and all(before[key] == now[key] for key in ("per_step", "steps_per_epoch")):
            moves = self.saved["moves"]  # fewer than steps if fp16 skipped some
        else:
            moves = epochs * self.schedule.steps_per_epoch + epoch_steps
        values: Sequence[float | None] = monitored if self.schedule.follows_monitor else [None] * moves
        for value in values:
            self.schedule.step_scheduler(value)
        self.schedule.last_used = self.saved["used"]


def _filled(settings: Any) -> Any:
    """A scheduler's config with the defaults of all arguments: one that has changed in the code counts as a change."""
    if settings is None:
        return None
    return {**settings, "args": with_defaults(SCHEDULERS, settings["type"], settings["args"])}
