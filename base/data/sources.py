"""Where batches come from: tensors or arrays on disk, a batch at a time; any map-style data set, a sample at a time."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from base.array_file import ArrayFile
from utils.errors import DataError
from utils.random import cpu_generator_states, restore_generators, seed_sample, uniform


@dataclass(slots=True)
class SampleRandom:
    """Random numbers for the samples of a batch: a function of (seed, pass, index), wherever they are drawn."""

    indices: Tensor | slice
    """Indices of the samples in the data set, int64 of shape (B,), or a range of them."""
    key: tuple[int | str, ...]
    drawn: int = field(default=0, init=False)
    together: "tuple[Together, int] | None" = None
    """Who draws for this batch and others, and the how manieth of them this one is."""

    def uniform(self, draws: int = 1) -> Tensor:
        """Fresh numbers in [0, 1), float64 of shape (draws, B)."""
        self.drawn += 1
        if self.together is not None:
            others, number = self.together
            return others.uniform(number, self.drawn, draws)
        return uniform(as_tensor(self.indices), *self.key, self.drawn, draws=draws)

    def integers(self, low: int, high: int, draws: int = 1) -> Tensor:
        """Fresh integers in [low, high), int64 of shape (draws, B)."""
        return (self.uniform(draws) * (high - low)).long() + low


class Together:
    """Draws for several batches at once what each of them would draw: twenty operations on small arrays take 80 us.

    indices: of each batch, as in ``SampleRandom``.
    """

    def __init__(self, indices: Sequence[Tensor | slice], key: tuple[int | str, ...]) -> None:
        self.indices, self.key = [as_tensor(of_batch) for of_batch in indices], key
        self.drawn: dict[tuple[int, int], Sequence[Tensor]] = {}

    def uniform(self, batch: int, number: int, draws: int) -> Tensor:
        """The numbers that a batch, counted from 0, draws at its number-th time, float64 of shape (draws, B)."""
        if (number, draws) not in self.drawn:
            numbers = uniform(torch.cat(self.indices), *self.key, number, draws=draws)
            self.drawn[number, draws] = torch.split(numbers, [len(of_batch) for of_batch in self.indices], dim=1)
        return self.drawn[number, draws][batch]


def draw_together(batches: Iterable[SampleRandom]) -> None:
    """From now on these batches draw together, those of each key that follow each other."""
    for key, alike in itertools.groupby(batches, key=lambda batch: batch.key):
        members = list(alike)
        together = Together([batch.indices for batch in members], key)
        for number, batch in enumerate(members):
            batch.together = together, number


class Source(Protocol):
    """A data set that gives whole batches."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor | slice, random: SampleRandom) -> Any:
        """The samples of these indices, int64 of shape (B,) or a range, as one batch."""
        ...


class TensorSource:
    """A data set in memory, in the type it is stored in; a batch is indexed, augmented and transformed at once.

    inputs: (N, ...); targets: (N, ...); an ``ArrayFile`` stays on the disk, and batches are read from it.
    augment: gets a batch as stored and the random numbers of its samples.
    transform: gets a batch as stored and gives what the model sees, as in scaling bytes to floats.
    """

    def __init__(
        self,
        inputs: Tensor | ArrayFile,
        targets: Tensor | ArrayFile,
        *,
        augment: Callable[[Tensor, SampleRandom], Tensor] | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if len(inputs) != len(targets):
            raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets")
        self.inputs, self.targets = inputs, targets
        self.augment, self.transform = augment, transform
        in_memory = isinstance(inputs, Tensor) and isinstance(targets, Tensor)
        self._plain = in_memory and augment is None and transform is None
        self._versions = _version(inputs), _version(targets)
        self._lent: tuple[slice, tuple[Tensor, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, indices: Tensor | slice, random: SampleRandom) -> tuple[Tensor, Tensor]:
        # to copy 64 rows of 1,000 takes a tenth of a small net's step; inference mode does not count who writes into it
        if self._plain and isinstance(indices, slice) and not torch.is_inference_mode_enabled():
            return self._range(indices)
        inputs, targets = _take(self.inputs, indices), _take(self.targets, indices)
        if self.augment is not None:
            inputs = self.augment(inputs, random)
        return (inputs if self.transform is None else self.transform(inputs)), targets

    def _range(self, indices: slice) -> tuple[Tensor, Tensor]:
        """A range as it lies in memory; the same tensors again where the same range is asked for again."""
        inputs, targets = cast("tuple[Tensor, Tensor]", (self.inputs, self.targets))
        if (inputs._version, targets._version) != self._versions:
            raise DataError(
                "the batch before was changed in place, by the model's first layer or by the loss perhaps, and it was "
                "no copy: the data themselves have changed. Begin the model with x = x.clone(), or leave x as it is"
            )
        if self._lent is None or self._lent[0] != indices or self._lent[1][0].requires_grad:
            self._lent = indices, (inputs[indices], targets[indices])
        return self._lent[1]


class SampleSource:
    """Any map-style data set. Each sample's transforms find the global generators seeded from (seed, pass, index)."""

    def __init__(self, dataset: Dataset[Any], collate: Callable[[list[Any]], Any] = default_collate) -> None:
        self.dataset, self.collate = dataset, collate

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def batch(self, indices: Tensor | slice, random: SampleRandom) -> Any:
        before = cpu_generator_states()  # without workers, the model's dropout draws from the same generators
        try:
            samples = []
            for index in as_tensor(indices).tolist():
                seed_sample(*random.key, index)
                samples.append(self.dataset[index])
        finally:
            restore_generators(before)
        return self.collate(samples)


def _version(data: Tensor | ArrayFile) -> int:
    """How often a tensor was changed in place."""
    return data._version if isinstance(data, Tensor) else 0


def _take(data: Tensor | ArrayFile, indices: Tensor | slice) -> Tensor:
    """A copy of some samples of (N, ...), so that whatever is done to a batch leaves the data as they are.

    ``index_select`` copies whole samples: images of 32x32 in an eighth of the time that ``[]`` takes.
    """
    if isinstance(data, ArrayFile):
        return data.rows(indices)
    return data[indices].clone() if isinstance(indices, slice) else data.index_select(0, indices)


def as_tensor(indices: Tensor | slice) -> Tensor:
    """Indices as int64 of shape (B,)."""
    return torch.arange(indices.start, indices.stop) if isinstance(indices, slice) else indices


def as_source(data: Source | Dataset[Any]) -> Source:
    return SampleSource(data) if isinstance(data, Dataset) else data


def describe_batch(batch: Any) -> str:
    """The shapes and types in a batch, for a message."""
    if isinstance(batch, torch.Tensor):
        return f"{tuple(batch.shape)} {str(batch.dtype).removeprefix('torch.')}"
    if isinstance(batch, (list, tuple)):
        return ", ".join(map(describe_batch, batch))
    return type(batch).__name__
