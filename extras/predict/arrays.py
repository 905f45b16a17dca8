"""The rows of .npy, .npz and .csv files, read in chunks: memory use does not grow with the file."""

import contextlib
import csv
import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from base.array_file import read_header
from utils.errors import DataError
from utils.files import open_regular

CHUNK = 2**20  # bytes that are read at once
NAMES = ("inputs", "x", "X", "images", "data", "arr_0")
"""Preferred array names: the first of these found in a .npz file with several arrays is read."""


class Unreadable(Exception):  # noqa: N818  (not an error of the program: the file is named and skipped)
    """A file, or the rest of one, cannot be read."""


class ArrayRows:
    """The rows of an array in a file saved by np.save or np.savez, read sequentially. Raises Unreadable, DataError.

    name: of the array in a .npz file; empty: the only one, or the first of ``NAMES``.
    """

    def __init__(self, path: str, name: str = "") -> None:
        self._path = path
        self._name = name
        with self._opened() as (_, shape, _):
            self._length = shape[0]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Tensor]:
        with self._opened() as (file, (length, *shape), dtype):
            row_bytes = math.prod(shape) * dtype.itemsize
            step = max(1, min(1024, CHUNK // max(1, row_bytes)))
            for start in range(0, length, step):
                count = min(step, length - start)
                data = bytearray(file.read(count * row_bytes))
                if len(data) < count * row_bytes:
                    raise Unreadable("truncated")
                rows = np.frombuffer(data, dtype) if data else np.empty(0, dtype)
                yield from torch.from_numpy(rows.reshape(count, *shape))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]]:
        """The file at the first row, the array's shape and its dtype."""
        try:
            with contextlib.ExitStack() as stack:
                file: IO[bytes] = stack.enter_context(open_regular(Path(self._path)))
                if not self._path.lower().endswith(".npy"):
                    archive = stack.enter_context(zipfile.ZipFile(file))
                    file = stack.enter_context(archive.open(self._member(archive)))
                yield file, *_header(file)
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from error
        except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
            raise Unreadable(f"not an array file, or damaged: {error}") from error

    def _member(self, archive: zipfile.ZipFile) -> str:
        names = [entry.removesuffix(".npy") for entry in archive.namelist() if entry.endswith(".npy")]
        chosen = [self._name] if self._name else names if len(names) == 1 else [each for each in NAMES if each in names]
        if chosen and chosen[0] in names:
            return f"{chosen[0]}.npy"
        contains = f"it contains {', '.join(names[:10]) or 'none'}"
        if self._name:
            raise DataError(f'{self._path} has no array "{self._name}"; {contains}')
        raise DataError(f"{self._path}: {contains}; name the array, as in {self._path}:{names[0] if names else 'x'}")


class TableRows:
    """The rows of a table, as cells by column name; without a header, by column number.

    columns: which to read, in order; None: all. Raises Unreadable; DataError if a column is missing.
    """

    def __init__(self, path: str, columns: Sequence[str] | None = None) -> None:
        self._path = path
        self._columns = columns
        with self._opened() as (rows, first):
            self.header = [cell.strip() for cell in first] if not all(map(_is_number, first)) else None
            del rows
        names = self.header or [str(place) for place in range(len(first))]
        if len(set(names)) < len(names):
            raise Unreadable("two columns have the same name")
        self._names = names
        if missing := [name for name in columns or () if name not in names]:
            raise DataError(f"{path} has no column {missing[0]!r}; it has {', '.join(names[:20])}")

    def __iter__(self) -> Iterator[dict[str, str] | str]:
        """The cells of each row, or the problem with it."""
        with self._opened() as (rows, first):
            if self.header is None:
                yield self._cells(first)
            for row in rows:
                if row:
                    fits = len(row) == len(self._names)
                    yield self._cells(row) if fits else f"{len(row)} cells, but there are {len(self._names)} columns"

    def _cells(self, row: Sequence[str]) -> dict[str, str]:
        cells = dict(zip(self._names, row, strict=True))
        return cells if self._columns is None else {name: cells[name] for name in self._columns}

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Iterator[list[str]], list[str]]]:
        """The rows after the first, and the first row."""
        try:
            with io.TextIOWrapper(open_regular(Path(self._path)), encoding="utf-8-sig", newline="") as text:
                start = text.readline()
                text.seek(0)
                rows = csv.reader(text, delimiter=_delimiter(start), strict=True)
                first = next(filter(None, rows), None)
                if first is None:
                    raise Unreadable("the table is empty")
                yield rows, first
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from error
        except UnicodeDecodeError as error:
            raise Unreadable("not valid UTF-8") from error
        except csv.Error as error:
            raise Unreadable(f"not a table of comma-separated values: {error}") from error


def _delimiter(line: str) -> str:
    counts = {delimiter: line.count(delimiter) for delimiter in "\t;,"}
    most = max(counts, key=counts.__getitem__)
    return most if counts[most] else ","


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of the array that follows. Raises Unreadable, ValueError."""
    shape, fortran, dtype = read_header(file)
    if not shape:
        raise Unreadable("the array is a single number; expected one row per input")
    if fortran and len(shape) > 1:
        raise Unreadable("the array does not have contiguous rows; save np.ascontiguousarray(array)")
    try:
        torch.from_numpy(np.empty(0, dtype))
    except (TypeError, ValueError) as error:
        raise Unreadable(f"not an array of numbers: {dtype}") from error
    return shape, dtype
