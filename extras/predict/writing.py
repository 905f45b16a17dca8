"""Predictions as CSV, JSON or .npz."""

import contextlib
import io
import json
import math
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from extras.predict.outputs import Field, numbers
from extras.spreadsheets import csv_field
from utils.errors import DataError, UserError, os_errors_as
from utils.files import atomic_write
from utils.text import printable

MOST_COLUMNS = 100
"""Maximum number of class probabilities in a table or JSON; with more, only the predicted class's is written."""
MOST_VALUES = 1000
"""Maximum number of other outputs in a table row."""

BLOCK = 4096
"""Rows of a table whose cells are made at once."""

Source = tuple[str, int | None]
"""A file, and the row in it."""


def write(path: Path | None, sources: Sequence[Source], fields: Sequence[Field], *, as_json: bool) -> None:
    """Write predictions to a file, which replaces an older one once it is complete, or to standard output.

    Raises UserError if it cannot be written, or DataError if the format cannot hold the predictions.
    """
    suffix = path.suffix.lower() if path else ""
    if suffix == ".npz":
        content = [_npz(sources, fields)]
    else:
        as_json = as_json or suffix in (".json", ".jsonl")
        texts = [_json(sources, fields, lines=suffix == ".jsonl")] if as_json else _csv(sources, fields)
        content = [text.encode(errors="backslashreplace") for text in texts]  # a file's name may hold other bytes
    with os_errors_as(UserError, f"{path or 'standard output'} cannot be written"):
        if path is not None:
            with atomic_write(path) as file:
                file.writelines(content)
            return
        text = b"".join(content).decode()
        with contextlib.suppress(BrokenPipeError):  # the reader of the output has exited, as in `| head`
            sys.stdout.write(printable(text.replace("\x1b", "\\x1b")) if sys.stdout.isatty() else text)
            sys.stdout.flush()


def merged(batches: Sequence[Sequence[Field]]) -> list[Field]:
    """The fields of all batches as one. An output whose size varies becomes a list."""
    fields = []
    for field in batches[0]:
        parts = [each.values for batch in batches for each in batch if each.name == field.name]
        if len(parts) < len(batches):
            raise DataError(f"the model returned the output {field.name} for some of the inputs only")
        if len({part.shape[1:] if isinstance(part, np.ndarray) else None for part in parts}) > 1:
            parts = [numbers(part) if isinstance(part, np.ndarray) else part for part in parts]
        whole = np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [each for part in parts for each in part]
        fields.append(replace(field, values=whole))
    return fields


def _csv(sources: Sequence[Source], fields: Sequence[Field]) -> Iterator[str]:
    """Blocks of lines, since the cells of a block take ten times the memory of its lines."""
    has_rows = any(row is not None for _, row in sources)
    for start in range(0, len(sources), BLOCK):
        block = slice(start, start + BLOCK)
        columns = {"file": [csv_field(file) for file, _ in sources[block]]}
        if has_rows:
            columns["row"] = ["" if row is None else str(row) for _, row in sources[block]]
        named = [*columns.items()]
        for field in fields:
            named += _columns(replace(field, values=field.values[block]))
        lines = list(zip(*(column for _, column in named), strict=True))
        header = [[csv_field(name) for name, _ in named]] if start == 0 else []
        yield "".join(f"{','.join(line)}\n" for line in [*header, *lines])


def _json(sources: Sequence[Source], fields: Sequence[Field], *, lines: bool) -> str:
    """An array with one object per line; or, with lines, just the objects."""
    columns = {field.name: _json_values(field) for field in fields if not _is_wide(field)}
    records = [
        {"file": file} | ({} if row is None else {"row": row}) | {name: each[place] for name, each in columns.items()}
        for place, (file, row) in enumerate(sources)
    ]
    texts = [json.dumps(record, ensure_ascii=False) for record in records]
    return "".join(f"{text}\n" for text in texts) if lines else "[\n" + ",\n".join(texts) + "\n]\n"


def _npz(sources: Sequence[Source], fields: Sequence[Field]) -> bytes:
    """An array for each field, with file names in "file" and rows in "row" (-1: not from an array)."""
    arrays: dict[str, Any] = {"file": np.array([file for file, _ in sources], str)}
    if any(row is not None for _, row in sources):
        arrays["row"] = np.array([-1 if row is None else row for _, row in sources])
    for field in fields:
        if isinstance(field.values, np.ndarray) or all(isinstance(value, str) for value in field.values):
            arrays[field.name] = np.asarray(field.values)
        elif not all(map(_is_texts, field.values)):  # else several labels, which follow from the probabilities
            raise DataError(f"the output {field.name} has a different size for each input; only --json can write that")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array)
    return content.getvalue()


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
            raise DataError(
                f"the output {field.name} is nested or varies in size, which does not fit in a table; use --json"
            )
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
        yield field.name, _texts(values)
        return
    names = [f"{field.prefix}{label}" for label in field.labels or ()]
    names = names or [f"{field.name}_{place}" for place in range(values.shape[1])]
    for name, column in zip(names, values.T, strict=True):
        yield name, _texts(column)


def _texts(values: np.ndarray[Any, Any]) -> list[str]:
    """Each number in the fewest digits that reproduce it in its dtype; a bool as 0 or 1."""
    texts: list[str] = (values.astype(int) if values.dtype.kind == "b" else values).astype(str).tolist()
    return texts


def _json_values(field: Field) -> list[Any]:
    """A plain value for each input; null if it is not finite."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(each) for each in value]
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        return value if isinstance(value, (int, str, bool, type(None))) else str(value)

    values = plain(numbers(field.values) if isinstance(field.values, np.ndarray) else field.values)
    if field.labels is None or len(set(field.labels)) < len(field.labels):
        return list(values)
    return [dict(zip(field.labels, each, strict=True)) for each in values]
