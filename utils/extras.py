"""What a project may lack: folders of extras/, which may be deleted, and packages that few projects need."""

import importlib
import importlib.util
from types import ModuleType

from utils.errors import UserError


def find_extra(folder: str) -> ModuleType | None:
    """The package ``extras.FOLDER``; None if it was deleted. Errors from importing it are raised."""
    name = f"extras.{folder}"
    try:
        package = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in ("extras", name):
            raise
        return None
    # without a file, it is a leftover __pycache__
    return package if package.__file__ else None


def load_extra(folder: str, asked_for: str) -> ModuleType:
    """The package ``extras.FOLDER``. asked_for: what needs it, as "--check". Raises UserError if deleted."""
    package = find_extra(folder)
    if package is None:
        raise UserError(f"{asked_for} needs extras/{folder}, which is not in this project")
    return package


def need_package(
    name: str, what: str, *, install: str = "", advice: str = "", kind: type[UserError] = UserError
) -> None:
    """Raise UserError, or another kind, "WHAT: pip install NAME" and the advice, if a package is missing.

    install: the packages to install, if there are more.
    """
    if importlib.util.find_spec(name) is None:
        raise kind(f"{what}: pip install {install or name}{advice}")
