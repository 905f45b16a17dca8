"""SIGINT and SIGTERM: before the training they end the process; while it runs they wait for the end of a step."""

import atexit
import contextlib
import ctypes
import functools
import multiprocessing
import os
import shlex
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn

from utils.distributed.process_group import ProcessGroup, current
from utils.errors import Stopped

WATCHED = (signal.SIGINT, signal.SIGTERM)
END_WITH_PARENT = 1  # PR_SET_PDEATHSIG of linux/prctl.h


def end_at_once() -> None:
    """From now on a signal ends the process, with status 128 + signal and the command that starts it again.

    For a script's first line: its imports take seconds, and nothing that could be lost has begun.
    """
    for number in WATCHED:
        signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    again, own = shlex.join(["python", *sys.argv]), 128 + number
    _, status = current().claim_failure(own)  # a launcher that ends all of them since one has failed
    if status == own and os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):  # not print: this may have interrupted a print
            os.write(2, f"stopped; nothing was changed. To start again:\n{again}\n".encode())
    os._exit(status)


class SignalWatch:
    """While entered, the first signal is only remembered; at a second SIGINT what was set up before takes its course.

    advice: what a second SIGINT leaves on the screen.
    """

    def __init__(self, processes: ProcessGroup | None = None) -> None:
        self.processes = processes or ProcessGroup()
        self.received: int | None = None
        self.advice = ""
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
        """Raise Stopped if a signal came, to whichever process."""
        received = self.processes.signal(self.received)
        if received is not None:
            raise Stopped(received)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        # a launcher passes on a Ctrl-C that the terminal sent to all; and it kills whoever takes too long
        if self.received is None or number != signal.SIGINT or self.processes.launched:
            self.received = self.received or number
            return
        signal.signal(number, signal.SIG_IGN)  # a third one must not come in between
        with contextlib.suppress(OSError):  # not print: this may have interrupted a print
            os.write(2, f"\nstopped at once; what was saved before is whole\n{self.advice}".encode())
        before = self._before[number]
        if before is _end:  # before that is put back, or one more would say that nothing was changed
            os._exit(128 + number)
        signal.signal(number, before)
        if callable(before):
            before(number, frame)
        raise KeyboardInterrupt


def ignore_in_worker(_: int = 0) -> None:
    """For data worker processes: the terminal's Ctrl-C reaches them too, but the main process ends them."""
    for number in WATCHED:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":  # if that is killed, they would live on for seconds and complain
        ctypes.CDLL(None).prctl(END_WITH_PARENT, signal.SIGKILL)
        parent = multiprocessing.parent_process()
        alone = parent is not None and parent.pid != os.getppid() and multiprocessing.get_start_method() != "forkserver"
        if alone:  # it was killed before that: nobody would ever end this worker
            os._exit(1)


@functools.cache
def end_workers_at_exit() -> None:
    """At the exit of this process multiprocessing asks workers that are left to end, and waits; ours do not hear."""
    atexit.register(_kill_workers)


def _kill_workers() -> None:
    # torch's handler raises an error about workers that were killed, here for one that is meant
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
