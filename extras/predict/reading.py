"""From files to inputs of the model: pictures in worker processes, arrays and tables row by row."""

import csv
import functools
import io
import itertools
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from tqdm import tqdm

from base.data.workers import read_once, worker_count
from extras.predict.inputs import ARRAYS, TABLES, file_and_member
from utils.errors import DataError, UserError, os_errors_as
from utils.files import open_regular
from utils.text import count, escape_controls, is_number
from utils.user_code import format_error

CHUNK = 16  # files per request to a worker
FEW = 64  # up to this many files are read here: starting workers takes longer
ROWS = 1024  # of an array that are read at once
NAMES = ("inputs", "x", "X", "images", "data", "arr_0")
"""Preferred array names: the first of these found in a .npz file with several arrays is read."""

Prepare = Callable[[Any], Any]
"""Converts a file or a row to an input of the model."""


class Unreadable(Exception):  # noqa: N818  (not an error of the program: the file is named and skipped)
    """An input, or the rest of a file, cannot be read."""


class Item(NamedTuple):
    """An input of the model."""

    file: str
    row: int | None
    """Row in an array or table, from 0."""
    value: Any
    """The input; or Unreadable, with the reason."""

    @property
    def source(self) -> str:
        """The file, and the row in it if it has rows."""
        return self.file if self.row is None else f"{self.file}, row {self.row}"


def say_beside_bar(text: str) -> None:
    """Print a line to standard error, above a progress bar."""
    tqdm.write(escape_controls(text).encode(errors="backslashreplace").decode(), file=sys.stderr)


def read_items(
    files: Sequence[str],
    prepare: Prepare,
    columns: Sequence[str] | None,
    needed: Sequence[str] = (),
    whole: Sequence[str] | None = None,
) -> Iterator[Item]:
    """The inputs from all files, in order. Raises UserError for what the model does not accept at all.

    columns: of tables, those to read. needed: those that the data loader's ``input_facts`` names.
    whole: see ``file_kind``.
    """
    for kind, names in itertools.groupby(files, lambda name: file_kind(name, whole)):
        if kind == "file":
            yield from _read_files(list(names), prepare)
            continue
        for name in names:
            rows = _table_rows(name, columns, needed) if kind == "table" else _array_rows(name)
            yield from _read_rows(name, rows, prepare)


def file_kind(name: str, whole: Sequence[str] | None = None) -> str:
    """ "array", "table" or "file". whole: suffixes of files that are an input each, from the data loader."""
    path = name.lower()
    if path.endswith(tuple(whole or ())):
        return "file"
    if path.endswith(ARRAYS) or ".npz:" in path:
        return "array"
    return "table" if path.endswith(TABLES) else "file"


def _read_rows(name: str, rows: Iterator[Any], prepare: Prepare) -> Iterator[Item]:
    """The inputs from the rows of a file. rows: each as ``prepare`` takes it, or Unreadable."""
    row = 0
    try:
        for raw in rows:
            yield _item(name, row, raw if isinstance(raw, Unreadable) else _prepared(prepare, raw))
            row += 1
    except Unreadable as error:
        yield Item(name, row or None, error)
        return
    if not row:
        yield Item(name, None, Unreadable("it has no rows"))


def _item(name: str, row: int | None, value: Any) -> Item:
    """value: as returned by ``_prepared``. Raises UserError."""
    item = Item(name, row, value)
    if isinstance(value, UserError):
        raise type(value)(f"{item.source}: {value}")
    return item


def _prepared(prepare: Prepare, raw: Any) -> Any:
    """The input; or, not raised since it may have to leave a worker process, Unreadable or the UserError."""
    try:
        with warnings.catch_warnings(action="ignore"):  # from Pillow, about files it can read
            value = prepare(raw)
    except UserError as error:
        return error
    except Exception as error:  # any error: Pillow raises many types, and so may the user's code
        if type(error).__name__ == "UnidentifiedImageError":  # Pillow's, whose message repeats the path
            return Unreadable("not an image, or truncated")
        reason = error.strerror if isinstance(error, OSError) else None
        return Unreadable(reason or (str(error) if isinstance(error, ValueError) else format_error(error)))
    if value is None or isinstance(value, str):
        return Unreadable(f"prepare_input returned {value!r:.40}")
    return value


# ------------------------------------------------------------------ arrays


