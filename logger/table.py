"""The epochs of a run as a table of aligned columns, for terminals of at least 42 columns."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from logger.console import styled
from utils.text import count, duration, number

CELL = 9  # columns of a number, as in 1.234e-05
TIME = 6  # as in "3.1 s"
MARK = 4  # "best"
MAX_LINES = 2  # per epoch
HEADER_EVERY = 30  # lines, so that a header stays on screen

Values = Mapping[str, Mapping[str, float]]
"""Numbers by name and column, as in {"loss": {"train": 1.9, "valid": 1.7}}; a name alone has the column ""."""
Shown = Mapping[str, Mapping[str, float | None]]
"""The same with None where nothing is known."""


class _Columns(NamedTuple):
    """The columns of one name, such as training and validation, as three texts of equal width."""

    title: str
    """The name above several columns; blank above a single column, which shows the name itself."""
    heads: str
    cells: str


class EpochTable:
    """One row per epoch, on two lines if the terminal is too narrow for one.

    Values that do not fit on two lines are left out, and the header says so. A value that is measured in some epochs
    keeps its columns, blank in the others. monitored: a value that is always shown.
    """

    def __init__(self, epochs: int, *, monitored: str = "") -> None:
        self.epochs = epochs
        self.monitored = monitored
        self.first = max(len("epoch"), 2 * len(str(epochs)) + 1)
        self._seen: dict[str, Mapping[str, float]] = {}
        self._header: list[str] = []
        self._lines = 0  # printed since the header, other messages included

    def row(self, epoch: int, values: Values, *, seconds: float, best: bool, width: int) -> Iterator[str]:
        """The lines of an epoch, preceded by the header when due. width: columns of the terminal."""
        shown = self._with_blanks(values)
        lines, gap = self._divide(shown, width)
        if len(lines) > MAX_LINES:  # the monitored value follows the loss
            names = ("loss", self.monitored, self.monitored.removeprefix("val_"))
            lines, gap = self._divide({**{name: shown[name] for name in shown if name in names}, **shown}, width)
        header = self._header_of(lines, gap)
        if header != self._header or self._lines >= HEADER_EVERY:
            self._header = header
            self._lines = 0
            yield from header
        self._lines += 1

        start = f"{epoch:>{len(str(self.epochs))}}/{self.epochs}".rjust(self.first)
        end = f"{'':{gap}}{duration(seconds, fine=True):>{TIME}}"
        if best:
            used = len(start) + sum(len(columns.cells) for columns in lines[0]) + len(end)
            # two spaces apart even where the numbers are one apart, if there is room
            end += f"{'  ' if used + 2 + MARK < width else ' '}{styled('best', 'good')}"
        for line in lines[:MAX_LINES]:
            yield f"{start}{''.join(columns.cells for columns in line)}{end}".rstrip()
            start, end = " " * self.first, ""

    def interrupted(self) -> None:
        """Call when another line was printed, which moves the header up."""
        self._lines += 1

    def _with_blanks(self, values: Values) -> Shown:
        """The values with all columns so far."""
        for name, numbers in values.items():
            if len(numbers) >= len(self._seen.get(name, ())):
                self._seen[name] = numbers
        shown: dict[str, Mapping[str, float | None]] = {}
        for name, seen in self._seen.items():
            numbers = values.get(name, {})
            if len(seen) > len(numbers) == 1:  # training alone
                numbers = {next(iter(seen)): numbers[""]}
            shown[name] = {column: numbers.get(column) for column in seen}
        return shown

    def _divide(self, values: Shown, width: int) -> tuple[list[list[_Columns]], int]:
        """The columns line by line, and the spaces between them: two if all values then fit on one line, else one."""
        for gap in (2, 1):
            room = width - 1 - self.first - TIME - MARK - 2 * gap
            all_columns = [_columns(name, numbers, gap, room) for name, numbers in values.items()]
            if sum(len(columns.cells) for columns in all_columns) <= room:
                break
        lines: list[list[_Columns]] = [[]]
        for columns in all_columns:
            if lines[-1] and sum(len(other.cells) for other in lines[-1]) + len(columns.cells) > room:
                lines.append([])
            lines[-1].append(columns)
        return lines, gap

    def _header_of(self, lines: list[list[_Columns]], gap: int) -> list[str]:
        header = []
        if left_out := sum(map(len, lines[MAX_LINES:])):
            header.append(f"{count(left_out, 'more value')} in metrics.jsonl")
        start, end = f"{'epoch':>{self.first}}", f"{'time':>{gap + TIME}}"
        for line in lines[:MAX_LINES]:
            if titles := "".join(columns.title for columns in line).rstrip():
                header.append(" " * self.first + titles)
            header.append(f"{start}{''.join(columns.heads for columns in line)}{end}".rstrip())
            start, end = " " * self.first, ""
        return [styled(text, "dim") for text in header]


def _columns(name: str, numbers: Mapping[str, float | None], gap: int, room: int) -> _Columns:
    """Columns as wide as their numbers and their name, if there is room."""
    wanted = -(-(len(name) - gap * (len(numbers) - 1)) // len(numbers))
    width = max(CELL, min(wanted, room // len(numbers) - gap))

    def line(texts: Iterable[str]) -> str:
        return "".join(f"{'':{gap}}{text:>{width}.{width}}" for text in texts)

    heads, cells = line([name]), line(map(_cell, numbers.values()))
    if len(numbers) == 1:
        return _Columns(" " * len(cells), heads, cells)
    inner = len(cells) - gap
    return _Columns(f"{'':{gap}}{name[:inner]:^{inner}}", line(numbers), cells)


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return next(text for text in (number(value), f"{value:.2e}", f"{value:.1e}") if len(text) <= CELL)
