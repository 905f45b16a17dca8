"""The epochs of a run as a table of aligned columns, for terminals of at least 42 columns."""

from collections.abc import Iterable, Iterator, Mapping

from logger.console import styled
from utils.text import count, duration, number

CELL = 9  # columns of a number, as in 1.234e-05
LONGEST = 20  # columns of a name
TIME = 6  # as in "3.1 s"
MARK = 4  # "best"
HEADER_EVERY = 30  # lines, so that a header stays on screen


class EpochTable:
    """One row per epoch, and one column per value, under its name in metrics.jsonl.

    Values that do not fit are left out, and the header says so. A value that is measured in some epochs keeps its
    column, blank in the others. monitored: a value that is shown next to the loss.
    """

    def __init__(self, epochs: int, *, monitored: str = "") -> None:
        self.epochs = epochs
        self.monitored = monitored
        self.first = max(len("epoch"), 2 * len(str(epochs)) + 1)
        self._names: dict[str, None] = {}
        self._header: list[str] = []
        self._lines = 0  # printed since the header, other messages included

    def row(self, epoch: int, values: Mapping[str, float], *, seconds: float, best: bool, width: int) -> Iterator[str]:
        """The line of an epoch, preceded by the header when due. width: columns of the terminal."""
        self._names |= dict.fromkeys(values)
        columns = self._columns(width)
        header = [self._line("epoch", [f"{name:>{cell}.{cell}}" for name, cell in columns.items()], "time")]
        if left_out := len(self._names) - len(columns):
            header.insert(0, f"{count(left_out, 'more value')} in metrics.jsonl")
        if header != self._header or self._lines >= HEADER_EVERY:
            self._header = header
            self._lines = 0
            yield from [styled(line, "dim") for line in header]
        self._lines += 1
        cells = [f"{_cell(values.get(name)):>{cell}}" for name, cell in columns.items()]
        line = self._line(f"{epoch:>{len(str(self.epochs))}}/{self.epochs}", cells, duration(seconds, fine=True))
        yield f"{line}  {styled('best', 'good')}" if best else line

    def interrupted(self) -> None:
        """Call when another line was printed, which moves the header up."""
        self._lines += 1

    def _columns(self, width: int) -> dict[str, int]:
        """The names that fit, each before that of its validation, and the width of their columns."""
        room = width - 1 - self.first - 2 - TIME - 2 - MARK
        columns: dict[str, int] = {}
        training = dict.fromkeys(name.removeprefix("val_") for name in ("loss", self.monitored, *self._names))
        pairs = [name for each in training for name in (each, f"val_{each}")]
        for name in filter(self._names.__contains__, pairs):
            cell = max(CELL, min(len(name), LONGEST))
            room -= 2 + cell
            if room < 0 and columns:
                break
            columns[name] = cell + min(room, 0)
        return columns

    def _line(self, first: str, cells: Iterable[str], time: str) -> str:
        return "  ".join([first.rjust(self.first), *cells, time.rjust(TIME)])


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return next(text for text in (number(value), f"{value:.2e}", f"{value:.1e}") if len(text) <= CELL)
