"""The epochs of a run as a table of aligned columns, for terminals of at least 42 columns."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from logger.console import styled
from utils.text import count, duration, number

CELL = 9  # columns of a number, as in 1.234e-05
TIME = 6  # as in "3.1 s"
MARK = 4  # "best"
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
    """One row per epoch.

    Values that do not fit are left out, and the header says so. A value that is measured in some epochs keeps its
    columns, blank in the others. monitored: a value that is shown after the loss if some are left out.
    """

    def __init__(self, epochs: int, *, monitored: str = "") -> None:
        self.epochs = epochs
        self.monitored = monitored
        self.first = max(len("epoch"), 2 * len(str(epochs)) + 1)
        self._seen: dict[str, Mapping[str, float]] = {}
        self._header: list[str] = []
        self._lines = 0  # printed since the header, other messages included

    def row(self, epoch: int, values: Values, *, seconds: float, best: bool, width: int) -> Iterator[str]:
        """The line of an epoch, preceded by the header when due. width: columns of the terminal."""
        shown = self._with_blanks(values)
        columns, gap = self._fitting(shown, width)
        if len(columns) < len(shown):
            names = ("loss", self.monitored, self.monitored.removeprefix("val_"))
            columns, gap = self._fitting({**{name: shown[name] for name in shown if name in names}, **shown}, width)
        header = self._header_of(columns, len(shown) - len(columns), gap)
        if header != self._header or self._lines >= HEADER_EVERY:
            self._header = header
            self._lines = 0
            yield from header
        self._lines += 1

        start = f"{epoch:>{len(str(self.epochs))}}/{self.epochs}".rjust(self.first)
        line = f"{start}{''.join(each.cells for each in columns)}{'':{gap}}{duration(seconds, fine=True):>{TIME}}"
        if best:
            # two spaces apart even where the numbers are one apart, if there is room
            line += f"{'  ' if len(line) + 2 + MARK < width else ' '}{styled('best', 'good')}"
        yield line

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

    def _fitting(self, values: Shown, width: int) -> tuple[list[_Columns], int]:
        """The first columns that fit, and the spaces between them: two if all values then fit, else one."""
        for gap in (2, 1):
            room = width - 1 - self.first - TIME - MARK - 2 * gap
            columns = [_columns(name, numbers, gap, room) for name, numbers in values.items()]
            if sum(len(each.cells) for each in columns) <= room:
                break
        while len(columns) > 1 and sum(len(each.cells) for each in columns) > room:
            columns.pop()
        return columns, gap

    def _header_of(self, columns: list[_Columns], left_out: int, gap: int) -> list[str]:
        header = []
        if left_out:
            header.append(f"{count(left_out, 'more value')} in metrics.jsonl")
        if titles := "".join(each.title for each in columns).rstrip():
            header.append(" " * self.first + titles)
        header.append(f"{'epoch':>{self.first}}{''.join(each.heads for each in columns)}{'time':>{gap + TIME}}")
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
