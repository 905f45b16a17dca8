"""Standard output and error that never fail: closed, a broken pipe, a terminal that is gone, an old encoding."""

import contextlib
import io
import os
import sys
from traceback import format_exception
from typing import Any, TextIO

from utils.text import printable


def prepare_streams() -> None:
    """For the top of a script, before anything is opened: a file could get the number of a stream that is closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
    sys.stdout = _open(sys.stdout, 1)
    sys.stderr = _open(sys.stderr, 2)
    sys.excepthook = lambda kind, error, trace: say_error("".join(format_exception(kind, error, trace)).rstrip())


def _open(stream: TextIO | None, number: int) -> TextIO:
    if stream is None:
        stream = os.fdopen(number, "w", encoding="utf-8", closefd=False)
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # a letter that the encoding does not have
    return stream


def flush_streams() -> None:
    """Write what is buffered. Where nobody reads it any more, drop it, or Python would complain at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(*values: Any, sep: str = " ") -> None:
    """Print without control characters, which may occur in the names of somebody's classes and files."""
    with contextlib.suppress(BrokenPipeError):  # the reader of the output, as in `| head`, has gone
        print(*(printable(str(value)) for value in values), sep=sep, flush=True)


def say_error(*values: Any) -> None:
    """Print to standard error, without control characters, or nowhere if that is gone."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(*(printable(str(value)) for value in values), file=sys.stderr, flush=True)
