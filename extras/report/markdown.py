"""Tables of Markdown that can be read as plain text too."""

import re
import unicodedata
from collections.abc import Sequence

from utils.text import number


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A table whose columns are aligned in the source. The first ``left`` columns are texts, the others numbers."""
    widths = [max(3, *(_width(row[column]) for row in [head, *rows])) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = []
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            blank = " " * (width - _width(cell))
            padded.append(cell + blank if column < left else blank + cell)
        return f"| {' | '.join(padded)} |"

    rule = [("-" * width) if column < left else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join([line(head), line(rule), *map(line, rows)])


def escaped(text: str) -> str:
    """A name as Markdown shows it: with its underscores, dollars and bars, and in one line."""
    # an underscore within a word is no markup
    return re.sub(r"[\\`*{}\[\]<>#|$~]|\b_+|_+\b", _behind_strokes, " ".join(text.split()))


def _behind_strokes(found: re.Match[str]) -> str:
    return "".join(f"\\{letter}" for letter in found[0])


def figure(value: float, form: str = "") -> str:
    """A number in a table; a dash where there is none. form: as of str.format; the default is four figures."""
    if value != value:
        return "-"
    return format(value, form) if form else number(value)


def _width(text: str) -> int:
    """Columns of a terminal: letters of China, Japan and Korea take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
