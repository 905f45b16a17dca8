"""A profile of some optimizer steps, for Perfetto (ui.perfetto.dev) or chrome://tracing."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

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
        self._activities = {ProfilerActivity.CPU}
        self._recorded: list[int] = []
        self._step: Any = None
        self._handle: Any = None

    def begin(self, trainer: "BaseTrainer") -> None:
        """Call before the first step. A hook in the optimizer reports each step, so that the loop need not."""
        end = trainer.settings.epochs * trainer.steps_per_epoch()
        if self.first > end:
            self.console.warn(f"trainer.profile_steps: the run ends with step {end:,}, before step {self.first:,}")
            return
        if trainer.progress.steps >= self.last:  # already past them
            return
        self._activities = _activities(trainer.runtime.device)
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # its messages on machines without a GPU look like failures
        self._handle = next(reversed(trainer.training.optimizers.values())).optimizer.register_step_post_hook(
            lambda *_: self._between(trainer.progress.steps + 2)
        )
        self._between(trainer.progress.steps + 1)

    def _between(self, following: int) -> None:
        """Called between two steps. following: the number of the next step."""
        if self._recorded[-1:] == [following]:  # one of several optimizers that steps more than once per step
            return
        self._end_step()
        if following > self.last:
            self.end()
        elif following >= self.first:
            if self._profile is None:
                # there is only one cycle of events to keep; without acc_events some releases of torch warn about it
                self._profile = profile(activities=self._activities, record_shapes=True, acc_events=True)
                self._profile.start()
            self._recorded.append(following)
            self._step = record_function(f"ProfilerStep#{following}")
            self._step.__enter__()

    def _end_step(self) -> None:
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None

    def end(self, taken: int | None = None) -> None:
        """Write what was recorded. taken: the run's number of steps, if it has ended."""
        if self._handle is None:
            return
        self._handle.remove()
        self._handle = None
        self._end_step()
        steps = [step for step in self._recorded if taken is None or step <= taken]
        if self._profile is not None:
            self._profile.stop()
        if steps and self._profile is not None:
            self._write(self._profile, steps[0], steps[-1])
        else:
            self.console.warn(f"trainer.profile_steps: the run ended before step {self.first:,}")
        self._profile = None

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
