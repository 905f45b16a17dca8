"""Console output of a run: messages, also written to train.log, and a progress bar at the bottom of a terminal."""

import contextlib
import io
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

from utils.files import LogFile
from utils.streams import is_plain, terminal_width
from utils.text import printable

Item = TypeVar("Item")
BarTexts = Callable[[Mapping[str, Any]], Iterable[tuple[str, str]]]
"""Maps a bar's state (tqdm's ``format_dict``) to texts for its left and right, from longest to shortest."""

INTERVAL = 0.2  # seconds between redraws: each reads the loss, and so waits for the device
DELAY = 0.3  # seconds that an evaluation may take without a bar
MARGIN = 3  # columns left free, so that a ^C echoed by the terminal does not start a second line
MIN_BAR = 6  # columns of the bar itself
STYLES = {"dim": "2", "good": "1;32", "warning": "33", "bad": "1;31"}
# tqdm's own lock is also for several processes; Python 3.14 starts a process more for such a lock
tqdm.set_lock(threading.RLock())
_STYLED = re.compile(r"\x1b\[[0-9;]*m")


def styled(text: str, style: str) -> str:
    """Text with an ANSI style, which is stripped for plain output."""
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m"


def unstyled(text: str) -> str:
    return _STYLED.sub("", text)


def in_notebook() -> bool:
    """Whether output goes to a notebook cell: not a terminal, but lines can be redrawn there too."""
    return type(sys.stdout).__module__ == "ipykernel.iostream"


@contextlib.contextmanager
def counting(title: str, unit: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Receives numbers of finished items and shows them as a bar on stderr, if that is a terminal.

    total: None if it is known only at the end.
    """
    hidden = sys.stderr is None or not sys.stderr.isatty()
    with tqdm(total=total, desc=title, unit=f" {unit}", leave=False, disable=hidden, dynamic_ncols=True) as bar:
        yield bar.update


class Bar(tqdm):  # type: ignore[misc]
    """A tqdm bar between two texts chosen to fit the terminal; never takes more than one line.

    shown: False to only count and time, without drawing.
    """

    monitor_interval = 0  # no thread: only ``update`` draws

    def __init__(
        self, texts: BarTexts, items: Iterable[Any] | None = None, *, console: "Console", shown: bool, **options: Any
    ) -> None:
        self.texts = texts
        self.console = console
        self.shown = shown
        super().__init__(
            items,
            file=sys.stdout if shown else io.StringIO(),
            bar_format="{left} {percentage:3.0f}% |{bar}| {right}",
            leave=False,
            mininterval=INTERVAL,
            miniters=1,
            ncols=80,  # fixed, since tqdm draws nothing in a terminal that reports no size; see format_dict
            nrows=24,
            **options,
        )

    def status_printer(self, file: Any) -> Callable[[str], None]:
        """Overwrite the whole line, including a ^C or the rest of a wider bar, at any width."""

        def draw(text: str) -> None:
            columns = max(1, self.console.width - 1)
            text = text[:columns]
            with contextlib.suppress(OSError, ValueError):  # the terminal is gone
                # the text twice: the cursor stays behind it
                file.write(f"\r{text:<{columns}}\r{text}")
                file.flush()

        return draw

    @property
    def state(self) -> dict[str, Any]:
        """tqdm's state: n, initial, total, elapsed (seconds), rate (steps per second; None at first)."""
        return dict(super().format_dict)

    @property
    def format_dict(self) -> dict[str, Any]:
        state = self.state
        columns = max(1, self.console.width - MARGIN)
        left = right = ""
        for left, right in self.texts(state):
            if len(f"{left} 100% || {right}") + MIN_BAR <= columns:
                break
        return {**state, "ncols": columns, "left": left, "right": right}

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        return self.shown and bool(super().display(msg, pos))


class Console:
    """verbosity 0: warnings only; 1: one line per epoch; 2: also progress within the epoch. silent: no output."""

    def __init__(self, verbosity: int, *, silent: bool = False) -> None:
        self.verbosity = 0 if silent else verbosity
        self.silent = silent
        self._log: LogFile | None = None
        self._bar: Bar | None = None
        self._warned_of = set[str]()

    def open(self, path: Path) -> None:
        """Start printing, and logging the output to a file."""
        if not self.silent:
            self._log = LogFile(path)
            if path.exists() and path.read_bytes()[-1:] not in (b"", b"\n"):  # after a truncated copy or a power cut
                self._log.append(b"\n")

    def close(self) -> None:
        self.clear()
        self._log = None

    def info(self, message: str) -> None:
        if self._log is not None and self.verbosity > 0:
            self._say(message, sys.stdout)

    def warn(self, message: str, *, once: str = "") -> None:
        """once: what the message is about, if it is shown only the first time."""
        if not self.silent and once not in self._warned_of:
            self._warned_of |= {once} - {""}
            self._say(f"{styled('warning:', 'warning')} {message}", sys.stderr)

    def _say(self, message: str, stream: TextIO | None) -> None:
        """Print above the progress bar, if any, and log. A closed pipe or a full disk does not stop a run."""
        text = printable(message)
        plain = unstyled(text)
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                # from the first column, where a ^C may be
                tqdm.write(plain if is_plain(stream) else f"\r{text}", file=stream)
                stream.flush()
        if self._log is not None:
            time = datetime.now().isoformat(" ", "seconds")
            self._log.append(f"{time} {plain}\n".encode(errors="backslashreplace"))

    @property
    def width(self) -> int:
        """Columns of the terminal; 80 in a file or a notebook."""
        # in a notebook, the stream's file is the terminal in which the server was started
        return 80 if in_notebook() else terminal_width()

    @property
    def shows_bar(self) -> bool:
        """Whether progress within an epoch is a bar."""
        return self.verbosity >= 2 and (not is_plain(sys.stdout) or in_notebook())

    @property
    def prints_progress(self) -> bool:
        """Whether progress within an epoch is printed as lines, since a bar cannot be shown."""
        return self.verbosity >= 2 and not self.shows_bar

    def bar(self, texts: BarTexts, **options: Any) -> Bar:
        """Show a progress bar in place of the previous one. options: tqdm's."""
        self.clear()
        self._bar = Bar(texts, console=self, shown=self.shows_bar, disable=self.verbosity < 2, **options)
        return self._bar

    def clear(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def track(self, title: str, items: Iterable[Item], total: int) -> Iterable[Item]:
        """Iterate over items, with a progress bar if they take long."""
        if not self.shows_bar:
            return items

        def texts(state: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
            seconds = (total - state["n"]) * state["elapsed"] / max(1, state["n"])
            yield title, f"ETA {tqdm.format_interval(seconds)}" if state["n"] else ""

        return self.bar(texts, items=items, total=total, delay=DELAY)
