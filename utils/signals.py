"""Signals that stop a run: at once before training; after the current step during training."""

import atexit
import contextlib
import ctypes
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, NoReturn

from utils.distributed import ProcessGroup, current
from utils.errors import Stopped
from utils.streams import prepare_streams
from utils.text import shell_join

# SIGHUP: the terminal or ssh connection was lost. SIGBREAK: Ctrl-Break on Windows, which has only this, SIGINT and
# SIGTERM. Batch systems send the others before a job's time is up
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK", "SIGUSR1", "SIGUSR2", "SIGXCPU")
WATCHED = [number for number in signal.Signals if number.name in _NAMES]
TOGETHER = 0.5
"""Seconds within which two SIGINTs count as one: a terminal sends it to all processes, and a launcher forwards it."""
END_WITH_PARENT = 1  # PR_SET_PDEATHSIG of linux/prctl.h


def exit_on_signal() -> None:
    """From now on, a signal ends the process with status 128 + signal and prints the command to run again.

    For the top of a script: imports take seconds, and there is nothing to save yet.
    """
    prepare_streams()
    for number in _free_signals():
        signal.signal(number, _end)


def _free_signals() -> list[signal.Signals]:
    """Signals without another handler: nohup ignores SIGHUP, and a project may use SIGUSR1 for something else."""
    always = (signal.SIGINT, signal.SIGTERM)
    return [number for number in WATCHED if number in always or signal.getsignal(number) in (signal.SIG_DFL, _end)]


def _end(number: int, frame: FrameType | None) -> NoReturn:
    command = shell_join(["python", *sys.argv])
    status = 128 + number
    _, first_status = current().claim_failure(status)  # differs if the launcher ends all processes because one failed
    if first_status == status and (os.environ.get("RANK") or "0") == "0":
        _say_at_once(f"stopped. To run it again:\n{command}\n")
    os._exit(first_status)


def _say_at_once(text: str, *, before: str = "") -> None:
    """Write to standard error, without print, which the signal may have interrupted.

    In a terminal the text replaces the progress bar. before: written before it elsewhere.
    """
    with contextlib.suppress(OSError):
        if os.isatty(2) and os.environ.get("TERM") != "dumb":
            before = "\r\x1b[K"
        os.write(2, f"{before}{text}".encode(errors="replace"))


class SignalWatch:
    """While entered, the first signal is only recorded; a later SIGINT ends the process through the previous handler.

    advice: what a second SIGINT prints.
    """

    def __init__(self, process_group: ProcessGroup | None = None) -> None:
        self.process_group = process_group or ProcessGroup()
        self.received: int | None = None
        self.advice = ""
        self._first = 0.0  # time of the first signal, by the monotonic clock
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "SignalWatch":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._record) for number in _free_signals()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise Stopped if any process received a signal."""
        received = self.process_group.signal(self.received)
        if received is not None:
            raise Stopped(received)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            self._first = time.monotonic()
            return
        # a launcher forwards a Ctrl-C that the terminal already sent to all; it also kills slow processes
        if number != signal.SIGINT or self.process_group.launched or time.monotonic() < self._first + TOGETHER:
            return
        signal.signal(number, signal.SIG_IGN)  # a third one must not interrupt this
        _say_at_once(f"stopped immediately; earlier checkpoints are intact\n{self.advice}", before="\n")
        if self._before[number] is _end:
            os._exit(128 + number)
        raise KeyboardInterrupt


def ignore_in_worker(_: int = 0) -> None:
    """For DataLoader workers: a Ctrl-C in the terminal reaches them too, but the main process ends them."""
    for number in WATCHED:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":  # otherwise workers outlive a killed process by seconds and print errors
        ctypes.CDLL(None).prctl(END_WITH_PARENT, signal.SIGKILL)
        parent = multiprocessing.parent_process()
        from_server = isinstance(multiprocessing.current_process(), multiprocessing.context.ForkServerProcess)
        if parent and parent.pid != os.getppid() and not from_server:
            os._exit(1)  # the parent was killed before the call above could take effect


@functools.cache
def end_workers_at_exit() -> None:
    """Kill remaining workers at exit: multiprocessing would send SIGTERM, which they ignore, and wait."""
    atexit.register(_kill_workers)


def _kill_workers() -> None:
    if hasattr(signal, "SIGCHLD"):  # not on Windows
        # torch's handler raises an error for killed workers, but these are killed on purpose
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
