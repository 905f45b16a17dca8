"""From files to inputs of the model: pictures in worker processes, arrays and tables row by row."""

import io
import itertools
import pickle
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from base.data.collate import reduce_by_value
from base.data.workers import read_once, worker_count
from extras.predict.arrays import ArrayRows, TableRows, Unreadable
from extras.predict.inputs import ARRAYS, TABLES
from utils.errors import DataError, UserError

CHUNK = 16  # files per request to a worker
FEW = 64  # up to this many files are read here: starting workers takes longer

Prepare = Callable[[Any], Any]
"""Converts a file or a row to an input of the model."""


class Item(NamedTuple):
    """An input of the model, or why it could not be read."""

    file: str
    row: int | None
    """Row in an array or table, from 0."""
    value: Any
    problem: str = ""


def read_items(
    files: Sequence[str],
    prepare: Prepare,
    columns: Sequence[str] | None,
    needed: Sequence[str] = (),
    whole: Sequence[str] | None = None,
) -> Iterator[Item]:
    """The inputs from all files, in order. Raises UserError for what the model does not accept at all.

    columns: of tables, those to read. needed: those that the data loader's ``input_facts`` names.
    whole: see ``kind_of``.
    """
    for kind, names in itertools.groupby(files, lambda name: kind_of(name, whole)):
        if kind == "file":
            yield from _read_files(list(names), prepare)
            continue
        for name in names:
            yield from _read_rows(name, kind, prepare, columns, needed)


def kind_of(name: str, whole: Sequence[str] | None = None) -> str:
    """ "array", "table" or "file". whole: suffixes of files that are an input each, from the data loader."""
    path = name.lower()
    if path.endswith(tuple(whole or ())):
        return "file"
    if path.endswith(ARRAYS) or ".npz:" in path:
        return "array"
    return "table" if path.endswith(TABLES) else "file"


def rows_of(name: str, columns: Sequence[str] | None = None) -> ArrayRows | TableRows:
    """The rows of an array or table. Raises Unreadable; DataError for an unknown array or column."""
    if kind_of(name) == "table":
        return TableRows(name, columns)
    path, _, member = name.rpartition(":") if not Path(name).is_file() else (name, "", "")
    return ArrayRows(path, member)


def _read_rows(
    name: str, kind: str, prepare: Prepare, columns: Sequence[str] | None, needed: Sequence[str]
) -> Iterator[Item]:
    row = 0
    try:
        rows = rows_of(name, columns)
        header = columns or rows.header if isinstance(rows, TableRows) else None
        if header and (missing := [each for each in needed if each not in header]):
            raise DataError(f"{name}: the table has no column {missing[0]!r}; the model takes {', '.join(needed)}")
        for raw in rows:
            if isinstance(raw, str):
                yield Item(name, row, None, raw)
            else:
                value = _prepared(prepare, raw)
                if isinstance(value, UserError):
                    raise type(value)(f"{name}, row {row}: {value}")
                yield Item(name, row, None, value) if isinstance(value, str) else Item(name, row, value)
            row += 1
    except Unreadable as error:
        yield Item(name, row if row else None, None, str(error))
        return
    if not row:
        yield Item(name, None, None, f"the {kind} has no rows")


def _read_files(names: Sequence[str], prepare: Prepare) -> Iterator[Item]:
    workers = worker_count(len(names) // CHUNK) if len(names) > FEW else 0
    values = itertools.chain.from_iterable(read_once(_Files(names, prepare), CHUNK, workers))
    for name, value in zip(names, values, strict=True):
        if isinstance(value, UserError):
            raise type(value)(f"{name}: {value}")
        if isinstance(value, str):
            yield Item(name, None, None, value)
        else:
            yield Item(name, None, pickle.loads(value) if workers else value)


class _Files(Dataset[Any]):
    def __init__(self, names: Sequence[str], prepare: Prepare) -> None:
        self.names, self.prepare = names, prepare

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Any:
        """The input, the reason why it could not be read, or the UserError to raise."""
        path = Path(self.names[index])
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                return "not a regular file"
        except OSError as error:
            return error.strerror or str(error)
        value = _prepared(self.prepare, path)
        if get_worker_info() is None or isinstance(value, (str, UserError)):
            return value
        # sent as bytes: tensors would need shared memory, which is scarce in containers
        return pickled(value)


class _ValuePickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        return (reduce_by_value(value.detach()) if type(value) is Tensor else None) or NotImplemented


def pickled(value: Any) -> bytes:
    """A value pickled with its tensors by value, in a quarter of the time that torch takes for small ones."""
    content = io.BytesIO()
    _ValuePickler(content).dump(value)
    return content.getvalue()


def _prepared(prepare: Prepare, raw: Any) -> Any:
    """The input, the reason why it could not be read, or the UserError to raise."""
    try:
        with warnings.catch_warnings(action="ignore"):  # from Pillow, about files it can read
            value = prepare(raw)
    except UserError as error:
        return error
    except OSError as error:
        # Pillow's error for a non-image file has neither; its message repeats the path
        unknown = type(error).__name__ == "UnidentifiedImageError"
        return "not an image, or truncated" if unknown else error.strerror or str(error) or type(error).__name__
    except Exception as error:  # any error: Pillow raises many types, and so may the user's code
        name = "" if type(error).__name__ in ("ValueError", "DecompressionBombError") else f"{type(error).__name__}: "
        return f"{name}{error}"
    if value is None:
        return "prepare_input returned nothing"
    return f"prepare_input returned the string {value!r:.40}" if isinstance(value, str) else value
