"""The epochs of a run as a table of aligned columns that fits any terminal of 42 columns or more."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from logger.console import styled
from utils.text import count, duration, number

CELL = 9  # columns of a number, as in 1.234e-05
TIME = 6  # as in "3.1 s"
MARK = 4  # "best"
MAX_LINES = 2  # of an epoch
HEADER_EVERY = 30  # lines, so that a header stays on the screen

Values = Mapping[str, Mapping[str, float]]
"""Numbers by name and column, as in {"loss": {"train": 1.9, "valid": 1.7}}; a name alone has the column ""."""


class _ColumnGroup(NamedTuple):
    """The columns of one name, such as training and validation."""

    name: str
    columns: tuple[str, ...]
    cell: int
    """The width of one column."""
    gap: int

    @property
    def width(self) -> int:
        return len(self.columns) * (self.gap + self.cell)

    def line(self, cells: Sequence[str]) -> str:
        return "".join(f"{'':{self.gap}}{cell:>{self.cell}.{self.cell}}" for cell in cells)

    def title(self) -> str:
        """The name above several columns; blank if there is one column, which carries the name itself."""
        inner = self.width - self.gap
        return " " * self.width if len(self.columns) == 1 else f"{'':{self.gap}}{self.name[:inner]:^{inner}}"


class EpochTable:
    """One row per epoch, of two lines if the terminal is too narrow for all values in one.

    What does not fit into two is not shown, and the header says so. monitored: the name of a value that always is.
    """

    def __init__(self, epochs: int, *, monitored: str = "") -> None:
        self.epochs = epochs
        self.monitored = monitored
        self.first = max(len("epoch"), 2 * len(str(epochs)) + 1)
        self._layout: list[list[_ColumnGroup]] = []
        self._left_out = 0  # values that are not shown
        self._lines = 0  # printed since the header, other messages included

    def row(self, epoch: int, values: Values, *, seconds: float, best: bool, width: int) -> Iterator[str]:
        """The lines of an epoch, after those of the header when it is due. width: columns of the terminal."""
        layout = self._lay_out(values, width)
        if layout != self._layout or self._lines >= HEADER_EVERY:
            self._layout = layout
            self._lines = 0
            yield from self._header()
        self._lines += 1
        gap = " " * layout[0][0].gap
        start = f"{epoch:>{len(str(self.epochs))}}/{self.epochs}".rjust(self.first)
        end = f"{gap}{duration(seconds, fine=True):>{TIME}}" + (f"{gap}{styled('best', 'good')}" if best else "")
        for groups in layout:
            cells = [group.line([_cell(values[group.name][column]) for column in group.columns]) for group in groups]
            yield f"{start}{''.join(cells)}{end}".rstrip()
            start, end = " " * self.first, ""

    def interrupted(self) -> None:
        """Another line was printed, and the header is one line further up."""
        self._lines += 1

    def _lay_out(self, values: Values, width: int) -> list[list[_ColumnGroup]]:
        """The column groups of each line that is shown; if some are not, the monitored value follows the loss."""
        lines = self._divide(values, width)
        if len(lines) > MAX_LINES:
            names = (self.monitored, self.monitored.removeprefix("val_"))
            moved = {name: numbers for name, numbers in values.items() if name in ("loss", *names)}
            lines = self._divide({**moved, **values}, width)
        self._left_out = sum(map(len, lines[MAX_LINES:]))
        return lines[:MAX_LINES]

    def _divide(self, values: Values, width: int) -> list[list[_ColumnGroup]]:
        """Column groups line by line: one line if there is room, with two spaces between columns if possible."""
        for gap in (2, 1):
            room = width - 1 - self.first - TIME - MARK - 2 * gap
            groups = [_column_group(name, tuple(numbers), gap, room) for name, numbers in values.items()]
            if sum(group.width for group in groups) <= room:
                break
        lines: list[list[_ColumnGroup]] = [[]]
        for group in groups:
            if lines[-1] and sum(other.width for other in lines[-1]) + group.width > room:
                lines.append([])
            lines[-1].append(group)
        return lines

    def _header(self) -> Iterator[str]:
        if self._left_out:
            yield styled(f"{count(self._left_out, 'more value')} in metrics.jsonl", "dim")
        start = f"{'epoch':>{self.first}}"
        end = f"{'time':>{self._layout[0][0].gap + TIME}}"
        for groups in self._layout:
            titles = "".join(group.title() for group in groups).rstrip()
            if titles:
                yield styled(" " * self.first + titles, "dim")
            heads = [group.line(group.columns if len(group.columns) > 1 else [group.name]) for group in groups]
            yield styled(f"{start}{''.join(heads)}{end}".rstrip(), "dim")
            start, end = " " * self.first, ""


def _column_group(name: str, columns: tuple[str, ...], gap: int, room: int) -> _ColumnGroup:
    """A group as wide as its numbers and its name, if there is room for it."""
    number_of_columns = len(columns)
    wanted = -(-(len(name) - gap * (number_of_columns - 1)) // number_of_columns)
    return _ColumnGroup(name, columns, max(CELL, min(wanted, room // number_of_columns - gap)), gap)


def _cell(value: float) -> str:
    return next(text for text in (number(value), f"{value:.2e}", f"{value:.1e}") if len(text) <= CELL)