def _array_rows(name: str) -> Iterator[Tensor]:
    """The rows of an array saved by np.save, which is not read at once, or np.savez. Raises Unreadable, DataError."""
    path, member = file_and_member(name)
    try:
        with os_errors_as(Unreadable, "it cannot be read"), open_regular(Path(path)) as file:
            if path.lower().endswith(".npz"):
                archive = np.load(file)
                array = archive[_member(path, archive.files, member)]
            else:
                array = np.load(path, mmap_mode="r")
        dtype = array.dtype.newbyteorder("=")
        torch.from_numpy(np.empty(0, dtype))
    except (zipfile.BadZipFile, ValueError, TypeError, EOFError) as error:
        raise Unreadable(f"not an array of numbers, or damaged: {error}") from error
    if not array.ndim:
        raise Unreadable("the array is a single number; expected one row per input")
    for start in range(0, len(array), ROWS):
        yield from torch.from_numpy(np.array(array[start : start + ROWS], dtype))


def _member(path: str, names: Sequence[str], wanted: str) -> str:
    """The array to read from a .npz file. wanted: empty for the only one, or the first of ``NAMES``."""
    chosen = [wanted] if wanted else names if len(names) == 1 else [each for each in NAMES if each in names]
    if chosen and chosen[0] in names:
        return chosen[0]
    contains = f"it contains {', '.join(names[:10]) or 'none'}"
    what = f'no array "{wanted}"' if wanted else f"name the array, as in {path}:{names[0] if names else 'x'}"
    raise DataError(f"{path}: {what}; {contains}")


# ------------------------------------------------------------------ tables


def _table_rows(name: str, columns: Sequence[str] | None, needed: Sequence[str]) -> Iterator[Any]:
    """The cells of each row by column name, or by number without a header; Unreadable for a row that is wrong.

    Raises Unreadable; DataError if a column is missing.
    """
    try:
        with os_errors_as(Unreadable, "it cannot be read"):
            file = open_regular(Path(name))
        with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            start = text.readline()
            text.seek(0)
            delimiter = "\t" if name.lower().endswith(".tsv") else max(",;\t", key=start.count)
            rows = filter(None, csv.reader(text, delimiter=delimiter, strict=True))
            if (first := next(rows, None)) is None:
                raise Unreadable("the table is empty")
            names, is_header = _column_names(name, first)
            if len(set(names)) < len(names):
                raise Unreadable("two columns have the same name")
            if missing := [each for each in columns or () if each not in names]:
                raise DataError(f"{name} has no column {missing[0]!r}; it has {', '.join(names[:20])}")
            chosen = columns or names
            if (columns or names != _numbered(first)) and (missing := [each for each in needed if each not in chosen]):
                raise DataError(f"{name}: the table has no column {missing[0]!r}; the model takes {', '.join(needed)}")
            for row in itertools.chain([] if is_header else [first], rows):
                if len(row) != len(names):
                    yield Unreadable(f"{len(row)} cells, but there are {len(names)} columns")
                    continue
                cells = dict(zip(names, row, strict=True))
                yield {each: cells[each] for each in chosen}
    except UnicodeDecodeError as error:
        raise Unreadable("not valid UTF-8") from error
    except csv.Error as error:
        raise Unreadable(f"not a table of comma-separated values: {error}") from error


def _column_names(file: str, first: Sequence[str]) -> tuple[list[str], bool]:
    """The names in the first row, and whether it has them; else numbers. Says which, if all its cells are numbers."""
    names, numbers = [cell.strip() for cell in first], _numbered(first)
    if not all(map(is_number, first)):
        return names, True
    if names == numbers:  # the names that pandas writes for columns without any
        say_beside_bar(f"{file}: the first row numbers the columns, and is taken for the header")
        return names, True
    say_beside_bar(f"{file}: no header: {count(len(first), 'column')}, and the first row is an input")
    return numbers, False


def _numbered(row: Sequence[str]) -> list[str]:
    """The names of columns without a header."""
    return [str(place) for place in range(len(row))]


# ------------------------------------------------------------------ other files


def _read_files(names: Sequence[str], prepare: Prepare) -> Iterator[Item]:
    workers = worker_count(len(names) // CHUNK) if len(names) > FEW else 0
    read = functools.partial(_read_file, prepare)
    values = itertools.chain.from_iterable(read_once(read, names, CHUNK, workers))
    for name, value in zip(names, values, strict=True):
        yield _item(name, None, pickle.loads(value) if workers else value)


def _read_file(prepare: Prepare, name: str) -> Any:
    """What ``_prepared`` returns."""

    def read(path: Path) -> Any:
        open_regular(path).close()  # a named pipe would block
        return prepare(path)

    value = _prepared(read, Path(name))
    # sent as bytes: tensors would need shared memory, which is scarce in containers
    return value if get_worker_info() is None else pickle.dumps(value)
