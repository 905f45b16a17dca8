"""From the options of predict.py to the predictions."""

import argparse
import functools
import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate
from tqdm import tqdm

from base.base_data_loader import BaseDataLoader
from base.base_trainer import BaseTrainer
from base.data.images.folder import SUFFIXES
from base.data.pictures import pictures_of
from base.load_run import TrainedRun, load_trainer
from base.training.first_batch import FORWARD_ERRORS
from extras.predict.arrays import Unreadable
from extras.predict.inputs import Found, check_words, find_files, summary
from extras.predict.outputs import ADVICE, Field, Interpreter, Task
from extras.predict.reading import Item, kind_of, read_items, rows_of
from extras.predict.writing import Add, opened
from logger.console import counting
from utils.errors import DataError, Stopped, TrainingError, UserError
from utils.paths import display_path
from utils.run_folder import replace_file
from utils.schema import Command
from utils.streams import say_error
from utils.text import count, duration, printable
from utils.tree import describe_batch, map_tensors, tensors
from utils.user_code import format_error_with_source

FORMATS = (".csv", ".json", ".jsonl", ".npz")
SETTINGS = ("runtime.deterministic=false",)
"""Nothing here is resumed."""


def predict(options: argparse.Namespace) -> None:
    """Write a prediction for each input. Raises UserError, Stopped, or TrainingError if an input cannot be read."""
    out, as_json = _destination(options)
    check_words(options.inputs)  # before the model is built, which takes seconds
    trained = load_trainer(Path(options.resume), options.overrides, command=Command.PREDICT, settings=SETTINGS)
    run = Predictor(trained, _columns(options.columns), show=options.show is not None)
    files = find_files(options.inputs, run.data.input_suffixes or SUFFIXES)
    _check_destinations(files, out, options.show)
    kinds = {kind_of(name, run.data.input_suffixes) for name in files.files}
    if options.columns is not None and "table" not in kinds:
        raise UserError("--columns names columns of a table, but no input is a table; leave it out")
    start = time.perf_counter()
    try:
        with run.trainer.experiment.signals, opened(out, as_json=as_json, with_rows=kinds != {"file"}) as add:
            run.write(files, add, bar=out is not None or not sys.stdout.isatty())
    except Stopped:
        say_error("stopped; nothing was written" if out else "stopped")
        raise
    if options.show is not None:
        from extras.predict.grid import grid

        replace_file(options.show, grid(run.shown, run.done))
    what = f"{count(run.done, 'prediction')} by {display_path(trained.checkpoint)} (epoch {trained.progress['epochs']})"
    where = "".join(f"; {display_path(path)}" for path in (out, options.show) if path is not None)
    skipped = f"; skipped files in folders: {summary(files.skipped)}" if files.skipped else ""
    if run.not_finite:
        say_error(f"warning: {count(run.not_finite, 'prediction')} with values that are not finite")
    say_error(f"{what} in {duration(time.perf_counter() - start, fine=True)}{where}{skipped}")
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
        model, trainer = type(trained.experiment.model), type(self.trainer)
        if model.forward is nn.Module.forward and trainer.predict_step is BaseTrainer.predict_step:
            raise UserError(
                f"{model.__name__} has no forward, only parts that {trainer.__name__} calls; define predict_step in "
                "the trainer (docs/predict.md)"
            )

        kept = trained.state.get("data")
        kept = kept if isinstance(kept, Mapping) else {}
        first_batch, facts = kept.get("first_batch") or {}, kept.get("input_facts")
        own_facts = type(self.data).input_facts is not BaseDataLoader.input_facts
        if facts is None and own_facts and not first_batch:  # a run from before they were saved: the data set is needed
            facts = self.data.input_facts()
        self.facts: Mapping[str, Any] = facts or {}
        """What the data loader needs to know about the training data to prepare an input."""
        # get() would ask the loader too, which may need its data for them
        names = kept["classes"] if "classes" in kept else self.data.class_names  # noqa: SIM401
        self.task = Task(
            {name: loss.type for name, loss in trained.loaded.config.losses.items()},
            first_batch if isinstance(first_batch, Mapping) else {},
            None if names is None else [str(name) for name in names],
            trained.experiment.supervised,
        )
        self.interpreter = Interpreter(self.task)
        self.batch_size = self.data.eval_batch_size
        self.tolerant = type(self.data).collate is not BaseDataLoader.collate
        self.done = self.problems = self.not_finite = 0
        self.shown: list[Any] = []
        self._other_shapes = False

    def write(self, files: Found, add: Add, *, bar: bool) -> None:
        """Predict all inputs, batch by batch. Raises TrainingError if none can be read.

        bar: whether to show progress; a table in a terminal shows it anyway.
        """
        for problem in files.problems:
            self._name(problem)
        prepare = functools.partial(self.data.prepare_input, facts=self.facts)
        needed = self.facts.get("columns") or ()
        whole = self.data.input_suffixes
        items = self._readable(read_items(files.files, prepare, self.columns, needed, whole))
        total = _total(files.files, whole)
        with self.trainer.evaluating(), counting("predicting", "inputs", total, shown=bar) as advance:
            for batch in self._batches(items):
                self.trainer.experiment.signals.check()
                inputs, fields = self._predicted(batch)
                add([(item.file, item.row) for item in batch], fields)
                if self.show:
                    self._show(batch, inputs, fields)
                self.done += len(batch)
                self.not_finite += _not_finite(fields, len(batch))
                advance(len(batch))
        if not self.done:
            which = f"none of {self.problems:,} inputs could" if self.problems > 1 else "the input could not"
            raise TrainingError(f"{which} be read; see above")

    def _readable(self, items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            if item.problem:
                row = "" if item.row is None else f", row {item.row}"
                self._name(f"{item.file}{row}: {item.problem}")
            else:
                yield item._replace(value=map_tensors(self._fitting, item.value))

    def _name(self, problem: str) -> None:
        self.problems += 1
        tqdm.write(_safe(f"skipped {problem}"), file=sys.stderr)

    def _batches(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        """Batches of inputs with the same shapes, which can be stacked; others follow in their own batch."""

        def shapes(item: Item) -> list[tuple[Any, ...]]:
            return [(*tensor.shape, tensor.dtype) for tensor in tensors(item.value)]

        for _, group in itertools.groupby(items, shapes):
            while batch := list(itertools.islice(group, self.batch_size)):
                yield batch

    def _predicted(self, batch: Sequence[Item]) -> tuple[Any, list[Field]]:
        """The inputs on the CPU, and the predictions for them."""
        trainer, first = self.trainer, batch[0]
        inputs = default_collate([item.value for item in batch])
        self._check_shape(inputs, first.file)
        try:
            outputs = trainer.predict_step(trainer.runtime.to_device(inputs))
        except FORWARD_ERRORS as error:
            what = f"the model cannot take this input ({describe_batch(inputs)}): {format_error_with_source(error)}"
            raise DataError(f"{first.file}: {what}{self._takes()}{self._advice(error, first.file)}") from error
        self._warn_of_size(inputs, first.file)
        return inputs, self.interpreter.fields(outputs, len(batch))

    def _advice(self, error: Exception, file: str) -> str:
        """What may help if the model fails on an input from this file."""
        csv = "\n--columns chooses the columns of a table that are inputs." if file.endswith(".csv") else ""
        if "missing" in str(error) and "required positional argument" in str(error):
            return f"{csv}\nOf a model with several inputs, {ADVICE}."
        if self.task.shape("inputs") is None and type(self.data).prepare_input is BaseDataLoader.prepare_input:
            define = f"define prepare_input in {type(self.data).__name__} (docs/predict.md)"
            return f"{csv}\nIn training, the inputs were not one tensor; {define}."
        return csv

    def _takes(self) -> str:
        task = self.task
        shape = task.shape("inputs")
        if shape is None:
            return ""
        return f"\nIn training, the inputs were {task.dtype('inputs')} of shape (B, {', '.join(map(str, shape))})."

    def _fitting(self, tensor: Tensor) -> Tensor:
        """Convert an input to the dtype that the model takes: integers unchanged, floats rounded. Raises DataError."""
        wanted = getattr(torch, self.task.dtype("inputs") or "none", None)
        if not isinstance(wanted, torch.dtype) or tensor.dtype == wanted:
            return tensor.float() if wanted is None and tensor.dtype == torch.float64 else tensor
        name = str(tensor.dtype).removeprefix("torch.")
        kept = torch.can_cast(tensor.dtype, wanted) and tensor.dtype != torch.bool
        if not kept or (tensor.dtype == torch.uint8 and wanted.is_floating_point):
            hint = "; scale the bytes as in training" if tensor.dtype == torch.uint8 else ""
            raise DataError(f"the input is {name} of shape {tuple(tensor.shape)}{hint}.{self._takes()}")
        fitting = tensor.to(wanted)
        if tensor.is_floating_point():
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
        shape = self.task.shape("inputs")
        if isinstance(inputs, Tensor) and shape is not None and inputs.dim() - 1 != len(shape):
            rows = " An array has one row per input; use array[None] for a single input."
            got = f"{file}: the input has shape {tuple(inputs.shape[1:])}"
            raise DataError(f"{got}.{self._takes()}{rows if kind_of(file) == 'array' else ''}")

    def _warn_of_size(self, inputs: Any, file: str) -> None:
        """Warn once of inputs that the model takes, but that have another size than in training."""
        shape = self.task.shape("inputs")
        if not isinstance(inputs, Tensor) or shape is None or list(inputs.shape[1:]) == shape:
            return
        tokens = inputs.dim() == 2 and not inputs.is_floating_point()  # of which there may be any number
        if not tokens and not self._other_shapes and not self.tolerant:
            self._other_shapes = True
            got = f"{file}: the input has shape {tuple(inputs.shape[1:])}. {self._takes().strip()}"
            tqdm.write(_safe(f"warning: {got}"), file=sys.stderr)

    def _show(self, batch: Sequence[Item], inputs: Any, fields: Sequence[Field]) -> None:
        from extras.predict.grid import MOST, shown

        left = MOST - len(self.shown)
        if left <= 0:
            return
        pictures = pictures_of(self.data, inputs[:left]) if isinstance(inputs, Tensor) else None
        if pictures is None:
            raise DataError("--show draws pictures, but the inputs are not pictures; leave it out")
        names = [item.file if item.row is None else f"{item.file} {item.row}" for item in batch[:left]]
        arrays = {field.name: field.values[:left] for field in fields if _may_be_images(field.values)}
        drawn = {name: pictures_of(self.data, torch.from_numpy(array)) for name, array in arrays.items()}
        outputs = {name: each for name, each in drawn.items() if each is not None}
        self.shown += shown(pictures, names, fields, len(self.shown), outputs=outputs)


def _may_be_images(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.ndim == 4 and values.shape[1] in (1, 3)


def _not_finite(fields: Sequence[Field], count: int) -> int:
    """Number of inputs of which a predicted value is not finite."""
    broken = np.zeros(count, bool)
    for field in fields:
        if isinstance(field.values, np.ndarray) and field.values.dtype.kind == "f":
            broken |= ~np.isfinite(field.values.reshape(count, -1)).all(1)
    return int(broken.sum())


def _total(files: Sequence[str], whole: Sequence[str] | None) -> int | None:
    """The number of inputs; None if it is known only at the end, as for a table. whole: see ``kind_of``."""
    total = 0
    for name in files:
        kind = kind_of(name, whole)
        if kind == "table":
            return None
        try:
            total += 1 if kind == "file" else len(rows_of(name))  # type: ignore[arg-type]
        except Unreadable:
            total += 1
    return total


def _destination(options: argparse.Namespace) -> tuple[Path | None, bool]:
    """The file of --out, and whether it is JSON. Raises UserError."""
    out: Path | None = options.out
    if out is not None and out.suffix.lower() not in FORMATS:
        raise UserError(f"--out {out}: the suffix selects the format: {', '.join(FORMATS)}")
    if out is not None and options.json and out.suffix.lower() not in (".json", ".jsonl"):
        raise UserError(f"--json and --out {out} contradict each other; name it FILE.json, or leave --json out")
    if options.show is not None and options.show.suffix.lower() != ".png":
        raise UserError(f"--show {options.show}: the picture is a PNG; name it FILE.png")
    for option, path in (("--out", out), ("--show", options.show)):
        if path is not None and not path.parent.is_dir():
            raise UserError(f"{option} {path}: no such folder: {path.parent}")
        if path is not None and path.is_dir():
            raise UserError(f"{option} {path}: it is a folder")
    return out, options.json or (out is not None and out.suffix.lower() in (".json", ".jsonl"))


def _check_destinations(files: Found, *paths: Path | None) -> None:
    """Raise UserError if an input would be overwritten."""
    for path in paths:
        if path is None or not path.exists():
            continue
        for name in files.files:
            if name.endswith(path.name) and Path(name).exists() and path.samefile(name):
                raise UserError(f"{path} is one of the inputs and would be overwritten; choose another file")


def _columns(text: str | None) -> list[str] | None:
    names = [name.strip() for name in (text or "").split(",")]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--columns names {repeated[0]!r} twice; a column can be an input once")
    return None if text is None else names


def _safe(text: str) -> str:
    """A line with file names for a terminal: without control characters."""
    line = text.replace("\x1b", "\\x1b").replace("\n", "\\n")
    return printable(line).encode(errors="backslashreplace").decode()
