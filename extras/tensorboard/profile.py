"""A profile of some optimizer steps, for Perfetto (ui.perfetto.dev) or chrome://tracing."""

import os
from collections.abc import Sequence
from pathlib import Path

from torch.profiler import ProfilerAction, ProfilerActivity, profile

from base.base_trainer import BaseTrainer
from utils.paths import display_path

SUFFIX = ".pt.trace.json.gz"


class StepProfile:
    """Records optimizer steps, from first to last inclusive, and writes them to the run's folder."""

    def __init__(self, steps: Sequence[int], folder: Path, trainer: BaseTrainer) -> None:
        """Call before the first step. A hook in the optimizer reports each step, so that the loop need not."""
        self.folder = folder
        self.console = trainer.console
        self._recorded = False
        start = trainer.progress.steps + 1
        self.first, self.last = max(steps[0], start), steps[1]
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # its messages on machines without a GPU look like failures
        device = trainer.runtime.device.type.upper()
        self._profile = profile(
            activities={ProfilerActivity.CPU, getattr(ProfilerActivity, device, ProfilerActivity.CPU)},
            schedule=lambda step: self._action(step or start),
            on_trace_ready=self._write,
            record_shapes=True,
            acc_events=True,  # without it, some releases of torch warn about a second cycle
        )
        self._profile.step_num = start
        self._profile.start()

        def stepped(*_: object) -> None:
            step = trainer.progress.steps + 1
            if self._profile.step_num <= step:  # an optimizer may step more than once
                self._profile.step_num = step
                self._profile.step()

        optimizer = next(reversed(trainer.training.optimizers.values())).optimizer
        self._handle = optimizer.register_step_post_hook(stepped)

    def end(self) -> None:
        """The run has ended: write the steps that it did take."""
        self._handle.remove()
        self._profile.stop()
        if not self._recorded and not any(self.folder.glob(f"steps-*{SUFFIX}")):
            self.console.warn("trainer.profile_steps: none of these steps was taken")

    def _action(self, step: int) -> ProfilerAction:
        if step == self.last:
            return ProfilerAction.RECORD_AND_SAVE
        return ProfilerAction.RECORD if self.first <= step < self.last else ProfilerAction.NONE

    def _write(self, recorded: profile) -> None:
        last = min(self.last, recorded.step_num - 1)
        if last < self.first:
            return
        self._recorded = True
        path = self.folder / f"steps-{self.first}-{last}{SUFFIX}"
        try:
            recorded.export_chrome_trace(str(path))
        except OSError as error:  # a full disk must not stop a run
            path.unlink(missing_ok=True)
            self.console.warn(f"trainer.profile_steps: {path} cannot be written: {error.strerror}")
        else:
            self.console.info(f"profile of steps {self.first} to {last}, for ui.perfetto.dev: {display_path(path)}")
