"""How numbers, times and tables are written, everywhere the same."""

import difflib
from collections.abc import Iterable, Sequence


def number(value: float) -> str:
    """With four significant digits, trailing zeros included, so that columns align: "0.1230", "1.839e+06"."""
    return f"{value:#.4g}".removesuffix(".")


def duration(seconds: float, *, fine: bool = False) -> str:
    """A time in at most six columns: "12 s", "4:56", "1h05m", "2d03h". fine: "120 ms" and "3.1 s" too."""
    whole = round(seconds)
    if fine and seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if whole < 60:
        return f"{seconds:.{int(fine)}f} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02}"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def count(n: int, noun: str) -> str:
    """A number with its noun: "1 epoch", "5,000 steps"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def table(rows: Iterable[Sequence[str]], *, right: Sequence[int] = (), gap: str = "  ") -> list[str]:
    """Lines of aligned columns. right: the columns that are aligned to the right, as numbers are."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        gap.join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Lines of a Markdown table. right: the columns that are aligned to the right, as numbers are."""
    rule = ["---:" if index in right else "---" for index in range(len(header))]
    return [f"| {' | '.join(row)} |" for row in (header, rule, *rows)]


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that a mistyped one is probably meant to be: a similar one, or the only one that contains it."""
    by_lower = {name.lower(): name for name in reversed(list(known))}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    if close:
        return by_lower[close[0]]
    containing = [name for lower, name in by_lower.items() if len(word) >= 3 and word.lower() in lower]
    return containing[0] if len(containing) == 1 else None


def hint(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the one that was probably meant, or all there are."""
    names = list(known)
    close = closest(word, names)
    return f'did you mean "{close}"?' if close else f"there are: {', '.join(names) or 'none'}"
