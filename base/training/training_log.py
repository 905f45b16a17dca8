"""Logging during training: to the console, metrics.jsonl and TensorBoard."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from tqdm import tqdm

from base.training.progress import Progress
from logger.console import Console
from logger.table import EpochTable
from logger.writers import Writers
from utils.distributed.process_group import ProcessGroup
from utils.schema import TrainerConfig
from utils.text import number

LINE_INTERVAL = 1.0  # minimum seconds between lines within an epoch, without a progress bar


@dataclass(eq=False)
class TrainingLog:
    """Feeds the console and the writers of a run, at each step, log interval and epoch."""

    console: Console
    writers: Writers
    settings: TrainerConfig
    process_group: ProcessGroup

    def __post_init__(self) -> None:
        self.table = EpochTable(self.settings.epochs, monitored=self.settings.monitored_name)
        self._loss: Tensor | float | None = None
        self._end: float | None = None  # when the previous epoch's training ended
        self._between = 0.0  # seconds from then to this epoch: validation and saving
        self._next_line = 0.0

    def begin_epoch(self, progress: Progress, steps: int) -> None:
        """Start or resume the training of an epoch of this many optimizer steps."""
        self._progress = progress
        self._steps = steps
        self._samples = 0  # samples this process has trained on in this epoch
        self._paused = 0.0
        self._start = time.perf_counter()
        if self._end is not None:
            self._between = self._start - self._end
        self._bar = self.console.bar(self._bar_texts, total=steps, initial=progress.epoch_steps)

    def step(self, loss: Tensor | float, samples: int) -> None:
        """Call after each optimizer step. loss: this process's part of it; samples: number in the step."""
        self._loss = loss
        self._samples += samples
        self._bar.update()

    def log_interval(self, means: Mapping[str, float], rates: Mapping[str, float], gradient_norm: Tensor) -> None:
        """Log a point of the curves within an epoch, after its step.

        means: since the previous point; rates: learning rates by parameter group; gradient_norm: of the last step,
        before clipping, shape ().
        """
        if self._loss is not None and self.process_group.world_size > 1:  # an estimate until the next point
            self._loss = self._total(self._loss) / self.process_group.world_size
        now = time.perf_counter()
        if now >= self._next_line and self.console.prints_progress:
            self._next_line = now + LINE_INTERVAL
            self.console.info(self._progress_line())
            self.table.interrupted()
        points = {f"{name}/step": value for name, value in means.items()} | _named("learning_rate", "/", rates)
        # with FSDP, each process has a part of it
        norm = float(getattr(gradient_norm, "full_tensor", lambda: gradient_norm)())
        self.writers.scalars(self._progress.steps, points | {"gradient_norm": norm})

    def wait(self) -> None:
        """Wait for the device to finish the steps so far; their time would otherwise count for what follows."""
        if self._loss is not None:
            float(self._loss)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside the block, nothing is trained: its time does not count as training time."""
        self.wait()
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def validation(self, values: Mapping[str, float]) -> None:
        """Log the values of a validation within an epoch."""
        self.writers.scalars(self._progress.steps, {_tag(f"val_{name}"): value for name, value in values.items()})

    def end_training(self) -> None:
        """Call when the training of an epoch ended or was interrupted; its validation follows."""
        self._end = time.perf_counter()
        self._seconds = self._end - self._start - self._paused
        self.console.clear()
        del self._bar  # it refers to this object, and such a cycle would keep the writers' files open

    def end_epoch(self, values: Mapping[str, float], rates: Mapping[str, float], *, best: bool) -> None:
        """Write the epoch's line in metrics.jsonl and on the console, and its points in TensorBoard."""
        progress = self._progress
        speed = {"samples_per_second": self._samples / max(self._seconds, 1e-9)}
        position = {"epoch": progress.epochs, "step": progress.steps}
        self.writers.epoch({**position, **values, **_named("lr", "_", rates), **speed, "seconds": self._seconds})
        scalars = {_tag(name): value for name, value in values.items()} | speed
        if progress.steps % self.settings.log_every_steps:  # otherwise log_interval has written them at this step
            scalars |= _named("learning_rate", "/", rates)
        self.writers.scalars(progress.steps, scalars)
        seconds = time.perf_counter() - self._start
        columns = self._columns(values)
        for line in self.table.row(progress.epochs, columns, seconds=seconds, best=best, width=self.console.width):
            self.console.info(line)

    def _columns(self, values: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """Each training value next to its validation value. Without validation, the loss of the last step is added."""
        columns = {}
        for name, value in values.items():
            if f"val_{name}" in values:
                columns[name] = {"train": value, "valid": values[f"val_{name}"]}
            elif name.removeprefix("val_") not in columns:
                columns[name] = {"": value}
        if len(columns) == len(values) and self._loss is not None:
            columns = {"loss": columns["loss"], "last step": {"": self._total(self._loss)}, **columns}
        return columns

    def _total(self, part: Tensor | float) -> float:
        """The loss of a step over all processes."""
        return self.process_group.all_reduce_sum([float(part)])[0]

    # ------------------------------------------------------------------ progress within an epoch

    def _bar_texts(self, state: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Texts to the left and right of the bar, from longest to shortest."""
        epoch = f"{self._progress.epochs + 1}/{self.settings.epochs}"
        loss = "" if self._loss is None else f"loss {number(float(self._loss) * self.process_group.world_size)}"
        name, best, speed, eta = "", "", "", ""
        if self.settings.monitor and self._progress.best is not None:
            name, best = self.settings.monitored_name, number(self._progress.best)
        if state["elapsed"] > 0 and (steps := state["n"] - state["initial"]):
            rate = state["rate"] or steps / state["elapsed"]  # tqdm's moving average over this process's steps
            speed, eta = tqdm.format_sizeof(rate * self._samples / steps), self._eta_text(state, rate)
        yield f"epoch {epoch}", _join(loss, best and f"best {name} {best}", speed and f"{speed} samples/s", eta)
        yield epoch, _join(loss, best and f"best {best}", speed and f"{speed}/s", eta)
        yield epoch, _join(loss, eta)
        yield epoch, loss

    def _progress_line(self) -> str:
        """The content of the bar as a line of text."""
        epoch, text = next(self._bar_texts(self._bar.state))
        return _join(epoch, f"step {self._bar.n:>{len(str(self._steps))}}/{self._steps}", text)

    def _eta_text(self, state: Mapping[str, Any], steps_per_second: float) -> str:
        """Time until the end of the epoch's training, and of the run, which may stop earlier."""
        epochs = self.settings.epochs - self._progress.epochs - 1
        seconds = (self._steps - state["n"]) / steps_per_second
        run_seconds = seconds + self._between + epochs * (self._steps / steps_per_second + self._between)
        return f"ETA {tqdm.format_interval(seconds)}, run {tqdm.format_interval(run_seconds)}"


def _tag(name: str) -> str:
    """The tag of an epoch's value: training and validation share a group of charts."""
    return f"{name.removeprefix('val_')}/valid" if name.startswith("val_") else f"{name}/train"


def _named(name: str, separator: str, rates: Mapping[str, float]) -> dict[str, float]:
    """Learning rates named by parameter group, as in lr and lr_backbone."""
    return {f"{name}{separator}{group}" if group else name: rate for group, rate in rates.items()}


def _join(*parts: str) -> str:
    return "  ".join(filter(None, parts))
