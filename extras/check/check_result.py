"""The result of a check, and how to print it."""

import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from logger.console import styled

Verdict = Literal["ok", "note", "FAIL"]
STYLE = {"ok": "good", "note": "warning", "FAIL": "bad"}
INDENT = 20  # columns before the text


@dataclass(frozen=True)
class CheckResult:
    """One check. note: worth a look, but possibly intended. FAIL: training would go wrong."""

    check: str
    verdict: Verdict
    text: str
    cause: str = ""
    """The usual cause."""

    def lines(self, *, width: int = 0, plain: bool = True) -> Iterator[str]:
        """The check, its verdict and its text; further lines and the cause are indented below.

        width: columns of the terminal; 0: do not wrap, as in a file. plain: without colours.
        """
        verdict = f"{self.verdict:<5}" if plain else styled(f"{self.verdict:<5}", STYLE[self.verdict])
        texts = [*self.text.splitlines(), *([f"usually: {self.cause}"] if self.cause else [])]
        room = max(width - INDENT, INDENT) if width else sys.maxsize
        lines = [line for text in texts for line in textwrap.wrap(text, room, break_on_hyphens=False)]
        yield f"{self.check:<13} {verdict} {lines.pop(0) if lines else ''}"
        yield from (f"{'':<{INDENT}}{line}" for line in lines)
