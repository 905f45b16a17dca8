"""The project's folder, and paths relative to it."""

import hashlib
import os
import shlex
from pathlib import Path

from utils.errors import UserError

PROJECT = Path(__file__).resolve().parent.parent


def project_path(path: str | Path) -> Path:
    """A path in a config, relative to the project's folder, so that a run does not depend on the working directory."""
    try:
        return PROJECT / Path(path).expanduser()
    except RuntimeError as error:  # ~name
        raise UserError(f"{path}: unknown home directory; write out the path") from error


def code_version() -> str:
    """SHA-256 of the code that a run executes: all processes of a run must agree on it."""
    hashed = hashlib.sha256()
    folders = ("base", "data_loader", "logger", "model", "trainer", "utils")
    files = [file for name in folders for file in (PROJECT / name).rglob("[!.]*.py")]
    for path in sorted([*PROJECT.glob("*.py"), *files]):
        hashed.update(path.relative_to(PROJECT).as_posix().encode() + path.read_bytes())
    return hashed.hexdigest()


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
    """A path in a command that the user may copy: as by ``display_path``, quoted where a shell needs it."""
    return shlex.quote(display_path(path))
