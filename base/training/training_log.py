"""What a run says of itself while it trains: to the console, to metrics.jsonl and to TensorBoard."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from base.training.progress import Progress
from base.training.throughput import Throughput
from logger.bar import INTERVAL
from logger.console import Console
from logger.table import EpochTable
from logger.writers import Writers
from utils.distributed.process_group import ProcessGroup
from utils.schema import TrainerConfig
from utils.text import duration, number, short_number

LINES = 1.0  # seconds at least between two lines within an epoch, in a file


class TrainingLog:
    """The console and the writers of one run, fed once a step, once a window and once an epoch."""

    def __init__(
        self,
        console: Console,
        writers: Writers,
        settings: TrainerConfig,
        process_group: ProcessGroup,
        *,
        validation_samples: int,
    ) -> None:
        self.console, self.writers, self.settings, self.process_group = console, writers, settings, process_group
        self.pace, self.table = Throughput(validation_samples), EpochTable(settings.epochs)
        self._loss: Tensor | float | None = None
        self._warm, self._next_line = False, 0.0

    def begin_epoch(self, progress: Progress, steps: int) -> None:
        """The training of an epoch of so many optimizer steps begins, or goes on."""
        self._progress, self._steps = progress, steps
        self._start, self._seconds = time.perf_counter(), 0.0
        self.pace.begin(self._start)
        self._draw(self._start)

    def step(self, loss: Tensor | float, samples: int) -> None:
        """An optimizer step, this process's part of its loss, and its number of samples."""
        self._loss = loss
        self.pace.steps += 1
        self.pace.samples += samples
        if (now := time.perf_counter()) >= self._due:
            self._draw(now)

    def log_interval(
        self, progress: Progress, loss: Tensor | float, means: Mapping[str, float], rates: Sequence[float]
    ) -> None:
        """A point of the curves within an epoch: the means since the point before. loss: of this very step, in part."""
        if (
            self.process_group.world_size > 1
        ):  # what is shown next is the loss of all; between two points it is an estimate
            self._loss = self._total(loss) / self.process_group.world_size
        if self.console.lists and (now := time.perf_counter()) >= self._next_line:
            self._next_line = now + LINES
            self.console.info(self._line(now))
            self.table.interrupted()
        points = {f"{name}/step": value for name, value in means.items()}
        self.writers.scalars(progress.steps, points | _tags(rates))

    def end_training(self) -> None:
        """The training of an epoch ends, or is interrupted; its validation follows."""
        now = time.perf_counter()
        self.pace.end(now)
        self._seconds = now - self._start

    def end_epoch(self, progress: Progress, values: Mapping[str, float], rates: Sequence[float], *, best: bool) -> None:
        """The epoch's line in metrics.jsonl and the console, and its points in TensorBoard."""
        speed = {"samples_per_second": self.pace.samples / max(self._seconds, 1e-9)}
        place = {"epoch": progress.epochs, "step": progress.steps}
        self.writers.epoch({**place, **values, "lr": rates[0], **speed, "seconds": self._seconds})
        scalars = {_chart(name): value for name, value in values.items()} | speed
        if progress.steps % self.settings.log_every_steps:  # else the window of this step has them
            scalars |= _tags(rates)
        self.writers.scalars(progress.steps, scalars)
        seconds = time.perf_counter() - self._start
        shown, width = self._side_by_side(values), self.console.width
        for line in self.table.row(progress.epochs, shown, seconds=seconds, best=best, width=width):
            self.console.info(line)

    def _side_by_side(self, values: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """Each value of training beside the validation's. Without validation, the last step's loss says where it is."""
        shown = {}
        for name, value in values.items():
            if f"val_{name}" in values:
                shown[name] = {"train": value, "valid": values[f"val_{name}"]}
            elif name.removeprefix("val_") not in shown:
                shown[name] = {"": value}
        if len(shown) == len(values) and self._loss is not None:
            shown = {"loss": shown["loss"], "last step": {"": self._total(self._loss)}, **shown}
        return shown

    def _total(self, part: Tensor | float) -> float:
        """The loss of a step, of all processes."""
        return self.process_group.all_reduce_sum([float(part)])[0]

    def _draw(self, now: float) -> None:
        if self.pace.steps and not self._warm:
            self._warm = True
            self.pace.begin_here(now)
        self._due = now + INTERVAL if self.console.draws or not self._warm else math.inf
        self.console.draw(self._progress.epoch_steps, self._steps, self._forms(now))

    def _line(self, now: float) -> str:
        """What the bar says, for a file."""
        place = f"epoch {self._progress.epochs + 1}/{self.settings.epochs}"
        step = f"step {self._progress.epoch_steps:>{len(str(self._steps))}}/{self._steps}"
        loss, _, _, *speeds = self._parts(now)
        lines = [_joined(place, step, f"{loss:<14}", speed, self._left(now)) for speed in speeds]
        return next((line for line in lines if len(line) < self.console.width), lines[-1])

    def _forms(self, now: float) -> Iterator[tuple[str, str]]:
        """What stands left and right of the bar, from the longest form to the shortest."""
        epoch = f"{self._progress.epochs + 1}/{self.settings.epochs}"
        left = self._left(now)
        loss, best, value, speed, short = self._parts(now)
        yield f"epoch {epoch}", _joined(loss, best, speed, left)
        yield epoch, _joined(loss, best, speed, left)
        yield epoch, _joined(loss, best, short, left)
        yield epoch, _joined(loss, value, short, left)
        yield epoch, _joined(loss, short, left)
        yield epoch, _joined(loss, left)
        yield epoch, loss

    def _parts(self, now: float) -> tuple[str, str, str, str, str]:
        """Loss, best value with and without its name, speed with and without its unit; empty where there is none."""
        best, speed = self._progress.best, self.pace.samples_per_second(now)
        loss = "" if self._loss is None else f"loss {number(float(self._loss) * self.process_group.world_size)}"
        name = (self.settings.monitor or " ").split(" ", 1)[1]
        bests = ("", "") if best is None else (f"best {name} {number(best)}", f"best {number(best)}")
        speeds = ("", "") if speed is None else (f"{short_number(speed)} samples/s", f"{short_number(speed)}/s")
        return loss, *bests, *speeds

    def _left(self, now: float) -> str:
        """The time that is left of the epoch and of the run, which may end early."""
        steps, epochs = self._steps - self._progress.epoch_steps, self.settings.epochs - self._progress.epochs - 1
        left = self.pace.left(now, steps=max(0, steps), epochs=max(0, epochs), steps_per_epoch=self._steps)
        if left is None:
            return ""
        bound = "<" if self.settings.early_stop else ""
        return f"left {duration(left[0])}, run {bound}{duration(left[1])}"


def _chart(name: str) -> str:
    """The tag of an epoch's value: training and validation stand in one group of charts."""
    return f"{name.removeprefix('val_')}/valid" if name.startswith("val_") else f"{name}/train"


def _tags(rates: Sequence[float]) -> dict[str, float]:
    if len(rates) == 1:
        return {"learning_rate": rates[0]}
    return {f"learning_rate/group_{index}": rate for index, rate in enumerate(rates)}


def _joined(*parts: str) -> str:
    return "  ".join(filter(None, parts))
