"""What a run says of itself while it trains: to the console, to metrics.jsonl and to TensorBoard."""

import time
from collections.abc import Mapping, Sequence

from torch import Tensor

from base.progress import Progress
from logger.console import Console, number
from logger.writers import Writers


class Report:
    """The console and the writers of one run, fed once a step, once a window and once an epoch."""

    def __init__(self, console: Console, writers: Writers, *, epochs: int, log_every_steps: int) -> None:
        self.console, self.writers = console, writers
        self.epochs, self.log_every_steps = epochs, log_every_steps
        self._loss: Tensor | float | None = None

    def begin_epoch(self, progress: Progress, steps: int) -> None:
        """The training of an epoch of so many optimizer steps begins, or goes on."""
        self._samples, self._start, self._seconds = 0, time.perf_counter(), 0.0
        self._bar = self.console.progress(f"epoch {progress.epochs + 1}/{self.epochs}", steps, progress.epoch_steps)

    def step(self, loss: Tensor | float, samples: int) -> None:
        """An optimizer step, its loss and its number of samples."""
        self._loss = loss
        self._samples += samples
        self._bar.advance(loss)

    def window(self, progress: Progress, loss: Tensor | float, means: Mapping[str, float]) -> None:
        """A point of the curves within an epoch: the means since the point before. loss: of this very step."""
        self._bar.line(f"loss {number(float(loss))}")
        points = {f"{name}/step": value for name, value in means.items()}
        self.writers.scalars(progress.steps, points | _tags(progress.rates))

    def end_training(self) -> None:
        """The training of an epoch ends, or is interrupted; its validation follows."""
        self._bar.close()
        self._seconds = time.perf_counter() - self._start

    def epoch(self, progress: Progress, values: Mapping[str, float], *, best: bool) -> None:
        """The epoch's line in metrics.jsonl and the console, and its points in TensorBoard."""
        speed = {"samples_per_second": self._samples / max(self._seconds, 1e-9)}
        place = {"epoch": progress.epochs, "step": progress.steps}
        self.writers.epoch({**place, **values, "lr": progress.rates[0], **speed, "seconds": self._seconds})
        scalars = {_chart(name): value for name, value in values.items()} | speed
        if progress.steps % self.log_every_steps:  # else the window of this step has them
            scalars |= _tags(progress.rates)
        self.writers.scalars(progress.steps, scalars)
        title = f"epoch {progress.epochs:>{len(str(self.epochs))}}/{self.epochs}"
        self.console.info(f"{title}  {self._pairs(values)}  {self._seconds:.1f} s{'  best' if best else ''}")

    def _pairs(self, values: Mapping[str, float]) -> str:
        """Each value of training beside the validation's. Without validation, the last step's loss says where it is."""
        shown = []
        for name in (name for name in values if not name.startswith("val_")):
            other = f" / {number(values[f'val_{name}'])}" if f"val_{name}" in values else ""
            if name == "loss" and not other and self._loss is not None:
                other = f" (last step {number(float(self._loss))})"
            shown.append(f"{name} {number(values[name])}{other}")
        return "  ".join(shown)


def _chart(name: str) -> str:
    """The tag of an epoch's value: training and validation stand in one group of charts."""
    return f"{name.removeprefix('val_')}/valid" if name.startswith("val_") else f"{name}/train"


def _tags(rates: Sequence[float]) -> dict[str, float]:
    if len(rates) == 1:
        return {"learning_rate": rates[0]}
    return {f"learning_rate/group_{index}": rate for index, rate in enumerate(rates)}
