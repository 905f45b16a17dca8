"""Predictions as CSV, JSON or .npz, written incrementally; a file replaces an older one only when complete."""

import contextlib
import json
import math
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from extras.predict.outputs import Field
from extras.spreadsheets import csv_field
from utils.errors import DataError, UserError, os_errors_as
from utils.files import atomic_write
from utils.text import printable

MOST_COLUMNS = 100
"""Maximum number of class probabilities in a table or JSON; with more, only the predicted class's is written."""
MOST_VALUES = 1000
"""Maximum number of other outputs in a table row."""

Write = Callable[[str], None]
Source = tuple[str, int | None]
"""A file, and the row in it."""
Add = Callable[[Sequence[Source], Sequence[Field]], None]
"""Receives the predictions of a batch."""


class CsvWriter:
    """with_rows: whether an input may be a row of a file."""

    def __init__(self, write: Write, *, with_rows: bool) -> None:
        self._write, self._with_rows = write, with_rows
        self._header: list[str] | None = None

    def add(self, sources: Sequence[Source], fields: Sequence[Field]) -> None:
        header, columns = ["file"], [[csv_field(file) for file, _ in sources]]
        if self._with_rows:
            header.append("row")
            columns.append(["" if row is None else str(row) for _, row in sources])
        for field in fields:
            for name, column in _columns(field):
                header.append(name)
                columns.append(column)
        if self._header is None:
            self._header = header
            self._write(",".join(map(csv_field, header)) + "\n")
        elif header != self._header:
            raise DataError(
                f"{sources[0][0]}: the model returned {len(header)} columns for it, but {len(self._header)} before; "
                "use --json for outputs of varying number"
            )
        self._write("".join(f"{','.join(line)}\n" for line in zip(*columns, strict=True)))

    def close(self) -> None:
        pass


class JsonWriter:
    """An array with one object per line; or, with lines, just the objects."""

    def __init__(self, write: Write, *, lines: bool) -> None:
        self._write, self._lines = write, lines
        self._any = False

    def add(self, sources: Sequence[Source], fields: Sequence[Field]) -> None:
        columns = {field.name: _json_values(field) for field in fields if not _is_wide(field)}
        for place, (file, row) in enumerate(sources):
            record: dict[str, Any] = {"file": file} | ({} if row is None else {"row": row})
            record |= {name: values[place] for name, values in columns.items()}
            start = "" if self._lines else ",\n" if self._any else "[\n"
            self._any = True
            self._write(start + json.dumps(record, ensure_ascii=False) + ("\n" if self._lines else ""))

    def close(self) -> None:
        if not self._lines:
            self._write("\n]\n" if self._any else "[]\n")


class NpzWriter:
    """An array for each field, with file names in "file" and rows in "row" (-1: not from an array).

    Each array is first written to an unnamed file next to the result, since the number of inputs is known only at the
    end.
    stack: closes these files.
    """

    def __init__(self, file: IO[bytes], folder: Path, stack: ExitStack) -> None:
        self._file, self._folder, self._stack = file, folder, stack
        self._sources: list[Source] = []
        self._parts: dict[str, tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]] = {}
        self._texts: dict[str, list[str]] = {}

    def add(self, sources: Sequence[Source], fields: Sequence[Field]) -> None:
        self._sources += sources
        for field in fields:
            if isinstance(field.values, np.ndarray):
                self._add_array(field.name, field.values, sources)
            elif all(isinstance(value, str) for value in field.values):
                self._texts.setdefault(field.name, []).extend(field.values)
            elif field.labels is None and not all(_is_texts(value) for value in field.values):
                raise DataError(
                    f"the output {field.name} has a different size for each input; only --json can write that"
                )

    def _add_array(self, name: str, values: np.ndarray[Any, Any], sources: Sequence[Source]) -> None:
        shape, dtype = values.shape[1:], values.dtype
        if name not in self._parts:
            temporary = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
            self._parts[name] = self._stack.enter_context(temporary), shape, dtype
        file, expected, _ = self._parts[name]
        if shape != expected:
            raise DataError(
                f"{sources[0][0]}: the output {name} has shape {shape}, but {expected} before, which "
                "cannot be one array; predict inputs of one size at a time"
            )
        file.write(np.ascontiguousarray(values).data)

    def close(self) -> None:
        lists: dict[str, list[Any]] = {"file": [file for file, _ in self._sources]}
        if any(row is not None for _, row in self._sources):
            lists["row"] = [-1 if row is None else row for _, row in self._sources]
        with zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED) as archive:
            for name, values in (lists | self._texts).items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.array(values, None if values else str))
            for name, (file, shape, dtype) in self._parts.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    whole = (len(self._sources), *shape)
                    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": whole}
                    np.lib.format.write_array_header_2_0(member, header)
                    file.seek(0)
                    shutil.copyfileobj(file, member)


