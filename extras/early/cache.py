"""The output of an earlier ``--list``, valid while nothing it depends on has changed.

Like Python's own compilation cache, this compares size and time of the project's files. Libraries installed, removed or
updated are detected by the names of their metadata.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.files import atomic_write
from utils.paths import PROJECT
from utils.registry import FOLDERS

CACHE = PROJECT / ".cache" / "listings.json"


def cached_listing(name: str, width: int) -> str | None:
    """The output of ``--list NAME`` at this width, if it would be the same again."""
    return _kept().get(f"{name} {width}")


def keep_listing(name: str, width: int, text: str) -> None:
    """Store what was printed; if that fails, the next time takes as long."""
    with contextlib.suppress(OSError):
        content = json.dumps({"made_from": _made_from(), "listings": {**_kept(), f"{name} {width}": text}})
        CACHE.parent.mkdir(exist_ok=True)
        with atomic_write(CACHE) as file:
            file.write(content.encode())


def _kept() -> dict[str, str]:
    """The listings in the cache; none if they might be different now."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        kept = json.loads(CACHE.read_text(encoding="utf-8"))
        if kept["made_from"] == _made_from():
            return dict(kept["listings"])
    return {}


def _made_from() -> dict[str, Any]:
    """Everything a listing depends on."""
    files = [path for path in PROJECT.iterdir() if path.suffix == ".py"]
    # a virtual environment inside the project may have any name, but is not a package
    for folder in PROJECT.iterdir():
        if folder.name in FOLDERS or (folder / "__init__.py").is_file():
            files += folder.rglob("*.py")
    stats = {str(path): path.stat() for path in sorted(files)}
    return {
        "python": [sys.version, sys.flags.optimize],  # python -OO has no docstrings
        "libraries": sorted(_libraries()),
        "files": {path: [stat.st_mtime_ns, stat.st_size] for path, stat in stats.items()},
    }


def _libraries() -> Iterator[str]:
    """The names and versions of all installed libraries, as in torch-2.9.0.dist-info."""
    for folder in filter(os.path.isdir, sys.path):
        yield from (path.name for path in Path(folder).iterdir() if path.suffix in (".dist-info", ".egg-info", ".pth"))
