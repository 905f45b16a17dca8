"""What a check before a run found, and how it is printed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["ok", "note", "FAIL"]


@dataclass(frozen=True)
class CheckResult:
    """One check. note: worth a look, and may well be meant. FAIL: training would go wrong."""

    check: str
    verdict: Verdict
    text: str
    cause: str = ""
    """What usually causes it."""


def table(findings: Iterable[CheckResult]) -> Iterator[str]:
    """A line for each check, its further lines and the cause below it."""
    for finding in findings:
        first, *more = finding.text.splitlines()
        yield f"{finding.check:<13} {finding.verdict:<5} {first}"
        yield from (f"{'':<20}{line}" for line in more)
        if finding.cause:
            yield f"{'':<20}usually: {finding.cause}"


def grid(rows: list[tuple[Any, ...]]) -> Iterator[str]:
    """Rows of cells in columns; the last one is aligned to the right."""
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [f"{cell!s:<{width}}" for cell, width in zip(row, widths, strict=True)]
        cells[-1] = f"{row[-1]!s:>{widths[-1]}}"
        yield "  ".join(cells).rstrip()


def amount(count: float) -> str:
    """A number of bytes for reading."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """A time for reading."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
