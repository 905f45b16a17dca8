"""Standard output and error that never fail: closed streams, broken pipes, lost terminals, legacy encodings."""

import contextlib
import io
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from traceback import format_exception
from types import TracebackType
from typing import TextIO

from utils.errors import UserError, os_errors_as
from utils.text import printable, shell_join

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements.txt"


def prepare_streams() -> None:
    """For the top of a script, before anything is opened: a file could get the number of a closed stream."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stdout = _open(sys.stdout, 1)
    sys.stderr = _open(sys.stderr, 2)
    sys.excepthook = _say_uncaught


def _say_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    clear_loading()
    if isinstance(error, ModuleNotFoundError) and "." not in (error.name or "."):
        python = shell_join([sys.executable, "-m", "pip", "install", "-r", str(REQUIREMENTS)])
        say_error(f"error: {error.name} is not installed; activate the project's environment, or: {python}")
        raise SystemExit(2)
    if hidden := _hidden_module(error):
        say_error(f"error: {hidden}.py in the project's folder hides the module {hidden} ({error}): rename it")
        raise SystemExit(2)
    say_error("".join(format_exception(kind, error, trace)).rstrip())


def _hidden_module(error: BaseException) -> str | None:
    """The module of Python or a package that a file next to the script hides, if that file lacks what is used."""
    module = error.obj if isinstance(error, AttributeError) else None
    if isinstance(error, ImportError):
        module = sys.modules.get((error.name or "").partition(".")[0])
    name, folder = getattr(module, "__name__", ""), sys.path[0]
    if not name or Path(getattr(module, "__file__", None) or "") != Path(folder, f"{name}.py"):
        return None
    elsewhere = PathFinder.find_spec(name, [path for path in sys.path if path != folder])
    return name if elsewhere else None


def _open(stream: TextIO | None, number: int) -> TextIO:
    if stream is None:
        stream = os.fdopen(number, "w", encoding="utf-8", closefd=False)
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # for characters outside the encoding
    return stream


def flush_streams() -> None:
    """Flush buffered output, or discard it if nobody reads it any more: Python would complain at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def is_plain(stream: TextIO | None) -> bool:
    """Whether to write plain text only: to a file or pipe, or if the user or the terminal asks for it."""
    if stream is None or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return True
    with contextlib.suppress(OSError, ValueError):  # a closed stream
        return not stream.isatty()
    return True


def terminal_width(otherwise: int = 80) -> int:
    """Columns of the terminal on standard output; ``otherwise`` for a file, and 80 if the terminal has no size."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    return otherwise


LOADING = "loading ..."


def say_loading() -> None:
    """In a terminal, show that the imports, which take seconds, have begun. The next output replaces it."""
    _write_to_terminal(LOADING)


def clear_loading() -> None:
    """Erase that notice."""
    _write_to_terminal(f"\r{' ' * len(LOADING)}\r")


def _write_to_terminal(text: str) -> None:
    if not is_plain(sys.stdout):
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.write(text)
            sys.stdout.flush()


def say(*lines: str) -> None:
    """Print lines without control characters, which class and file names may contain.

    Raises UserError if they cannot be written, as to a file on a full disk.
    """
    # the reader of the output may have exited, as in `| head`
    with os_errors_as(UserError, "standard output cannot be written"), contextlib.suppress(BrokenPipeError):
        print(*map(printable, lines), sep="\n", flush=True)


def say_error(message: str) -> None:
    """Print to standard error without control characters, or nowhere if it is gone."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(printable(message), file=sys.stderr, flush=True)
