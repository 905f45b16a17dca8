"""Exports a run to a file that is read back and compared with the model."""

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from base.initial_weights import load_weights
from base.load_run import TrainedRun, class_names_of, load_trainer
from extras.export.calls import Call, record_calls
from extras.export.formats import FORMATS, Exportable, Format, flat_names, weights_content
from utils.checkpoint.weights_file import evaluated_weights, read_weights
from utils.config import to_json
from utils.errors import UserError, os_errors_as
from utils.extras import need_package
from utils.files import atomic_write
from utils.paths import display_path
from utils.run_folder import RunFolder
from utils.schema import Command
from utils.streams import say
from utils.text import count, size, table
from utils.tree import copied, same, tensors

TOLERANCE = 1e-3
"""Tolerance relative to the largest output, or absolute below 1: a larger difference means a wrong export."""
SETTINGS = ("runtime.device=cpu", "runtime.precision=fp32", "runtime.compile=false", "runtime.deterministic=false")
"""Exports are in fp32 on the CPU, however the run was trained."""


def export(run: Path, name: str, out: Path | None, overrides: Sequence[str]) -> Path:
    """Export the model of a run, or of a checkpoint in one: to a format of FORMATS, or "safetensors". Returns the file.

    Raises UserError naming what cannot be exported, and where; then nothing is written.
    """
    kind = FORMATS.get(name)
    suffix, needs = (kind.suffix, kind.needs) if kind else (".safetensors", ("safetensors",))
    folder, _ = RunFolder.of(run)
    path = _target(out or folder.path / f"model{suffix}", suffix)
    for package in needs:
        need_package(package, f"{suffix} files need {package}", install=" ".join(needs))
    trained = load_trainer(run, overrides, command=Command.EXPORT, settings=SETTINGS)
    config, model = trained.loaded.config, trained.experiment.model.eval()
    load_weights(model, evaluated_weights(trained.state), trained.checkpoint)
    about = {
        "name": config.name,
        "run": trained.folder.path.resolve().name,
        **trained.about,
        "model": config.model.type,
        "class_names": class_names_of(trained.state),
    }
    if kind:
        content, compare = _traced(name, trained, about)
    else:
        about |= {"config": to_json(config, folder=trained.folder.path), "preprocessing": "none: only weights"}
        content, compare = weights_content(model, about), functools.partial(_compare_weights, model)
    reported = os_errors_as(UserError, f"{path} cannot be written", advice="; --out names another file")
    with reported, atomic_write(path) as file:
        file.write(content)
        file.flush()
        compared = compare(Path(file.name))
    say(f"{display_path(trained.checkpoint)} (epoch {about['epoch']}) -> {display_path(path)} ({size(len(content))})")
    say(*table([*_lines(about), ("", "compared", compared)]))
    return path


def _target(path: Path, suffix: str) -> Path:
    """Raises UserError if this file cannot be written, or would overwrite something else."""
    if path.suffix != suffix:
        raise UserError(f"--out {path}: the file name must end with {suffix}, or --format name another format")
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; name a file, as in {path / f'model{suffix}'}")
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: no such folder: {path.parent}; create it first")
    return path


def _traced(name: str, trained: TrainedRun, about: dict[str, Any]) -> tuple[bytes, Callable[[Path], str]]:
    """The content of a file that contains the computation, and what compares it with the model.

    about: gets what the file takes and gives.
    """
    kind = FORMATS[name]
    try:
        calls = record_calls(trained.trainer)
    except UserError as error:
        raise UserError(f"{error}\n--format safetensors exports just the weights, without it") from error
    plain = Exportable(trained.experiment.model, calls)
    exportable, note = _with_preprocessing(plain, trained.loaded.config.data_loader.type)
    expected = [exportable.run(call) for call in exportable.calls]
    try:
        about |= {"preprocessing": note} | _described(exportable)
        content = kind.content(exportable, about)
    except UserError as error:
        raise UserError(f"{about['model']} cannot be exported to {name}: {error}") from error
    return content, functools.partial(_compare, kind, exportable, expected)


class Prepared(nn.Module):
    """A model preceded by its input preprocessing."""

    def __init__(self, transform: Callable[[Tensor], Tensor], model: nn.Module) -> None:
        super().__init__()
        self.transform = transform
        self.model = model

    def forward(self, inputs: Tensor) -> Any:
        return self.model(self.transform(inputs))


