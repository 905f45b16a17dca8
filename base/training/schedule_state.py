"""What a checkpoint keeps of a learning rate schedule, and how a resumed run follows one that has changed."""

from collections.abc import Sequence
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from base.training.schedule import Schedule


class ScheduleState:
    """The state of a schedule, with everything its learning rates depend on."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.saved: dict[str, Any] = {}
        """The state that was loaded."""

    def state_dict(self) -> dict[str, Any]:
        schedule = self.schedule
        return {
            "scheduler": schedule.scheduler.state_dict() if schedule.scheduler else None,
            "moves": schedule.scheduler_steps,
            "used": schedule.used(),
            "made_from": self.made_from(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state, after the optimizer has. Call ``lay_out`` next if ``changed``."""
        if type(state["moves"]) is not int or not 0 <= state["moves"] < 2**63:
            raise ValueError(f"moves: {state['moves']!r} is not a number of steps")
        self.saved = state
        self.schedule.last_used = [float(rate) for rate in state["used"]]
        self.schedule.scheduler_steps = state["moves"]
        if not self.changed and self.schedule.scheduler:
            self.schedule.scheduler.load_state_dict(state["scheduler"])

    @property
    def changed(self) -> bool:
        """Whether the loaded state is from a different schedule, or from other optimizer arguments."""
        return bool(self.saved) and self.saved["made_from"] != self.made_from()

    def made_from(self) -> dict[str, Any]:
        """Everything the learning rates depend on."""
        schedule, kernels = self.schedule, ("fused", "foreach")  # machine-dependent, without effect on the result
        return {
            "settings": schedule.settings,
            "per_step": schedule.per_step,
            "steps_per_epoch": schedule.steps_per_epoch if schedule.per_step else None,
            "length": schedule.length if schedule.scheduler and not schedule.follows_monitor else None,
            "initial": [
                {key: value for key, value in group.items() if key not in kernels} for group in schedule.initial
            ],
        }

    def lay_out(self, epochs: int, epoch_steps: int, monitored: Sequence[float]) -> None:
        """Recompute the learning rates and other optimizer settings as if they had applied from the first step.

        epochs, epoch_steps: progress of the run. monitored: values that ReduceLROnPlateau would have seen.
        """
        schedule = self.schedule
        for group, initial in zip(schedule.optimizer.param_groups, schedule.initial, strict=True):
            group.pop("initial_lr", None)
            group.update(initial)
        if schedule.make is None:
            return
        schedule.scheduler = schedule.make(schedule.optimizer)
        schedule.scheduler_steps = 0
        if isinstance(schedule.scheduler, ReduceLROnPlateau):
            for value in monitored:
                schedule.step_scheduler(value)
        else:
            for _ in range(min(self._moves(epochs, epoch_steps), schedule.length)):
                schedule.step_scheduler(None)
        schedule.last_used = self.saved["used"]

    def _moves(self, epochs: int, epoch_steps: int) -> int:
        """How often the schedule would have stepped."""
        before, now = self.saved["made_from"], self.made_from()
        if not self.schedule.per_step:
            return epochs
        if before["settings"] and all(before[key] == now[key] for key in ("per_step", "steps_per_epoch")):
            moves: int = self.saved["moves"]  # fewer than steps if fp16 skipped some
            return moves
        return epochs * self.schedule.steps_per_epoch + epoch_steps
