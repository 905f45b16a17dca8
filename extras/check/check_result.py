"""The result of a check, and how to print it."""

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
        indent = INDENT if width == 0 or width >= 2 * INDENT else 4
        texts = [*self.text.splitlines(), *([f"usually: {self.cause}"] if self.cause else [])]
        lines = [line for text in texts for line in _wrapped(text, width - indent if width else 0)]
        if indent < INDENT:  # too narrow for three columns
            yield f"{self.check:<13} {verdict}".rstrip()
        else:
            yield f"{self.check:<13} {verdict} {lines.pop(0) if lines else ''}"
        yield from (f"{'':<{indent}}{line}" for line in lines)


def _wrapped(text: str, width: int) -> list[str]:
    """Wrap a line of text at this width, repeating its indentation; 0: do not wrap."""
    if not width or len(text) <= width:
        return [text]
    indent = text[: len(text) - len(text.lstrip())][: width // 2]
    return textwrap.wrap(
        text.strip(), max(width, 8), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
