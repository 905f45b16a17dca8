"""Where components are defined in the user's code, and which line of it raised an error."""

import inspect
import linecache
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.paths import PROJECT

# the template's own folders; a line there does not explain an error in the user's code
MACHINERY = {"utils", "logger", "base", "extras", "dev"}
STANDARD_LIBRARY = Path(inspect.__file__).parent


def where(component: Callable[..., Any]) -> str:
    """The file and line that define a component, relative to the project's folder."""
    try:
        path, line = inspect.getsourcefile(component) or "?", inspect.getsourcelines(component)[1]
    except (OSError, TypeError):
        return component.__module__
    return f"{in_project(path)}:{line}"


def format_error(error: BaseException) -> str:
    """An error's type and message in one paragraph; of a UserError, which says all, the message alone."""
    if isinstance(error, UserError):
        return str(error)
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def format_error_with_source(error: BaseException) -> str:
    """An error's type and message and, below, the line of the user's code that raised it, if any."""
    return "\n".join(filter(None, [format_error(error), user_line(error)]))


def user_line(error: BaseException) -> str:
    """File, number and text of the innermost line of user code in a traceback; empty if there is none.

    If it is not in a module's ``forward``, preceded by the line of a trainer's step that called it: a loss, with what.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return _code_line(error.filename, error.lineno or 1)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(Path(frame.filename))]
    in_forward = any(frame.name == "forward" for frame in frames)
    in_steps = [frame for frame in frames if frame.name in ("train_step", "eval_step") and not in_forward]
    shown = [_code_line(frame.filename, frame.lineno or 1) for frame in (*in_steps[-1:], *frames[-1:])]
    return "\n".join(dict.fromkeys(shown))


def raised_by_user(error: BaseException) -> bool:
    """Whether the user's own code says ``raise``, rather than torch or Python in a line of it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return _is_users(Path(last.filename)) and (last.line or "").startswith("raise ")


def _is_users(path: Path) -> bool:
    """Whether a file is the user's: in the project, but not part of the template."""
    # an environment inside the project may have any name, and with conda also Python itself
    if not path.is_relative_to(PROJECT) or "site-packages" in path.parts or path.is_relative_to(STANDARD_LIBRARY):
        return False
    parts = path.relative_to(PROJECT).parts
    return len(parts) > 1 and parts[0] not in MACHINERY


def _code_line(path: str, line: int) -> str:
    return f"  {in_project(path)}:{line}: {linecache.getline(path, line).strip()}".rstrip(": ")


def in_project(path: str | Path) -> str:
    """A path relative to the project's folder if inside it; otherwise unchanged."""
    return str(Path(path).relative_to(PROJECT)) if Path(path).is_relative_to(PROJECT) else str(path)
