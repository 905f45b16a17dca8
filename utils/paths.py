"""Where things are: the project's folder, and paths that a config names relative to it."""

import hashlib
import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def project_path(path: str | Path) -> Path:
    """A path from a config, taken from the project's folder, so that a run is the same from any working directory."""
    return PROJECT / Path(path).expanduser()


def code_version() -> str:
    """A number that stands for the code of the project, by what its files hold."""
    hashed = hashlib.sha256()
    folders = ("base", "data_loader", "logger", "model", "trainer", "utils")
    for path in sorted([*PROJECT.glob("*.py"), *(file for name in folders for file in (PROJECT / name).rglob("*.py"))]):
        hashed.update(path.relative_to(PROJECT).as_posix().encode() + path.read_bytes())
    return hashed.hexdigest()


def display_path(path: Path) -> str:
    """A path as the user would type it: from where they stand, if it is below."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
