"""From command-line arguments to file names."""

import glob
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from base.data.images.cache import files_below
from utils.errors import DataError

ARRAYS = (".npy", ".npz")
TABLES = (".csv", ".tsv")


@dataclass
class Found:
    """The names of the inputs in order, and problems with some of them."""

    files: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    skipped: int = 0
    """Number of files with other suffixes in the folders."""


def find_files(words: Sequence[str], suffixes: Sequence[str]) -> Found:
    """The files named by these arguments. suffixes: of the files to read in a folder.

    Raises DataError for an argument that gives none. A missing file named on stdin is one of the problems.
    """
    found = Found()
    for word in words:
        before = len(found.files) + len(found.problems)
        if word == "-":
            # a name per line, or separated by NUL as from find -print0; None: standard input is closed
            content = sys.stdin.buffer.read() if sys.stdin is not None else b""
            given = content.split(b"\0") if b"\0" in content else content.splitlines()
            matches = [*filter(None, map(os.fsdecode, given))]
        else:
            there = os.path.lexists(file_and_member(word)[0])
            matches = [word] if there else sorted(glob.glob(word, recursive=True))  # noqa: PTH207  (it may be absolute)
        for name in matches:
            if word == "-" and not os.path.lexists(name):
                found.problems.append(f"{name}: no such file")
            else:
                _add(name, suffixes, found)
        if before == len(found.files) + len(found.problems):
            missing = "no names on standard input" if word == "-" else "no such file or folder"
            raise DataError(f"{word}: " + (f"no input ({' '.join(suffixes)}) in it" if matches else missing))
    return found


def file_and_member(word: str) -> tuple[str, str]:
    """FILE.npz and NAME for FILE.npz:NAME if there is such a file; else the word itself and ""."""
    path, _, member = word.rpartition(":")
    in_archive = member and path.lower().endswith(".npz") and Path(path).is_file() and not os.path.lexists(word)
    return (path, member) if in_archive else (word, "")


def _add(name: str, suffixes: Sequence[str], found: Found) -> None:
    """Add a file, or the files below a folder."""
    if not Path(name).is_dir():
        found.files.append(name)
        return
    files = files_below(Path(name), lambda error: found.problems.append(f"{error.filename}: {error.strerror}"))
    inputs = [file for file in files if file.lower().endswith(tuple(suffixes))]
    found.files += inputs
    found.skipped += len(files) - len(inputs)
