"""Formatting of numbers, times and tables, the same everywhere."""

import difflib
import os
import re
import shlex
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")

# C0 and C1 control characters, bidirectional marks, line separators, and bytes that are not UTF-8
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_NOT_OURS = re.compile(rf"(?!\x1b\[(?:0|2|33|1;31|1;32)m){_CONTROL.pattern}")


_PLAIN = re.compile(r"[\w+=:./\\-]+")  # needs no quotes in cmd.exe and PowerShell
OVERRIDE = re.compile(r"[\w$]+(\.[\w$]+)*=")
"""The beginning of a KEY=VALUE on the command line."""


def is_number(text: str) -> bool:
    """Whether ``float`` takes it: also "nan" and "inf"."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def shell_join(words: Iterable[str]) -> str:
    """A command that the user may copy: for cmd.exe and PowerShell on Windows, otherwise for a POSIX shell."""
    if os.name != "nt":
        return shlex.join(words)
    # cmd.exe does not know single quotes, in which shlex puts each path with a backslash
    return " ".join(word if _PLAIN.fullmatch(word) else '"' + word.replace('"', r"\"") + '"' for word in words)


def number(value: float) -> str:
    """Format with four significant digits and trailing zeros, so that columns align: "0.1230", "1.839e+06"."""
    return f"{value:#.4g}".removesuffix(".")


def number_or_dash(value: float | None) -> str:
    """A number in a table, formatted by ``number``; "-" for a missing one. NaN is shown, since it was computed."""
    return "-" if value is None else number(value)


def duration(seconds: float, *, fine: bool = False) -> str:
    """Format a time in up to six columns: "12 s", "4:56", "1h05m", "2d03h". fine: also "0.4 ms", "120 ms", "3.1 s"."""
    whole = round(seconds)
    if fine and seconds < 0.9995:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.00995 else f"{seconds * 1000:.0f} ms"
    if whole < 60:
        return f"{seconds:.1f} s" if fine else f"{seconds:.0f} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02}"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def count(n: int, noun: str) -> str:
    """A number with its noun: "1 epoch", "5,000 steps"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def size(count: int) -> str:
    """Format a number of bytes: "0 B", "404 kB", "1.6 MB", "5.0 GB"."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB")):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1e3:.0f} kB" if count >= 1e3 else f"{count} B"


def table(rows: Iterable[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Lines of aligned columns. right: the columns to align right, such as numbers."""
    return ["  ".join(row).rstrip() for row in aligned(rows, right)]


def aligned(rows: Iterable[Sequence[str]], right: Sequence[int]) -> list[list[str]]:
    """The rows, with every cell padded to the width of its column."""
    rows = list(rows)
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]

    def padded(cell: str, column: int) -> str:
        blank = " " * (widths[column] - width(cell))
        return blank + cell if column in right else cell + blank

    return [[padded(cell, column) for column, cell in enumerate(row)] for row in rows]


def width(text: str) -> int:
    """Width in a terminal: Chinese, Japanese and Korean characters take two columns."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def printable(text: str) -> str:
    """Text for a terminal: control characters, which could move the cursor or worse, become escapes such as \\x1b.

    Line breaks, tabs and the styles of logger/console.py are kept.
    """
    return _NOT_OURS.sub(_as_escape, text)


def one_line(text: str) -> str:
    """Untrusted text in one line: control characters become escapes such as \\x1b."""
    return escape_controls(" ".join(text.split()))


def escape_controls(text: str) -> str:
    """Replace control characters, but for tabs and line breaks (\\n), with escapes such as \\x1b."""
    return _CONTROL.sub(_as_escape, text)


def _as_escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def dotted(path: Iterable[object]) -> str:
    """Keys and indices in the notation of overrides: "trainer.epochs"."""
    return ".".join(map(str, path))


def listed(names: Sequence[str]) -> str:
    """Names for a message: at most five, and the number of the rest."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def at_most(most: int, items: Sequence[T], show: Callable[[T], str] = str) -> list[str]:
    """Lines for a message: the first items, and the number of the rest."""
    return [*map(show, items[:most]), *([f"... and {len(items) - most:,} more"] if len(items) > most else [])]


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that a misspelt one probably means: a similar one, or the only one that contains it."""
    by_lower = {name.lower(): name for name in reversed(list(known))}
    lower = word.lower()
    if close := difflib.get_close_matches(lower, by_lower, n=1, cutoff=0.6):
        return by_lower[close[0]]
    containing = [name for each, name in by_lower.items() if len(word) >= 3 and lower in each]
    return containing[0] if len(containing) == 1 else None


def hint(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the one probably meant, or all known words."""
    names = list(known)
    if close := closest(word, names):
        return f'did you mean "{close}"?'
    return f"expected one of: {', '.join(names)}" if names else "none is defined"