@contextlib.contextmanager
def opened(path: Path | None, *, as_json: bool, with_rows: bool) -> Iterator[Add]:
    """A function that adds predictions to a file or standard output. Raises UserError if that cannot be written."""
    reported = partial(os_errors_as, UserError, f"{path or 'standard output'} cannot be written")
    stack = ExitStack()
    writer: CsvWriter | JsonWriter | NpzWriter
    if path is None:
        writer = JsonWriter(_print, lines=False) if as_json else CsvWriter(_print, with_rows=with_rows)
    else:
        with reported():
            file = stack.enter_context(atomic_write(path))
        if path.suffix == ".npz":
            writer = NpzWriter(file, path.parent, stack)
        elif as_json:
            writer = JsonWriter(_to(file), lines=path.suffix == ".jsonl")
        else:
            writer = CsvWriter(_to(file), with_rows=with_rows)

    def add(sources: Sequence[Source], fields: Sequence[Field]) -> None:
        with reported():
            writer.add(sources, fields)

    try:
        yield add
        with reported():
            writer.close()
    except BaseException:
        with contextlib.suppress(OSError):  # the disk may be full again, as what remains is written
            stack.__exit__(*sys.exc_info())
        raise
    with reported():
        stack.close()


def _to(file: IO[bytes]) -> Write:
    def write(text: str) -> None:
        file.write(text.encode(errors="backslashreplace"))  # a file name may contain bytes that are not text

    return write


def _print(text: str) -> None:
    """Write to standard output; to a terminal without control characters."""
    text = text.encode(errors="backslashreplace").decode()
    if sys.stdout.isatty():
        text = printable(text.replace("\x1b", "\\x1b"))
    sys.stdout.write(text)
    sys.stdout.flush()


def _is_wide(field: Field) -> bool:
    """Whether there are too many classes to write all probabilities."""
    return field.labels is not None and len(field.labels) > MOST_COLUMNS


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _columns(field: Field) -> Iterator[tuple[str, list[str]]]:
    """Names and cells of a field's table columns. Raises DataError if it does not fit in a table."""
    values = field.values
    if isinstance(values, list):
        if not all(isinstance(value, str) or _is_texts(value) for value in values):
            raise DataError(f"the output {field.name} is nested, which does not fit in a table; use --json")
        yield field.name, [csv_field(value if isinstance(value, str) else "; ".join(value)) for value in values]
        return
    if _is_wide(field):
        return
    if values.ndim > 2 or math.prod(values.shape[1:]) > MOST_VALUES:
        raise DataError(
            f"the output {field.name} has shape {values.shape[1:]} for each input, which does not fit in a table; "
            "--out FILE.npz writes it as an array"
        )
    if values.ndim == 1:
        yield field.name, _numbers(values, field.digits)
        return
    names = [f"{field.prefix}{label}" for label in field.labels or ()]
    names = names or [f"{field.name}_{place}" for place in range(values.shape[1])]
    for name, column in zip(names, values.T, strict=True):
        yield name, _numbers(column, field.digits)


def _numbers(values: np.ndarray[Any, Any], digits: int) -> list[str]:
    if values.dtype.kind == "f":
        return [f"{value:.{digits}g}" for value in values.tolist()]
    return [str(int(value)) if values.dtype.kind == "b" else str(value) for value in values.tolist()]


def _json_values(field: Field) -> list[Any]:
    """A plain value for each input; null if it is not finite."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(each) for each in value]
        if isinstance(value, float):
            return float(f"{value:.{field.digits}g}") if math.isfinite(value) else None
        return value if isinstance(value, (int, str, bool, type(None))) else str(value)

    values = plain(field.values.tolist() if isinstance(field.values, np.ndarray) else field.values)
    if field.labels is None or len(set(field.labels)) < len(field.labels):
        return list(values)
    return [dict(zip(field.labels, each, strict=True)) for each in values]
