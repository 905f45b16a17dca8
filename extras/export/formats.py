"""File formats: how to write each, and how to read it back."""

import functools
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from extras.export.calls import Call, dynamic_shapes
from extras.records import value_text
from utils.errors import UserError
from utils.text import dotted
from utils.tree import by_keys, copied, tensors
from utils.user_code import in_project, user_line

Run = Callable[[Call], list[Tensor]]
"""The outputs for a call."""


@dataclass
class Exportable:
    """A model with recorded calls of its ``forward``, the longer one first."""

    model: nn.Module
    calls: Sequence[Call]

    def names(self) -> list[str]:
        """Names of the tensor arguments: "inputs", or "inputs.points" in a dict."""
        return flat_names(self.calls[0].arguments)

    @functools.cached_property
    def _axes(self) -> dict[tuple[int, int], str]:
        return {(self.calls[0].samples, self.calls[1].samples): "batch"}

    def axis(self, sizes: tuple[int, int]) -> str:
        """The name of an axis with these sizes in the two calls: batch, length, length_2 ..."""
        number = len(self._axes)
        return self._axes.setdefault(sizes, "length" if number == 1 else f"length_{number}")

    def shapes(self, name: Callable[[str], Any]) -> dict[str, Any]:
        """The axes with varying size, by name, for each tensor. Raises UserError if there are none."""
        used = set[str]()

        def named(sizes: tuple[int, int]) -> Any:
            used.add(self.axis(sizes))
            return name(self.axis(sizes))

        first, second = (call.arguments for call in self.calls)
        shapes: dict[str, Any] = dynamic_shapes(first, second, named, "its arguments")
        if not used:
            raise UserError("its arguments have the same shapes for any number of samples")
        return shapes

    def run(self, call: Call) -> list[Tensor]:
        with torch.no_grad():
            return list(tensors(self.model(**copied(call.arguments))))

    @functools.cached_property
    def program(self) -> ExportedProgram:
        """The model as traced by torch.export. Raises UserError naming what cannot be traced, and where."""
        arguments = copied(self.calls[0].arguments)  # a model may write to them
        batch = Dim("batch")
        # torch finds the limits of a length, such as the model's number of positions
        shapes = self.shapes(lambda name: batch if name == "batch" else Dim.DYNAMIC)
        try:
            with quiet(), torch.no_grad():
                return torch.export.export(self.model, (), arguments, dynamic_shapes=shapes, strict=False)
        except Exception as error:  # any error: the model is the user's
            if fixed := FIXED_BATCH.search(str(error)):
                raise UserError(
                    f"torch.export traces it for {fixed[1]} samples only: it depends on their number, as by "
                    f"len(x) (write x.shape[0]), a loop over the samples, or view({fixed[1]}, ...)"
                ) from error
            raise UserError(f"torch.export cannot trace it: {in_short(error)}") from error


def flat_names(nest: Any, single: str = "") -> list[str]:
    """A name for each tensor in a nest, from its keys. single: for a nest that is a tensor, a list or a tuple."""
    return [dotted(keys if keys and isinstance(keys[0], str) else [single, *keys]) for keys in by_keys(nest)]


def in_short(error: BaseException) -> str:
    """The first line of an error's root cause, and the user's line that raised it."""
    place = user_line(error)
    while error.__cause__ is not None:
        error = error.__cause__
        place = user_line(error) or place
    lines = [line for line in str(error).splitlines() if line.strip()]
    return "\n".join(filter(None, [f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": "), place]))


def caller(program: ExportedProgram, error: BaseException) -> str:
    """The line of the model that calls an operator missing in ONNX, according to an error; empty if unknown."""
    operator = re.search(r"OpOverload\(op='\w+\.(\w+)'", str(error))
    for node in program.graph.nodes:
        if operator and operator[1] in str(node.target):
            place = re.findall(r'File "(.+)", line (\d+), in .+\n +(.+)', node.meta.get("stack_trace") or "")
            return f"\n  {in_project(place[-1][0])}:{place[-1][1]}: {place[-1][2]}" if place else ""
    return ""


@contextmanager
def quiet() -> Iterator[None]:
    """Inside the block, torch neither warns nor logs nor prints graphs: an error says it all."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


FIXED_BATCH = re.compile(r"You marked batch as dynamic but your code specialized it to be a constant \((\d+)\)")
"""In an error of torch.export, after its first line."""


@dataclass(frozen=True)
class Format:
    """A file format that contains the computation."""

    suffix: str
    needs: Sequence[str]
    """Required packages; the first gives the format its name."""
    content: Callable[[Exportable, Mapping[str, Any]], bytes]
    """The content of the file, with plain values for its metadata. Raises UserError."""
    load: Callable[[Path, Exportable], Run]
    """The function that the file computes."""


def torch_content(exportable: Exportable, about: Mapping[str, Any]) -> bytes:
    """torch.export's archive, read by ``torch.export.load``; contains metadata.json as an extra file."""
    buffer = io.BytesIO()
    program = exportable.program
    try:
        with quiet():
            torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(about)})
    except Exception as error:  # any error, as for outputs of a type that torch cannot save
        raise UserError(f"torch.export cannot save it (try --format onnx): {in_short(error)}") from error
    return buffer.getvalue()


def load_torch(path: Path, exportable: Exportable) -> Run:
    with path.open("rb") as file, quiet():
        return Exportable(torch.export.load(file).module(), exportable.calls).run


def onnx_content(exportable: Exportable, about: Mapping[str, Any]) -> bytes:
    """ONNX for onnxruntime and others; metadata is in the model's ``metadata_props``."""
    program = exportable.program
    try:
        with quiet():
            made = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                dynamic_shapes=exportable.shapes(str),
                input_names=exportable.names(),
                output_names=[output["name"] for output in about["outputs"]],
            )
    except Exception as error:
        raise UserError(f"torch.onnx cannot convert it: {in_short(error)}{caller(program, error)}") from error
    assert made is not None
    made.model.metadata_props.update({key: value_text(value) for key, value in about.items()})
    content: bytes = made.model_proto.SerializeToString()
    return content


def load_onnx(path: Path, exportable: Exportable) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # only errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    taken = {argument.name for argument in session.get_inputs()}

    def run(call: Call) -> list[Tensor]:
        given = zip(exportable.names(), tensors(call.arguments), strict=True)
        feed = {name: tensor.numpy() for name, tensor in given if name in taken}
        return [torch.as_tensor(output) for output in session.run(None, feed)]

    return run


FORMATS = {
    "torch": Format(".pt2", ("torch",), torch_content, load_torch),
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), onnx_content, load_onnx),
}


def weights_content(model: nn.Module, about: Mapping[str, Any]) -> bytes:
    """A safetensors file of the weights by the model's names, which ``--init-from`` accepts too."""
    import safetensors.torch

    state = model.state_dict()
    if others := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise UserError(f"safetensors can only store tensors, but the model's {others[0]} is not one")
    weights = {name: value.detach().clone().contiguous() for name, value in state.items()}
    content: bytes = safetensors.torch.save(weights, {key: value_text(value) for key, value in about.items()})
    return content
