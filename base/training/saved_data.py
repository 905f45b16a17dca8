"""What a checkpoint records about the data set: a run must not resume with a different one."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from base.base_data_loader import BaseDataLoader
from base.data.stream import StreamBatches
from base.experiment import Training
from base.metric import StepResult
from utils.distributed import ProcessGroup
from utils.errors import ConfigError, DataError
from utils.random import isolated
from utils.text import count
from utils.tree import digest, has_strides

MAX_HASHED = 10_000_000  # numbers; takes 0.1 s
FACTS = {
    "training": "number of samples for training",
    "validation": "number of samples for validation",
    "validation_sets": "number of samples of each validation set",
    "classes": "list of classes",
    "targets": "hash of the targets",
    "held_out": "hash of the samples held out",
}


class SavedData:
    """The FACTS, with targets if they are integers in memory, the weights by which samples are drawn, and the position
    of a stream.

    For predictions without the data set, also what the data loader needs to know about it, and the shapes and dtypes of
    the first batch.
    """

    def __init__(self, training: Training, data: BaseDataLoader, *, seed: int) -> None:
        self.name = type(data).__name__
        self.stream = training.batches if isinstance(training.batches, StreamBatches) else None
        self.weighted = training.batches.weighted
        every = (training.batches, *training.validation.values())
        self._lengths = [(batches, len(batches.source)) for batches in every]
        names, self.input_facts = data.class_names, input_facts(data, seed)
        if names is not None and (isinstance(names, str) or not isinstance(names, Iterable)):
            raise ConfigError(f"{self.name}.class_names is {names!r}; expected a list of names, or None")
        if not isinstance(self.input_facts, Mapping):
            raise ConfigError(f"{self.name}.input_facts returned {self.input_facts!r:.100}; expected a dict")
        held_out = training.validation.get("")
        self._facts: dict[str, Any] = {
            "training": training.batches.num_samples,
            "validation": training.validation_samples,
            "validation_sets": {name: batches.num_samples for name, batches in training.validation.items()},
            "classes": None if names is None else [str(name) for name in names],
            "targets": _hash(getattr(training.batches.source, "targets", None)),
            "held_out": _hash(held_out.indices if held_out else None),
        }
        self.saved_input_facts: Mapping[str, Any] = {}
        """Those of the checkpoint that was loaded."""
        self._first_batch: dict[str, Any] | None = None

    def check_processes(self, process_group: ProcessGroup) -> None:
        """Raise UserError if another process has another data set, which would be divided wrongly."""
        process_group.check_same({FACTS[name]: fact for name, fact in self._facts.items()})

    def check_lengths(self) -> None:
        """Raise DataError if the length of a data set differs from that at the start."""
        for batches, before in self._lengths:
            if (now := len(batches.source)) != before:
                raise DataError(
                    f"a data set of {self.name} had {count(before, 'sample')} and now has {now:,}; its length must "
                    "stay the same, since the order of the samples follows from it"
                )

    def first_batch(self, batch: Any, result: StepResult) -> None:
        """Store the shapes and dtypes of a sample in the run's first batch, and of the model's output for it."""
        if self._first_batch is None:
            inputs = batch[0] if isinstance(batch, (list, tuple)) and batch else None
            named = {"inputs": inputs, "outputs": result.outputs, "targets": result.targets}
            self._first_batch = {name: _sample(value) for name, value in named.items()}

    def state_dict(self) -> dict[str, Any]:
        added: dict[str, Any] = {"input_facts": self.input_facts, "first_batch": self._first_batch}
        if self.weighted:
            added["sample_weights"] = self.weighted.state_dict()
        state = self._facts | {name: value for name, value in added.items() if value}
        return state | ({"stream": self.stream.state_dict()} if self.stream else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises DataError naming what has changed, or CheckpointError if a stream's state is invalid."""
        self._first_batch = state.get("first_batch", self._first_batch)
        self.saved_input_facts = state.get("input_facts", {})
        for fact, now in self._facts.items():
            before = state.get(fact)
            if None not in (before, now) and before != now:
                raise DataError(
                    f"data_loader: the data set of {self.name} has changed: the {FACTS[fact]} was {before!s:.200}, and "
                    f"is now {now!s:.200}"
                )
        if self.weighted and (weights := state.get("sample_weights")):
            self.weighted.load_state_dict(weights)
        if self.stream:
            self.stream.load_state_dict(state.get("stream"))


def input_facts(data: BaseDataLoader, seed: int) -> Any:
    """``input_facts`` of a data loader: the same in training and in a test, even if it draws random samples."""
    with isolated(seed, "input facts"):
        return data.input_facts()


def _sample(value: Any) -> dict[str, Any] | None:
    """Shape and dtype of one sample in a batch of shape (B, ...), or of each in a dict; None for anything else."""
    if isinstance(value, dict):
        return {"parts": {str(name): _sample(part) for name, part in value.items()}}
    if not isinstance(value, Tensor) or value.is_nested or not value.dim():
        return None
    spec: dict[str, Any] = {"shape": list(value.shape[1:]), "dtype": str(value.dtype).removeprefix("torch.")}
    if spec["shape"] == [] and has_strides(value) and spec["dtype"].startswith(("int", "uint")) and len(value):
        spec["highest"] = int(value.max())  # whether they may be class indices
    return spec


def _hash(values: Any) -> str | None:
    """A hash of integers in memory; None for anything else, or too many."""
    if not isinstance(values, Tensor) or values.is_floating_point() or values.is_complex() or values.is_meta:
        return None
    return digest(values) if has_strides(values) and 0 < values.numel() <= MAX_HASHED else None
