"""The rows of .npy, .npz and .csv files, read in chunks: memory use does not grow with the file."""

import contextlib
import csv
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from base.array_file import ArrayFile
from utils.errors import DataError
from utils.files import open_regular

CHUNK = 2**20  # bytes that are read at once
NAMES = ("inputs", "x", "X", "images", "data", "arr_0")
"""Preferred array names: the first of these found in a .npz file with several arrays is read."""


class Unreadable(Exception):  # noqa: N818  (not an error of the program: the file is named and skipped)
    """A file, or the rest of one, cannot be read."""


class NpyRows:
    """The rows of an array saved by np.save. Raises Unreadable."""

    def __init__(self, path: str) -> None:
        try:
            with open_regular(Path(path)):
                self._array = ArrayFile.open(Path(path))
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from error
        except DataError as error:
            raise Unreadable(str(error).removeprefix(f"{path} ")) from error

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator[Tensor]:
        step = _rows_at_once(self._array.row_bytes)
        for start in range(0, len(self), step):
            try:
                yield from self._array.rows(slice(start, start + step))
            except DataError as error:
                raise Unreadable(str(error)) from error


class NpzRows:
    """The rows of an array in a file saved by np.savez, read sequentially. Raises Unreadable, DataError.

    name: of the array; empty: the only one, or the first of ``NAMES``.
    """

    def __init__(self, path: str, name: str) -> None:
        self._path = path
        with self._opened() as archive:
            names = [entry.removesuffix(".npy") for entry in archive.namelist() if entry.endswith(".npy")]
            chosen = [name] if name else names if len(names) == 1 else [each for each in NAMES if each in names]
            if not chosen or chosen[0] not in names:
                listed = ", ".join(names[:10]) or "nothing"
                raise DataError(f"{path} contains {listed}; name the array, as in {path}:{names[0] if names else 'x'}")
            self._member = f"{chosen[0]}.npy"
            with archive.open(self._member) as file:
                self._shape, self._dtype = _header(file)

    def __len__(self) -> int:
        return self._shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        shape = self._shape[1:]
        row_bytes = int(np.prod(shape, dtype=object)) * self._dtype.itemsize
        step = _rows_at_once(row_bytes)
        with self._opened() as archive, archive.open(self._member) as file:
            _header(file)
            for start in range(0, len(self), step):
                count = min(step, len(self) - start)
                data = bytearray(file.read(count * row_bytes))
                if len(data) < count * row_bytes:
                    raise Unreadable("truncated")
                rows = np.frombuffer(data, self._dtype) if data else np.empty(0, self._dtype)
                yield from torch.from_numpy(rows.reshape(count, *shape))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        try:
            with open_regular(Path(self._path)) as file, zipfile.ZipFile(file) as archive:
                yield archive
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from error
        except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
            raise Unreadable(f"not an array file, or damaged: {error}") from error


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
            with open_regular(Path(self._path)) as binary:
                text = open(os.dup(binary.fileno()), encoding="utf-8-sig", newline="")  # noqa: PTH123, SIM115
                with text:
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


def _rows_at_once(row_bytes: int) -> int:
    return max(1, min(1024, CHUNK // max(1, row_bytes)))


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of the array that follows. Raises Unreadable, ValueError."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if not shape or (fortran and len(shape) > 1):
        raise Unreadable("the array does not have contiguous rows; save np.ascontiguousarray(array)")
    try:
        torch.from_numpy(np.empty(0, dtype))
    except (TypeError, ValueError) as error:
        raise Unreadable(f"not an array of numbers: {dtype}") from error
    return shape, dtype
