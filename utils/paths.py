"""The project's folder, and paths relative to it."""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError
from utils.text import shell_join

PROJECT = Path(__file__).resolve().parent.parent
NOT_RUN = {"extras", "dev", "tests"}
"""Packages on whose code no result depends."""


def project_path(path: str | Path) -> Path:
    """A path in a config, relative to the project's folder, so that a run does not depend on the working directory."""
    try:
        return PROJECT / Path(path).expanduser()
    except RuntimeError as error:  # ~name
        raise UserError(f"{path}: unknown home directory; write out the path") from error


def code_digests() -> dict[str, str]:
    """A digest of the project's code in each package that a run may execute, and of its scripts as "."."""
    packages = {path.parent.name for path in PROJECT.glob("*/__init__.py")} - NOT_RUN
    files = {name: sorted((PROJECT / name).rglob("[!.]*.py")) for name in sorted(packages)}
    return {name: _digest(paths) for name, paths in (files | {".": sorted(PROJECT.glob("*.py"))}).items()}


def _digest(files: Sequence[Path]) -> str:
    hashed = hashlib.sha256()
    for path in files:
        hashed.update(os.fsencode(path.relative_to(PROJECT).as_posix()))
        with contextlib.suppress(OSError):  # a folder, a link that leads nowhere, or no permission
            hashed.update(path.read_bytes())
    return hashed.hexdigest()[:16]


def path_from(folder: Path, path: Path) -> str:
    """A path relative to a folder, with forward slashes; the absolute one if it is on another drive of Windows."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return path.absolute().as_posix()


def display_path(path: Path) -> str:
    """A path as the user would type it: relative to the working directory if inside it."""
    try:
        relative = os.path.relpath(path)
    except (FileNotFoundError, ValueError):  # the working directory was removed, or is on another drive of Windows
        return str(path)
    return str(path) if relative.startswith("..") else relative


def shell_path(path: Path) -> str:
    """A path in a command that the user may copy: like ``display_path``, but quoted where a shell needs it."""
    return shell_join([display_path(path)])
