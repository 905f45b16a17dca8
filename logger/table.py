"""The epochs of a run as a table of aligned columns, which fits into any terminal of 42 columns or more."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from logger.console import styled
from utils.text import duration, number

CELL = 9  # columns of a number, as in 1.234e-05
TIME, MARK = 6, 4  # as in "3.1 s" and "best"
HEADER_EVERY = 30  # lines, so that it is on the screen


class _Group(NamedTuple):
    """A name and its numbers, as training and validation."""

    name: str
    heads: tuple[str, ...]
    cell: int
    """The width of one number."""
    gap: int

    @property
    def width(self) -> int:
        return len(self.heads) * (self.gap + self.cell)

    def line(self, cells: Sequence[str]) -> str:
        return "".join(f"{'':{self.gap}}{cell:>{self.cell}.{self.cell}}" for cell in cells)

    def names(self) -> str:
        """What stands above the heads: the name of several numbers."""
        inner = self.width - self.gap
        return " " * self.width if len(self.heads) == 1 else f"{'':{self.gap}}{self.name[:inner]:^{inner}}"


class EpochTable:
    """A row an epoch, of several lines where the terminal is too narrow for all values in one."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.first = max(len("epoch"), 2 * len(str(epochs)) + 1)
        self._layout: list[list[_Group]] = []
        self._lines = 0
        """Rows since the header, and what came between them."""

    def row(
        self, epoch: int, values: Mapping[str, Mapping[str, float]], *, seconds: float, best: bool, width: int
    ) -> Iterator[str]:
        """The lines of an epoch, after those of the header where it is time for it.

        values: numbers by name and head, as {"loss": {"train": 1.9, "valid": 1.7}}.
        """
        layout = self._lay_out(values, width)
        if layout != self._layout or self._lines >= HEADER_EVERY:
            self._layout, self._lines = layout, 0
            yield from self._header()
        self._lines += 1
        start = f"{epoch:>{len(str(self.epochs))}}/{self.epochs}".rjust(self.first)
        gap = " " * layout[0][0].gap
        end = f"{gap}{duration(seconds, fine=True):>{TIME}}" + (f"{gap}{styled('best', 'good')}" if best else "")
        for groups in layout:
            cells = [group.line([_cell(values[group.name][head]) for head in group.heads]) for group in groups]
            yield f"{start}{''.join(cells)}{end}".rstrip()
            start, end = " " * self.first, ""

    def interrupted(self) -> None:
        """Another line came in between, and the header is one line further away."""
        self._lines += 1

    def _lay_out(self, values: Mapping[str, Mapping[str, float]], width: int) -> list[list[_Group]]:
        """Which values stand in which line: all in one if there is room, with two spaces between them if possible."""
        for gap in (2, 1):
            room = width - 1 - self.first - TIME - MARK - 2 * gap
            groups = [_group(name, tuple(numbers), gap, room) for name, numbers in values.items()]
            if sum(group.width for group in groups) <= room:
                break
        lines: list[list[_Group]] = [[]]
        for group in groups:
            if lines[-1] and sum(other.width for other in lines[-1]) + group.width > room:
                lines.append([])
            lines[-1].append(group)
        return lines

    def _header(self) -> Iterator[str]:
        start, end = f"{'epoch':>{self.first}}", f"{'time':>{self._layout[0][0].gap + TIME}}"
        for groups in self._layout:
            above = "".join(group.names() for group in groups).rstrip()
            if above:
                yield styled(" " * self.first + above, "dim")
            heads = "".join(group.line(group.heads if len(group.heads) > 1 else [group.name]) for group in groups)
            yield styled(f"{start}{heads}{end}".rstrip(), "dim")
            start, end = " " * self.first, ""


def _group(name: str, heads: tuple[str, ...], gap: int, room: int) -> _Group:
    """A group as wide as its numbers and its name, if there is room for it."""
    count = len(heads)
    wanted = -(-(len(name) - gap * (count - 1)) // count)
    return _Group(name, heads, max(CELL, min(wanted, room // count - gap)), gap)


def _cell(value: float) -> str:
    return next(text for text in (number(value), f"{value:.2e}", f"{value:.1e}") if len(text) <= CELL)
