"""CSV files for spreadsheets or pandas: one row per epoch, and one per point of the curves within epochs."""

import csv as library
import io
from collections.abc import Mapping
from typing import Any

from logger.writers import RunInfo, Writer
from utils.files import LogFile, atomic_write, read_text
from utils.registry import WRITERS


@WRITERS.register
def csv(run: RunInfo) -> Writer:
    """metrics.csv with a row per epoch, and steps.csv with a row per curve point: step, name and value."""
    return CsvWriter(run)


class CsvWriter(Writer):
    """Its state is the number of rows in metrics.csv and the size of steps.csv in bytes.

    metrics.csv is rewritten each time, since a metric added later is a new column.
    """

    def __init__(self, run: RunInfo) -> None:
        self.path = run.folder / "metrics.csv"
        self.steps = LogFile(run.folder / "steps.csv")
        self._rows: list[dict[str, Any]] | None = None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        head = [] if self.steps.length() else [("step", "name", "value")]
        self.steps.append(_lines([*head, *((step, name, value) for name, value in values.items())]))

    def epoch(self, record: Mapping[str, float]) -> None:
        rows = self._all_rows()
        rows.append(dict(record))
        self._write(rows)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": len(self._all_rows()), "bytes": self.steps.length()}

    def resume(self, state: Mapping[str, Any], *, step: int) -> str:
        if not state and step:  # it was off until now: existing content is from before that
            return ""
        kept, rows = int(state.get("rows", 0)), self._all_rows()
        if len(rows) > kept:
            self._write(rows[:kept])
        length = int(state.get("bytes", 0))
        before = self.steps.length()
        self.steps.truncate(length)
        gone = [name for name, lost in (("metrics.csv", len(rows) < kept), ("steps.csv", before < length)) if lost]
        return ", ".join(f"{name} is shorter than it was" for name in gone)

    def sync(self) -> None:
        self.steps.sync()

    def _all_rows(self) -> list[dict[str, Any]]:
        if self._rows is None:
            text = read_text(self.path) if self.path.exists() else ""
            self._rows = list(library.DictReader(io.StringIO(text)))
        return self._rows

    def _write(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows
        names = list(dict.fromkeys(name for row in rows for name in row))
        table = [names, *([row.get(name, "") for name in names] for row in rows)] if rows else []
        with atomic_write(self.path) as file:
            file.write(_lines(table))


def _lines(rows: Any) -> bytes:
    text = io.StringIO()
    library.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
