"""SIGINT and SIGTERM: remembered, so that the run can save at the end of its step."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from utils.errors import Stopped

WATCHED = (signal.SIGINT, signal.SIGTERM)


class SignalWatch:
    """While entered, the first signal is only remembered; a second SIGINT ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "SignalWatch":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in WATCHED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise Stopped if a signal came."""
        if self.received is not None:
            raise Stopped(self.received)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number


def ignore_in_worker(_: int = 0) -> None:
    """For data worker processes: the terminal's Ctrl-C reaches them too, but the main process ends them."""
    for number in WATCHED:
        signal.signal(number, signal.SIG_IGN)
