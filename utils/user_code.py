"""Where the user's code stands, and where in it an error came from."""

import inspect
import linecache
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.paths import PROJECT

# folders whose lines explain nothing to a user whose own code went wrong
MACHINERY = {"utils", "logger", "base", "extras", "dev"}


def where(component: Callable[..., Any]) -> str:
    """The file and line that define a component, relative to the project's folder."""
    try:
        path, line = inspect.getsourcefile(component) or "?", inspect.getsourcelines(component)[1]
    except (OSError, TypeError):
        return component.__module__
    return f"{in_project(path)}:{line}"


def format_error(error: BaseException) -> str:
    """What an error says, with its kind, in one paragraph."""
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def format_error_with_source(error: BaseException) -> str:
    """What an error says and, below it, the line of the user's code where it came from, if it came from one."""
    return "\n".join(filter(None, [format_error(error), user_line(error)]))


def user_line(error: BaseException) -> str:
    """File, number and text of the last line of the user's code on the way of an error; empty if there was none."""
    if isinstance(error, SyntaxError) and error.filename:
        return _code_line(error.filename, error.lineno or 1)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(Path(frame.filename))]
    return _code_line(frames[-1].filename, frames[-1].lineno or 1) if frames else ""


def _is_users(path: Path) -> bool:
    """Whether a file is the user's: in the project, and not of its machinery."""
    if not path.is_relative_to(PROJECT) or ".venv" in path.parts:
        return False
    parts = path.relative_to(PROJECT).parts
    return len(parts) > 1 and parts[0] not in MACHINERY


def _code_line(path: str, line: int) -> str:
    return f"  {in_project(path)}:{line}: {linecache.getline(path, line).strip()}".rstrip(": ")


def in_project(path: str | Path) -> str:
    """A path from the project's folder, where it is in there."""
    return str(Path(path).relative_to(PROJECT)) if Path(path).is_relative_to(PROJECT) else str(path)
