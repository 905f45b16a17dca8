"""What a person sees while a run goes on: a bar in a terminal, plain lines in a file, and the lines in train.log."""

import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO, TypeVar

from tqdm import tqdm

from logger.bar import INTERVAL, Bar
from utils.files import LogFile
from utils.text import duration

Item = TypeVar("Item")
STYLES = {"dim": "2", "good": "1;32", "warning": "33"}
_STYLED = re.compile(r"\x1b\[[0-9;]*m")


def styled(text: str, style: str) -> str:
    """A text in a style, which is taken off again wherever plain text is wanted."""
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m"


def is_plain(stream: TextIO) -> bool:
    """Whether nothing but text may be written: to a file or a pipe, or where the user or the terminal asks for it."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb" or not stream.isatty()


class _Lines(logging.Handler):
    """Prints above the progress bar, if there is one. Warnings go to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        text = self.format(record)
        with contextlib.suppress(OSError):  # a closed pipe or a full disk behind it is no reason to stop a run
            tqdm.write(_STYLED.sub("", text) if is_plain(stream) else text, file=stream)
            stream.flush()


class _Kept(logging.Handler):
    """Writes to a file what is printed. A full disk does not stop it, nor does it stop the run."""

    def __init__(self, path: Path, level: int) -> None:
        super().__init__(level)
        self.file = LogFile(path)
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        self.file.append(_STYLED.sub("", f"{self.format(record)}\n").encode())


class Console:
    """verbosity 0: warnings only; 1: a line an epoch; 2: also what happens within it. silent: nothing at all."""

    DELAY = 0.3  # seconds that an evaluation may take before it shows how far it is

    def __init__(self, verbosity: int, *, silent: bool = False) -> None:
        self.verbosity, self.silent = 0 if silent else verbosity, silent
        self.logger = logging.getLogger("run")
        self.logger.propagate = False
        self.logger.setLevel(logging.INFO)
        self._lines = _Lines(logging.WARNING if verbosity == 0 else logging.INFO)
        self._bar: Bar | None = None

    def open(self, path: Path | None) -> None:
        """Begin to print, and to write what is printed to a file too."""
        self.logger.handlers = [logging.NullHandler() if self.silent else self._lines]
        if path is not None and not self.silent:
            self.logger.addHandler(_Kept(path, self._lines.level))

    def close(self) -> None:
        self.clear()
        self.logger.handlers = []

    def info(self, message: str) -> None:
        self.logger.info(message)

    def warn(self, message: str) -> None:
        self.logger.warning("%s %s", styled("warning:", "warning"), message)

    @property
    def width(self) -> int:
        """Columns of the terminal; 80 in a file."""
        with contextlib.suppress(OSError):
            return os.get_terminal_size(sys.stdout.fileno()).columns or 80
        return 80

    @property
    def draws(self) -> bool:
        """Whether there is a bar."""
        return self.verbosity >= 2 and not is_plain(sys.stdout)

    @property
    def lists(self) -> bool:
        """Whether there are lines within an epoch, in the bar's place."""
        return self.verbosity >= 2 and is_plain(sys.stdout)

    def draw(self, done: int, total: int, forms: Iterable[tuple[str, str]]) -> None:
        """Show how far something is. forms: what stands left and right of the bar, from the longest to the shortest."""
        if self.draws:
            self._bar = self._bar or Bar(sys.stdout)
            self._bar.draw(done, total, forms, width=self.width)

    def clear(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def followed(self, title: str, items: Iterable[Item], total: int) -> Iterable[Item]:
        """The items themselves. If they take long, a bar goes along with them."""
        return self._followed(title, items, total) if self.draws else items

    def _followed(self, title: str, items: Iterable[Item], total: int) -> Iterator[Item]:
        start = time.monotonic()
        due = start + self.DELAY
        for done, item in enumerate(items):
            if (now := time.monotonic()) >= due:
                left = f"left {duration((now - start) * (total - done) / done)}" if done else ""
                self.draw(done, total, [(title, left), (title, "")])
                due = now + INTERVAL
            yield item
        if due > start + self.DELAY:
            self.clear()
