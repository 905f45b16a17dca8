"""Where things are: the project's folder, and paths that a config names relative to it."""

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def project_path(path: str | Path) -> Path:
    """A path from a config, taken from the project's folder, so that a run is the same from any working directory."""
    return PROJECT / Path(path).expanduser()


def shown(path: Path) -> str:
    """A path as the user would type it: from where they stand, if it is below."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
