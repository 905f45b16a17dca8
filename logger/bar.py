"""The line at the bottom of a terminal that says how far things are, and how numbers and times are written there."""

from collections.abc import Iterable
from typing import TextIO

from tqdm import tqdm

INTERVAL = 0.2  # seconds between two drawings, so that the device is hardly ever waited for
FREE = 2  # columns at the end of the line: the ^C that a terminal echoes must not make another line
SHORTEST, LONGEST = 6, 30  # columns of the bar itself


class _Drawn(tqdm):  # type: ignore[misc]
    monitor_interval = 0  # no thread that looks after a bar which draws itself only when it is told to


class Bar:
    """A bar between two texts, which never takes more than one line."""

    def __init__(self, stream: TextIO) -> None:
        # a size, since tqdm draws nothing in a terminal that does not know its own
        self._bar = _Drawn(total=1, leave=False, file=stream, bar_format=" ", ncols=80, nrows=24)

    def draw(self, done: int, total: int, forms: Iterable[tuple[str, str]], *, width: int) -> None:
        """Draw it so far. forms: texts to the left and to the right; the first that fits is taken, or the last."""
        room = 0
        for left, right in forms:
            room = width - FREE - len(f"{left} 100% || {right}")
            if room >= SHORTEST:
                break
        middle = f"|{{bar:{min(room, LONGEST)}}}| " if room >= SHORTEST else ""
        self._bar.bar_format = f"{_literal(left)} {{percentage:3.0f}}% {middle}{_literal(right)}"
        self._bar.ncols = max(1, width - FREE)
        self._bar.total = max(1, total)
        self._bar.n = min(done, self._bar.total)
        self._bar.refresh()

    def close(self) -> None:
        self._bar.close()


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
