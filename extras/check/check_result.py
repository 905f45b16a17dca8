"""The result of a check, and how it is printed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "note", "FAIL"]


@dataclass(frozen=True)
class CheckResult:
    """One check. note: worth a look, but possibly intended. FAIL: training would go wrong."""

    check: str
    verdict: Verdict
    text: str
    cause: str = ""
    """What usually causes it."""

    def lines(self) -> Iterator[str]:
        """The check, its verdict and the first line of its text; further lines and the cause are indented below."""
        first, *more = self.text.splitlines()
        yield f"{self.check:<13} {self.verdict:<5} {first}"
        yield from (f"{'':<20}{line}" for line in more)
        if self.cause:
            yield f"{'':<20}usually: {self.cause}"
