"""predictions.csv, written during the evaluation; it replaces an older file only when complete."""

import contextlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from extras.spreadsheets import csv_field
from utils.distributed.process_group import ProcessGroup
from utils.errors import TrainingError
from utils.files import atomic_write

MOST_COLUMNS = 100
"""With more classes, only the probabilities of the true and the predicted class are written, to limit the file size."""


class Predictions:
    """A table with one line per sample. The file appears with the first sample, and only if the evaluation succeeds.

    files: the names of the samples, if any.
    processes: each adds its part of the same batch, which may be empty; the main process writes them all.
    """

    def __init__(self, path: Path, processes: ProcessGroup | None = None) -> None:
        self.path = path
        self.processes = processes or ProcessGroup()
        self.files: Sequence[str] | None = None
        self.begun = False
        self._stack = contextlib.ExitStack()
        self._file: BinaryIO

    def __enter__(self) -> "Predictions":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stack.__exit__(kind, error, trace)
        except OSError as failure:
            if failure is error:
                raise
            raise self._failed(failure) from failure

    def add_classes(self, start: int, probabilities: Tensor, targets: Tensor, names: Sequence[str]) -> None:
        """Add classified samples, (B, C) and (B,), from index ``start`` on."""
        few = len(names) <= MOST_COLUMNS
        chosen = [f"p_{name}" for name in names] if few else ["p_true", "p_predicted"]
        self._begin(["true", "predicted", *chosen])
        safe = [csv_field(name) for name in names]
        predicted, broken = probabilities.argmax(1), probabilities.isnan().any(1).tolist()
        if not few:
            likely = probabilities.amax(1)
            of_true = probabilities.gather(1, targets.clamp(0, len(names) - 1)[:, None])
            probabilities = torch.cat([of_true, likely[:, None]], 1)
        true = [safe[label] if 0 <= label < len(safe) else str(label) for label in targets.tolist()]
        self._rows(
            f"%s,%s,%s{',%.6g' * len(chosen)}\n",
            zip(
                self._samples(start, len(true)),
                true,
                ("" if missing else safe[label] for label, missing in zip(predicted.tolist(), broken, strict=True)),
                *probabilities.T.tolist(),
                strict=True,
            ),
        )

    def add_numbers(self, start: int, outputs: Tensor, targets: Tensor) -> None:
        """Add predicted and true numbers, both (B, ...), from index ``start`` on; skipped if too many per sample."""
        width = math.prod(outputs.shape[1:])
        if width > MOST_COLUMNS:
            return
        outputs, targets = outputs.reshape(-1, width), targets.reshape(-1, width)
        ends = [""] if width == 1 else [f"_{place}" for place in range(width)]
        self._begin([*(f"true{end}" for end in ends), *(f"predicted{end}" for end in ends)])
        columns = [*targets.T.tolist(), *outputs.T.tolist()]
        self._rows(f"%s{',%.9g' * len(columns)}\n", zip(self._samples(start, len(targets)), *columns, strict=True))

    def _samples(self, start: int, count: int) -> list[str]:
        """The cells that identify a sample: its index and, if it has one, its name."""
        indices = range(start, start + count)
        files = self.files
        return [str(index) if files is None else f"{index},{csv_field(files[index])}" for index in indices]

    def _begin(self, header: Sequence[str]) -> None:
        if self.begun:
            return
        self.begun = True
        if self.processes.is_main_process:
            try:
                self._file = self._stack.enter_context(atomic_write(self.path))
            except OSError as failure:
                raise self._failed(failure) from failure
            which = ["index"] if self.files is None else ["index", "file"]
            self._write(",".join(map(csv_field, [*which, *header])) + "\n")

    def _rows(self, form: str, rows: Iterable[tuple[object, ...]]) -> None:
        for part in self.processes.gather("".join([form % row for row in rows])):
            self._write(part)

    def _write(self, text: str) -> None:
        try:
            self._file.write(text.encode(errors="backslashreplace"))
        except OSError as failure:
            raise self._failed(failure) from failure

    def _failed(self, failure: OSError) -> TrainingError:
        return TrainingError(f"{self.path} cannot be written: {failure.strerror}")
