"""From command-line arguments to file names."""

import glob
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.errors import DataError

ARRAYS = (".npy", ".npz")
TABLES = (".csv", ".tsv")


@dataclass
class Found:
    """The names of the inputs in order, and problems with some of them."""

    files: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    """Number of files with each other suffix in the folders."""


def check_words(words: Iterable[str]) -> None:
    """Raise DataError for an argument that is not a file, a folder or a pattern."""
    for word in words:
        if not (word == "-" or os.path.lexists(word) or _in_archive(word) or glob.has_magic(word)):
            raise DataError(f"{word}: no such file or folder")


def find_files(words: Iterable[str], suffixes: Sequence[str]) -> Found:
    """The files named by these arguments. suffixes: of the files to read in a folder.

    Raises DataError for a folder or pattern without any. A missing file named on stdin is one of the problems.
    """
    found = Found()
    for word in words:
        before = len(found.files), len(found.problems)
        if word == "-":
            for name in _names_from_stdin():
                if not os.path.lexists(name):
                    found.problems.append(f"{name}: no such file")
                else:
                    _add(name, suffixes, found)
        elif os.path.lexists(word) or _in_archive(word):
            _add(word, suffixes, found)
        else:
            for name in sorted(glob.glob(word, recursive=True)):  # noqa: PTH207  (a word, which may be absolute)
                _add(name, suffixes, found)
        if before == (len(found.files), len(found.problems)):
            raise DataError(_nothing(word, suffixes, found))
    return found


def _nothing(word: str, suffixes: Sequence[str], found: Found) -> str:
    if word == "-":
        return "-: standard input has no names; expected one per line, as printed by find"
    what = "the folder contains" if Path(word).is_dir() else "the pattern matches"
    skipped = f"; skipped: {summary(found.skipped)}" if found.skipped else ""
    return f"{word}: {what} no input ({' '.join(suffixes)}){skipped}"


def summary(skipped: dict[str, int]) -> str:
    """The number of files with other suffixes, for a message."""
    endings = " ".join(sorted(skipped)[:5]) + (" ..." if len(skipped) > 5 else "")
    count = sum(skipped.values())
    return f"{count:,} {'file' if count == 1 else 'files'} of other kinds ({endings})"


def _in_archive(word: str) -> bool:
    """Whether this has the form FILE.npz:NAME."""
    path, colon, name = word.rpartition(":")
    return bool(colon and name) and path.lower().endswith(".npz") and Path(path).is_file()


def _names_from_stdin() -> list[str]:
    """Names, one per line, or separated by NUL as from ``find -print0``."""
    stream = getattr(sys.stdin, "buffer", sys.stdin)
    content = stream.read() if stream is not None else b""
    if isinstance(content, str):
        content = content.encode(errors="surrogateescape")
    names = content.split(b"\0") if b"\0" in content else content.splitlines()
    return [os.fsdecode(name) for name in names if name]


def _add(name: str, suffixes: Sequence[str], found: Found) -> None:
    if Path(name).is_dir():
        _walk(name, suffixes, found, ())
    else:
        found.files.append(name)


def _walk(folder: str, suffixes: Sequence[str], found: Found, above: tuple[tuple[int, int], ...]) -> None:
    """The files below a folder, sorted by name; skips hidden files, follows links but not in a circle."""
    try:
        status = Path(folder).stat()
        with os.scandir(folder) as unsorted:
            entries = sorted(unsorted, key=lambda entry: entry.name)
    except OSError as error:
        found.problems.append(f"{folder}: {error.strerror}")
        return
    if (identity := (status.st_dev, status.st_ino)) in above:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if Path(entry).is_dir():  # unlike entry.is_dir(), False for a link to itself
            _walk(entry.path, suffixes, found, (*above, identity))
        elif entry.name.lower().endswith(tuple(suffixes)):
            found.files.append(entry.path)
        else:
            ending = Path(entry.name).suffix.lower() or entry.name
            found.skipped[ending] = found.skipped.get(ending, 0) + 1
