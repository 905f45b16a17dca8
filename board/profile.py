"""A profile of some optimizer steps, which Perfetto (ui.perfetto.dev) and chrome://tracing open."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer


class StepProfile:
    """Records optimizer steps, the first and the last of them included, and writes them into the run's folder."""

    def __init__(self, steps: Sequence[int], folder: Path) -> None:
        self.first, self.last = steps
        self.path = folder / f"steps-{self.first}-{self.last}.pt.trace.json.gz"
        self._profile: profile | None = None
        self._step: Any = None
        self._handle: Any = None

    def begin(self, trainer: "BaseTrainer") -> None:
        """Before the first step of this start. The optimizer says when a step is over, so that the loop need not."""
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # what it prints of a machine without GPU looks like a failure
        self._handle = trainer.training.optimizer.register_step_post_hook(
            lambda *_: self._between(trainer.progress.steps + 2)
        )
        self._between(trainer.progress.steps + 1)

    def _between(self, following: int) -> None:
        """following: the number of the step that begins now."""
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None
        if following > self.last:
            self.end()
        elif following >= self.first:
            if self._profile is None:
                self._profile = profile(activities=_activities(), record_shapes=True)
                self._profile.start()
            self._step = record_function(f"ProfilerStep#{following}")
            self._step.__enter__()

    def end(self) -> None:
        """Write what was recorded, if anything was."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None
        if self._profile is not None:
            self._profile.stop()
            try:
                self._profile.export_chrome_trace(str(self.path))
            except OSError:  # a full disk; the run's end tells
                self.path.unlink(missing_ok=True)
            self._profile = None


def _activities() -> list[ProfilerActivity]:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    kind = getattr(ProfilerActivity, accelerator.type.upper(), None) if accelerator else None
    return [ProfilerActivity.CPU, *([kind] if kind is not None else [])]
