"""A profile of some optimizer steps, for Perfetto (ui.perfetto.dev) or chrome://tracing."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerAction, ProfilerActivity, profile

from logger.console import Console
from utils.paths import display_path

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer


class StepProfile:
    """Records optimizer steps, from first to last inclusive, and writes them to the run's folder."""

    def __init__(self, steps: Sequence[int], folder: Path, console: Console) -> None:
        self.first, self.last = steps
        self.folder = folder
        self.console = console
        self._profile: profile | None = None
        self._begun = 0
        """The first step that is recorded; 0: none yet."""
        self._handle: Any = None

    def begin(self, trainer: "BaseTrainer") -> None:
        """Call before the first step. A hook in the optimizer reports each step, so that the loop need not."""
        end = trainer.settings.epochs * trainer.steps_per_epoch()
        if self.first > end:
            self.console.warn(f"trainer.profile_steps: the run ends with step {end:,}, before step {self.first:,}")
            return
        if trainer.progress.steps >= self.last:  # already past them
            if not any(self.folder.glob(f"steps-*-{self.last}.pt.trace.json.gz")):
                self.console.warn(f"trainer.profile_steps: the run is already past step {self.last:,}")
            return
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # its messages on machines without a GPU look like failures
        # with a schedule, torch marks each step; without acc_events some releases of it warn about a second cycle
        self._profile = profile(
            activities=_activities(trainer.runtime.device),
            schedule=lambda _: ProfilerAction.RECORD,
            record_shapes=True,
            acc_events=True,
        )
        self._handle = next(reversed(trainer.training.optimizers.values())).optimizer.register_step_post_hook(
            lambda *_: self._between(trainer.progress.steps + 2)
        )
        self._between(trainer.progress.steps + 1)

    def _between(self, following: int) -> None:
        """Called between two steps. following: the number of the next step."""
        assert self._profile is not None
        if following > self.last:
            self.end()
        elif not self._begun and following >= self.first:
            self._begun = self._profile.step_num = following
            self._profile.start()
        elif self._begun and following > self._profile.step_num:  # not for an optimizer that steps more than once
            self._profile.step_num = following - 1
            self._profile.step()

    def end(self, taken: int | None = None) -> None:
        """Write what was recorded. taken: the run's number of steps, if it has ended."""
        if self._profile is None:
            return
        self._handle.remove()
        recorded, self._profile = self._profile, None
        last = recorded.step_num if taken is None else min(recorded.step_num, taken)
        if self._begun:
            recorded.stop()
        if 0 < self._begun <= last:
            self._write(recorded, self._begun, last)
        else:
            self.console.warn(f"trainer.profile_steps: the run ended before step {self.first:,}")

    def _write(self, recorded: profile, first: int, last: int) -> None:
        path = self.folder / f"steps-{first}-{last}.pt.trace.json.gz"
        try:
            recorded.export_chrome_trace(str(path))
        except OSError as error:  # a full disk must not stop a run
            path.unlink(missing_ok=True)
            self.console.warn(f"trainer.profile_steps: {path} cannot be written: {error.strerror}")
        else:
            self.console.info(f"profile of steps {first} to {last}, for ui.perfetto.dev: {display_path(path)}")


def _activities(device: torch.device) -> set[ProfilerActivity]:
    return {ProfilerActivity.CPU, getattr(ProfilerActivity, device.type.upper(), ProfilerActivity.CPU)}
