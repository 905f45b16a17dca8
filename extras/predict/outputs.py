"""Interprets the model's outputs: a class and its probability, values, masks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from base.training.library_metric import LOGITS, PROBABILITIES
from extras.classification import CLASS_LOSSES, are_probabilities, may_be_classes, names_of_classes
from utils.errors import DataError
from utils.tree import describe_batch, map_tensors

ADVICE = "define predict_step in the trainer to return the predictions (docs/predict.md)"


@dataclass(frozen=True)
class Field:
    """A part of the predictions for B inputs."""

    name: str
    values: Any
    """An array of shape (B, ...), or a list of B strings, lists of strings or other plain values."""
    labels: Sequence[str] | None = None
    """Column names for an array of shape (B, D)."""
    prefix: str = ""
    """Placed before the labels in a table."""


@dataclass(frozen=True)
class Sample:
    """What is known of the inputs, outputs or targets in the first batch of the training."""

    shape: Sequence[int] | None = None
    """Shape of one sample; None: unknown, or not a tensor."""
    dtype: str = ""
    highest: int | None = None
    """Of targets that may be class indices."""
    parts: "Mapping[str, Sample]" = field(default_factory=dict)
    """Of a dict, its entries."""

    @classmethod
    def read(cls, saved: Any) -> "Sample":
        """saved: from the checkpoint, which may be of another version or damaged: see SavedData."""
        if not isinstance(saved, Mapping):
            return cls()
        shape, dtype, highest, parts = (saved.get(key) for key in ("shape", "dtype", "highest", "parts"))
        return cls(
            list(shape) if isinstance(shape, (list, tuple)) else None,
            str(dtype or ""),
            highest if isinstance(highest, int) else None,
            {str(name): cls.read(part) for name, part in parts.items()} if isinstance(parts, Mapping) else {},
        )

    def part(self, name: str) -> "Sample":
        return self.parts.get(name, Sample())


@dataclass(frozen=True)
class Task:
    """What the training tells about the outputs.

    losses: the name of each loss by its name in the config, "" for a single one. class_names: None without them, or if
    the outputs are not class scores.
    """

    losses: Mapping[str, str] = field(default_factory=dict)
    inputs: Sample = Sample()
    outputs: Sample = Sample()
    targets: Sample = Sample()
    class_names: Sequence[str] | None = None
    supervised: bool = True

    def part(self, name: str) -> "Task":
        """The task for one entry of outputs that are a dict."""
        losses = {"": self.losses[name]} if name in self.losses else {}
        inputs, outputs, targets = (each.part(name) for each in (self.inputs, self.outputs, self.targets))
        return Task(losses, inputs, outputs, targets, None, self.supervised)


class Interpreter:
    """Converts batches of outputs to fields. The first batch determines the kind of outputs."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._given: dict[str, bool | None] = {}
        """Whether outputs are probabilities, by name; None: no output was finite so far."""

    def fields(self, outputs: Any, count: int) -> list[Field]:
        """count: number of inputs. Raises DataError unless there is one output for each."""
        found = list(self._fields(map_tensors(lambda each: each.detach().cpu(), outputs), count, self.task, ""))
        if not found:
            raise DataError(f"the model gives no output ({type(outputs).__name__}); {ADVICE}")
        names = ["file", "row", *(field.name for field in found)]
        if taken := next((name for name in names if names.count(name) > 1), None):
            raise DataError(
                f'two columns of the predictions would be named "{taken}"; rename an output in predict_step'
            )
        return found

    def _fields(self, outputs: Any, count: int, task: Task, name: str) -> Iterator[Field]:
        if isinstance(outputs, Tensor):
            if not outputs.dim() or len(outputs) != count:
                got = describe_batch(outputs)
                raise DataError(
                    f"the outputs{name and f' {name}'} are {got}, not one for each of {count} inputs; {ADVICE}"
                )
            yield from self._of_tensor(outputs, task, name)
        elif isinstance(outputs, dict):
            for key, value in outputs.items():
                yield from self._fields(value, count, task.part(str(key)), _joined(name, str(key)))
        elif isinstance(outputs, list) and len(outputs) == count and not isinstance(outputs[0], Tensor):
            # as for a detector: a dict for each picture
            plain = [map_tensors(lambda each: numbers(_for_numpy(each).numpy()), item) for item in outputs]
            yield Field(name or "outputs", plain)
        elif isinstance(outputs, (list, tuple)):
            names = getattr(outputs, "_fields", [str(place) for place in range(len(outputs))])
            for key, value in zip(names, outputs, strict=True):
                own = _joined(name, key) if name or hasattr(outputs, "_fields") else f"output_{key}"
                yield from self._fields(value, count, Task(supervised=False), own)
        elif outputs is not None:
            raise DataError(f"the outputs{name and f' {name}'} are of type {type(outputs).__name__}; {ADVICE}")

    def _of_tensor(self, outputs: Tensor, task: Task, name: str) -> Iterator[Field]:
        kind = output_kind(outputs, task)
        if kind == "classes" and self._given.get(name) is None:  # before the dtype is changed
            self._given[name] = are_probabilities(outputs)
        outputs = _for_numpy(outputs)
        if kind == "classes":
            yield from classes(outputs if self._given[name] else outputs.softmax(1), task.class_names, name)
        elif kind == "labels":
            chances = outputs if task.losses.get("") in PROBABILITIES else outputs.sigmoid()
            yield from labels(chances, task.class_names, name)
        elif kind == "mask":
            kind_of_index = np.uint8 if outputs.shape[1] <= 256 else np.int32
            yield Field(_joined(name, "mask"), outputs.argmax(1).numpy().astype(kind_of_index))  # (B, H, W)
        else:
            values = outputs.numpy()
            values = values[:, 0] if values.shape[1:] == (1,) else values
            yield Field(name or "value", values)