def _with_preprocessing(plain: Exportable, data: str) -> tuple[Exportable, str]:
    """The model, with its preprocessing if that can be traced; and a description of it. data: the loader's type."""
    call = plain.calls[0]
    if call.stored is None or call.transform is None:
        return plain, f"none: the model takes what {data} returns"
    name = getattr(call.transform, "__qualname__", type(call.transform).__qualname__)
    calls = [Call(each.samples, {"inputs": each.stored}, None, None) for each in plain.calls]
    prepared = Exportable(Prepared(call.transform, plain.model).eval(), calls)
    with contextlib.suppress(UserError):
        prepared.program  # noqa: B018
        return prepared, f"{name}, in the graph: takes inputs as stored"
    return plain, f"none: {name} cannot be traced, so the model takes what {data} returns"


def _described(exportable: Exportable) -> dict[str, Any]:
    """Names, shapes and dtypes of inputs and outputs. Raises UserError if the outputs are not tensors."""
    exportable.shapes(str)
    with torch.no_grad():
        inputs = [call.arguments for call in exportable.calls]
        outputs = [exportable.model(**copied(arguments)) for arguments in inputs]
    described: dict[str, Any] = {"inputs": [], "outputs": []}
    for key, (first, second) in (("inputs", inputs), ("outputs", outputs)):
        names = flat_names(first, single=key)
        if not names or len(names) != len(flat_names(second)):
            raise UserError(f"its {key} are not a fixed number of tensors, but of type {type(first).__name__}")
        for name, one, other in zip(names, tensors(first), tensors(second), strict=True):
            if one.dim() != other.dim():
                raise UserError(f"its {key} have other axes for a single sample, as by squeeze()")
            pairs = zip(one.shape, other.shape, strict=True)
            shape = [pair[0] if pair[0] == pair[1] else exportable.axis(pair) for pair in pairs]
            described[key].append({"name": name, "shape": shape, "dtype": str(one.dtype).removeprefix("torch.")})
    return described


def _compare_weights(model: nn.Module, file: Path) -> str:
    """Raises UserError if a file does not contain the model's weights."""
    _, weights = read_weights(file)
    if not same(weights, dict(model.state_dict())):
        raise UserError("the exported file does not contain the model's weights")
    return f"the file contains the same {count(len(weights), 'tensor')}"


def _compare(kind: Format, exportable: Exportable, expected: list[list[Tensor]], file: Path) -> str:
    """The largest difference between model and file. Raises UserError if it is too large."""
    again = [exportable.run(call) for call in exportable.calls]
    if any(_difference(*pair) for pair in zip(expected, again, strict=True)):
        return "no: the model draws random numbers in evaluation"
    try:
        run = kind.load(file, exportable)
        found = [run(call) for call in exportable.calls]
    except Exception as error:
        raise UserError(f"the exported file does not run: {type(error).__name__}: {error}") from error
    difference = max(_difference(*pair) for pair in zip(expected, found, strict=True))
    finite = torch.cat([each.double()[each.isfinite()] for outputs in expected for each in outputs])
    allowed = TOLERANCE * max(1.0, float(finite.abs().max()) if len(finite) else 0.0)
    samples = exportable.calls[0].samples
    shown = f"largest difference {difference:.2g} over {samples} samples and over one alone"
    if not difference <= allowed:
        raise UserError(f"the exported file's outputs differ from the model's: {shown}")
    return shown


def _difference(expected: list[Tensor], found: list[Tensor]) -> float:
    """The largest absolute difference between two lists of outputs; infinity if they do not correspond."""
    if [each.shape for each in expected] != [each.shape for each in found]:
        return math.inf
    largest = 0.0
    for one, other in zip(expected, found, strict=True):
        one, other = one.double(), other.double()
        equal = (one == other) | (one.isnan() & other.isnan())
        differences = (one - other).abs().masked_fill(equal, 0.0).nan_to_num(math.inf)
        largest = max(largest, float(differences.max()) if differences.numel() else 0.0)
    return largest


def _lines(about: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The description of the file."""
    lines = []
    for key, verb in (("inputs", "takes"), ("outputs", "gives")):
        for each in about.get(key, ()):
            shape = ", ".join(map(str, each["shape"]))
            lines.append(("", verb, f"{each['name']}: {each['dtype']} ({shape})"))
            verb = ""
    names = about["class_names"]
    if names:
        shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        lines.append(("", "classes", f"{count(len(names), 'name')}: {shown}"))
    return [*lines, ("", "prepares", about["preprocessing"])]
