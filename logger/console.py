"""What a person sees while a run goes on: a bar in a terminal, plain lines in a file, and the same in train.log."""

import contextlib
import logging
import sys
import time
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from utils.files import LogFile


class _Lines(logging.Handler):
    """Prints above the progress bar, if there is one. Warnings go to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        with contextlib.suppress(OSError):  # a closed pipe or a full disk behind it is no reason to stop a run
            tqdm.write(self.format(record), file=stream)
            stream.flush()


class _Kept(logging.Handler):
    """Writes to a file what is printed. A full disk does not stop it, nor does it stop the run."""

    def __init__(self, path: Path, level: int) -> None:
        super().__init__(level)
        self.file = LogFile(path)
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        self.file.append(f"{self.format(record)}\n".encode())


class Console:
    """verbosity 0: warnings only; 1: a line an epoch; 2: also what happens within it."""

    def __init__(self, verbosity: int) -> None:
        self.verbosity = verbosity
        self.logger = logging.getLogger("run")
        self.logger.propagate = False
        self.logger.setLevel(logging.INFO)
        self._lines = _Lines(logging.WARNING if verbosity == 0 else logging.INFO)

    def open(self, path: Path | None) -> None:
        """Begin to print, and to write what is printed to a file too."""
        self.logger.handlers = [self._lines]
        if path is not None:
            self.logger.addHandler(_Kept(path, self._lines.level))

    def close(self) -> None:
        self.logger.handlers = []

    def info(self, message: str) -> None:
        self.logger.info(message)

    def detail(self, message: str) -> None:
        """For verbosity 2."""
        if self.verbosity >= 2:
            self.logger.info(message)

    def warn(self, message: str) -> None:
        self.logger.warning("warning: %s", message)

    def progress(self, title: str, total: int, done: int = 0) -> "Progress":
        return Progress(title, total, done, self) if self.verbosity >= 2 else Progress(title, total, done, None)


class Progress:
    """The progress of an epoch: a bar where the output is a terminal, lines where it is not."""

    INTERVAL = 0.1  # seconds between two drawings of the bar, so that the device is hardly ever waited for

    def __init__(self, title: str, total: int, done: int, console: Console | None) -> None:
        self.title, self.total, self.done, self.console = title, total, done, console
        self._next = 0.0
        self._bar: tqdm | None = None
        if console and sys.stdout.isatty():
            self._bar = tqdm(
                total=total, initial=done, desc=title, unit=" steps", leave=False, file=sys.stdout, dynamic_ncols=True
            )

    def advance(self, loss: Tensor | float) -> None:
        """One step more; the loss is read only when the bar is drawn."""
        self.done += 1
        if self._bar is not None and time.monotonic() >= self._next:
            self._bar.set_postfix_str(f"loss {float(loss):.4g}", refresh=False)
            self._bar.update(self.done - self._bar.n)
            self._next = time.monotonic() + self.INTERVAL

    def line(self, text: str) -> None:
        """A line for the file, where there is no bar."""
        if self.console and self._bar is None:
            self.console.detail(f"{self.title}  step {self.done}/{self.total}  {text}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def number(value: float) -> str:
    """To four figures, zeros at the end included, so that columns stay where they are."""
    return f"{value:#.4g}".removesuffix(".")
