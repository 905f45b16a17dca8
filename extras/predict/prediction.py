"""From the options of predict.py to the predictions."""

import argparse
import functools
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from base.base_data_loader import BaseDataLoader
from base.data.images.folder import SUFFIXES
from base.data.pictures import pictures_of
from base.load_run import TrainedRun, class_names_of, load_trainer
from base.training.first_batch import FORWARD_ERRORS
from extras.picture_grid import Cell
from extras.predict.inputs import Found, file_and_member, find_files
from extras.predict.outputs import ADVICE, Field, Interpreter, Sample, Task
from extras.predict.reading import Item, Unreadable, file_kind, read_items, say_beside_bar
from extras.predict.writing import Source, merged, write
from logger.console import counting
from utils.errors import DataError, Stopped, TrainingError, UserError
from utils.paths import display_path
from utils.run_folder import replace_file
from utils.schema import Command
from utils.streams import say_error
from utils.text import count, duration
from utils.tree import describe_batch, map_tensors, tensors
from utils.user_code import format_error_with_source

FORMATS = (".csv", ".json", ".jsonl", ".npz")
SETTINGS = ("runtime.deterministic=false",)
"""Nothing here is resumed."""
STACKED = (Tensor, np.ndarray, np.generic, float, int, Mapping, Sequence)
"""Types of which ``default_collate`` makes a batch."""
COLUMNS = "--columns chooses the columns of a table that are inputs"


def predict(options: argparse.Namespace) -> None:
    """Write a prediction for each input. Raises UserError, Stopped, or TrainingError if an input cannot be read."""
    out: Path | None = options.out
    _check_destination(out, options)
    trained = load_trainer(Path(options.resume), options.overrides, command=Command.PREDICT, settings=SETTINGS)
    columns = None if options.columns is None else [name.strip() for name in options.columns.split(",")]
    run = Predictor(trained, columns, show=options.show is not None)
    files = find_files(options.inputs, run.data.input_suffixes or SUFFIXES)
    _check_not_input(files, out, options.show)
    kinds = {file_kind(name, run.data.input_suffixes) for name in files.files}
    if options.columns is not None and "table" not in kinds:
        raise UserError("--columns names columns of a table, but no input is a table; leave it out")
    if columns is not None and len(set(columns)) < len(columns):
        raise UserError(f"--columns {options.columns} names a column twice")
    start = time.perf_counter()
    try:
        with run.trainer.experiment.signals:
            fields = run.predict(files)
            write(out, run.sources, fields, as_json=options.json)
    except Stopped:
        say_error("stopped; nothing was written")
        raise
    if options.show is not None:
        from extras.predict.grid import grid

        replace_file(options.show, grid(run.shown, len(run.sources)))
    done = count(len(run.sources), "prediction")
    where = "".join(f"; {display_path(path)}" for path in (out, options.show) if path is not None)
    skipped = f"; skipped {count(files.skipped, 'file')} of other kinds in folders" if files.skipped else ""
    if not_finite := _not_finite(fields, len(run.sources)):
        say_error(f"warning: {count(not_finite, 'prediction')} with values that are not finite")
    say_error(
        f"{done} by {display_path(trained.checkpoint)} (epoch {trained.progress['epochs']}) in "
        f"{duration(time.perf_counter() - start, fine=True)}{where}{skipped}"
    )
    if run.problems:
        raise TrainingError(
            f"{count(run.problems, 'input')} could not be read, as listed above; the others were predicted"
        )