def output_kind(outputs: Tensor, task: Task) -> str:
    """ "classes", "labels" (multi-label probabilities), "mask" or "values"."""
    loss, targets, trained = task.losses.get(""), task.targets, task.outputs.shape
    if not task.supervised or not outputs.is_floating_point():
        return "values"
    if outputs.dim() <= 2 and loss in LOGITS | PROBABILITIES:
        return "labels"
    indices = targets.dtype.startswith(("int", "uint"))
    if outputs.dim() == 2 and outputs.shape[1] > 1:
        may_be = may_be_classes(loss or "", outputs.shape[1], task.class_names, targets.highest)
        if may_be and (loss in CLASS_LOSSES or (indices and targets.shape == [])):
            return "classes"
    if outputs.dim() > 2 and indices and trained and targets.shape == trained[1:]:
        return "mask"
    return "values"


def classes(chances: Tensor, names: Sequence[str] | None, name: str) -> list[Field]:
    """Classes from probabilities, float32 of (B, C). An output that is NaN has no class."""
    names = names_of_classes(names, chances.shape[1])
    best, indices = chances.max(1)
    chosen = [
        names[index] if value == value else "" for value, index in zip(best.tolist(), indices.tolist(), strict=True)
    ]
    return [
        Field(_joined(name, "class"), chosen),
        Field(_joined(name, "probability"), best.numpy()),
        Field(_joined(name, "probabilities"), chances.numpy(), names, prefix=_joined(name, "p_")),
    ]


def labels(chances: Tensor, names: Sequence[str] | None, name: str) -> list[Field]:
    """Labels from multi-label probabilities, (B,) or (B, C): those above 0.5 are predicted.

    Just 0.5 is not, as in test.py and torchmetrics.
    """
    if chances.dim() == 1 or chances.shape[1] == 1:
        of_one = chances.reshape(-1)
        two = names if names is not None and len(names) == 2 else ["0", "1"]
        chosen = [two[int(chance > 0.5)] if chance == chance else "" for chance in of_one.tolist()]
        return [
            Field(_joined(name, "class"), chosen),
            Field(_joined(name, "probability"), of_one.numpy()),  # of the second class
        ]
    names = names_of_classes(names, chances.shape[1])
    several = [
        [each for each, is_there in zip(names, row, strict=True) if is_there] for row in (chances > 0.5).tolist()
    ]
    return [
        Field(_joined(name, "classes"), several),
        Field(_joined(name, "probabilities"), chances.numpy(), names, prefix=_joined(name, "p_")),
    ]


def numbers(values: np.ndarray[Any, Any]) -> Any:
    """An array as nested lists of Python's numbers: each float with the fewest digits that reproduce it, as 0.1."""
    return (values.astype(str).astype(float) if values.dtype.kind == "f" else values).tolist()


def _for_numpy(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor  # NumPy lacks bfloat16


def _joined(name: str, last: str) -> str:
    return f"{name}_{last}" if name else last
