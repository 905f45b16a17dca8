"""The output of an earlier ``--list``, valid while nothing it depends on has changed.

Like Python's own compilation cache, this compares size and time of every file outside libraries that was imported for
the listing. Libraries installed, removed or updated are detected by the names of their metadata.
"""

import contextlib
import json
import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.files import atomic_write
from utils.paths import PROJECT
from utils.registry import FOLDERS

CACHE = PROJECT / ".cache" / "listings.json"


def cached_listing(name: str, width: int) -> str | None:
    """The output of ``--list NAME`` at this width, if it would be the same again."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        kept = json.loads(CACHE.read_text(encoding="utf-8"))
        text = kept["listings"].get(_key(name, width))
        if isinstance(text, str) and kept["made_from"] == _made_from(list(kept["made_from"]["files"])):
            return text
    return None


def keep_listing(name: str, width: int, text: str) -> None:
    """Store what was printed; if that fails, the next time takes as long."""
    try:
        made_from = _made_from(sorted(set(_own_files())))
    except OSError:
        return
    listings: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        kept = json.loads(CACHE.read_text(encoding="utf-8"))
        if kept["made_from"] == made_from:
            listings = kept["listings"]
    content = json.dumps({"made_from": made_from, "listings": {**listings, _key(name, width): text}})
    with contextlib.suppress(OSError):
        CACHE.parent.mkdir(exist_ok=True)
        with atomic_write(CACHE) as file:
            file.write(content.encode())


def _key(name: str, width: int) -> str:
    return f"{name} {width}"


def _made_from(files: list[str]) -> dict[str, Any]:
    """Everything a listing depends on. Raises OSError if one of the files is gone."""
    stats = {path: Path(path).stat() for path in files}
    return {
        "python": sys.version,
        "libraries": sorted(_libraries()),
        "components": sorted(str(path) for folder in FOLDERS for path in (PROJECT / folder).glob("*.py")),
        "files": {path: [stat.st_mtime_ns, stat.st_size] for path, stat in stats.items()},
    }


def _libraries() -> Iterator[str]:
    """The names and versions of all installed libraries, as in torch-2.9.0.dist-info."""
    for folder in filter(os.path.isdir, sys.path):
        yield from (path.name for path in Path(folder).iterdir() if path.suffix in (".dist-info", ".egg-info", ".pth"))


def _own_files() -> Iterator[str]:
    """The files of imported modules, except Python's and those of installed libraries."""
    installed = {sysconfig.get_path("stdlib"), *site.getsitepackages(), site.getusersitepackages(), sys.prefix}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not Path(file).is_file():  # torch creates modules without files
            continue
        if not any(Path(file).is_relative_to(folder) for folder in installed):
            yield file