class Predictor:
    """A trained model with what predicting needs, and what it has predicted. Does not need the run's data set.

    columns: of tables. show: whether to keep pictures of the first inputs.
    """

    def __init__(self, trained: TrainedRun, columns: Sequence[str] | None, *, show: bool) -> None:
        self.trainer, self.data = trained.trainer, trained.experiment.data
        self.columns, self.show = columns, show
        kept = trained.state.get("data")
        kept = kept if isinstance(kept, Mapping) else {}
        first_batch = Sample.read({"parts": kept.get("first_batch")})
        self.facts: Mapping[str, Any] = kept.get("input_facts") or {}
        """What the data loader needs to know about the training data to prepare an input."""
        self.task = Task(
            {name: loss.type for name, loss in trained.loaded.config.losses.items()},
            **{name: first_batch.part(name) for name in ("inputs", "outputs", "targets")},
            class_names=class_names_of(trained.state),
            supervised=trained.experiment.supervised,
        )
        self.sources: list[Source] = []
        self.problems = 0
        self.shown: list[Cell] = []

    def predict(self, files: Found) -> list[Field]:
        """Predict all inputs, batch by batch. Raises TrainingError if none can be read."""
        for problem in files.problems:
            self._name(problem)
        prepare = functools.partial(self.data.prepare_input, facts=self.facts)
        needed, whole = self.facts.get("columns") or (), self.data.input_suffixes
        items = self._readable(read_items(files.files, prepare, self.columns, needed, whole))
        kinds = {file_kind(name, whole) for name in files.files}
        total = len(files.files) if kinds == {"file"} else None
        interpreter, found = Interpreter(self.task), []
        with self.trainer.evaluating(), counting("predicting", "inputs", total) as advance:
            for batch in self._batches(items):
                self.trainer.experiment.signals.check()
                inputs, outputs = self._outputs(batch)
                found.append(interpreter.fields(outputs, len(batch)))
                if self.show:
                    self._show(batch, inputs, found[-1])
                self.sources += [(item.file, item.row) for item in batch]
                advance(len(batch))
        if not found and self.problems == 1:
            raise TrainingError("the input could not be read; see above")
        if not found:
            advice = f"; {COLUMNS}" if "table" in kinds and self.columns is None else ""
            raise TrainingError(f"none of {self.problems:,} inputs could be read; see above{advice}")
        return merged(found)

    def _readable(self, items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            if isinstance(item.value, Unreadable):
                self._name(f"{item.source}: {item.value}")
                continue
            try:
                yield item._replace(value=map_tensors(self._fitting, item.value))
            except DataError as error:
                raise DataError(f"{item.source}: {error}") from error

    def _name(self, problem: str) -> None:
        self.problems += 1
        say_beside_bar(f"skipped {problem}")

    def _batches(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        """Batches of inputs with the same shapes, which can be stacked; others follow in their own batch.

        An object of the user's own class, such as a graph, is a batch of its own.
        """

        def kind(item: Item) -> list[Any]:
            shapes = [(*tensor.shape, tensor.dtype) for tensor in tensors(item.value)]
            return [isinstance(item.value, STACKED), *shapes]

        for (stacked, *_), group in itertools.groupby(items, kind):
            while batch := list(itertools.islice(group, self.data.eval_batch_size if stacked else 1)):
                yield batch

    def _outputs(self, batch: Sequence[Item]) -> tuple[Any, Any]:
        """The inputs on the CPU, and the model's outputs for them."""
        trainer, file = self.trainer, batch[0].file
        values = [item.value for item in batch]
        inputs = default_collate(values) if isinstance(values[0], STACKED) else values[0]
        self._check_shape(inputs, file)
        try:
            return inputs, trainer.predict_step(trainer.runtime.to_device(inputs))
        except FORWARD_ERRORS as error:
            what = f"the model cannot take this input ({describe_batch(inputs)}): {format_error_with_source(error)}"
            advice = f"If it needs another call, {ADVICE}."
            if file_kind(file) == "table":
                advice = f"{COLUMNS}."
            elif self.task.inputs.shape is None and type(self.data).prepare_input is BaseDataLoader.prepare_input:
                define = f"define prepare_input in {type(self.data).__name__} (docs/predict.md)"
                advice = f"In training, the inputs were not one tensor; {define}."
            raise DataError(f"{file}: {what}{self._takes()}\n{advice}") from error

    def _takes(self) -> str:
        inputs = self.task.inputs
        if inputs.shape is None:
            return ""
        shape = str(("B", *inputs.shape)).replace("'", "")
        return f"\nIn training, the inputs were {inputs.dtype} of shape {shape}."

    def _fitting(self, tensor: Tensor) -> Tensor:
        """Convert an input to the dtype that the model takes. Raises DataError.

        Integers keep their values, and floats are rounded. Whole numbers that are stored as floats, as from a table,
        become integers for a model that takes those. A row with one number is that number for a model that takes one.
        """
        shape = self.task.inputs.shape
        if shape is not None and not len(shape) and tensor.shape == (1,):
            tensor = tensor[0]
        wanted = getattr(torch, self.task.inputs.dtype or "none", None)
        if not isinstance(wanted, torch.dtype) or tensor.dtype == wanted:
            return tensor.float() if wanted is None and tensor.dtype == torch.float64 else tensor
        name = str(tensor.dtype).removeprefix("torch.")
        kept = torch.can_cast(tensor.dtype, wanted) and tensor.dtype != torch.bool
        whole = not kept and wanted != torch.bool and _has_integers(tensor)
        if not (kept or whole) or (tensor.dtype == torch.uint8 and wanted.is_floating_point):
            hint = "; scale the bytes as in training" if tensor.dtype == torch.uint8 else ""
            raise DataError(f"the input is {name} of shape {tuple(tensor.shape)}{hint}.{self._takes()}")
        fitting = tensor.to(wanted)
        if tensor.is_floating_point() and kept:
            changed = fitting.isinf() & tensor.isfinite()
        else:
            changed = fitting.to(tensor.dtype) != tensor
        if changed.any():
            raise DataError(
                f"the input has the {name} value {tensor[changed][0].item()}, which is out of range.{self._takes()}"
            )
        return fitting

    def _check_shape(self, inputs: Any, file: str) -> None:
        """Raise DataError for inputs with another number of dimensions than in training."""
        shape = self.task.inputs.shape
        if isinstance(inputs, Tensor) and shape is not None and inputs.dim() - 1 != len(shape):
            rows = " An array has one row per input; use array[None] for a single input."
            got = f"{file}: the input has shape {tuple(inputs.shape[1:])}"
            raise DataError(f"{got}.{self._takes()}{rows if file_kind(file) == 'array' else ''}")

    def _show(self, batch: Sequence[Item], inputs: Any, fields: Sequence[Field]) -> None:
        from extras.predict.grid import MOST, shown

        left = MOST - len(self.shown)
        if left <= 0:
            return
        pictures = pictures_of(self.data, inputs[:left]) if isinstance(inputs, Tensor) else None
        if pictures is None:
            raise DataError("--show draws pictures, but the inputs are not pictures; leave it out")
        names = [item.file if item.row is None else f"{item.file} {item.row}" for item in batch[:left]]
        self.shown += shown(pictures, names, fields, len(self.shown))


def _has_integers(values: Tensor) -> bool:
    """Whether all values are integers stored as floats, none of which may have been rounded to fit."""
    if not values.is_floating_point():
        return False
    exact = values.abs() < 2 / torch.finfo(values.dtype).eps
    return bool((exact & (values == values.round())).all())


def _not_finite(fields: Sequence[Field], count: int) -> int:
    """Number of inputs of which a predicted value is not finite."""
    broken = np.zeros(count, bool)
    for field in fields:
        if isinstance(field.values, np.ndarray) and field.values.dtype.kind == "f":
            broken |= ~np.isfinite(field.values.reshape(count, -1)).all(1)
    return int(broken.sum())


def _check_destination(out: Path | None, options: argparse.Namespace) -> None:
    """Raise UserError if --out or --show names something that cannot be written."""
    for option, path, suffixes in (("--out", out, FORMATS), ("--show", options.show, (".png",))):
        if path is None:
            continue
        if path.suffix.lower() not in suffixes:
            raise UserError(f"{option} {path}: the suffix selects the format: {', '.join(suffixes)}")
        if path.is_dir() or not path.parent.is_dir():
            raise UserError(f"{option} {path}: it is a folder, or in no folder that exists")
    if out is not None and options.json and out.suffix.lower() not in (".json", ".jsonl"):
        raise UserError(f"--json and --out {out} contradict each other; name it FILE.json, or leave --json out")


def _check_not_input(files: Found, *paths: Path | None) -> None:
    """Raise UserError if an input would be overwritten."""
    inputs = {file_and_member(name)[0] for name in files.files}
    for path in paths:
        if path and path.exists() and any(path.samefile(name) for name in inputs if Path(name).exists()):
            raise UserError(f"{path} is one of the inputs and would be overwritten; choose another file")
