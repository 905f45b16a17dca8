"""Where batches come from: tensors or arrays on disk, a batch at a time; any map-style data set, a sample at a time."""

import pickle
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from base.array_file import ArrayFile
from base.data.sample_random import RandomKey, SampleRandom, as_tensor
from utils.errors import DataError
from utils.global_generators import global_generators
from utils.random import mix, mix_each
from utils.tree import map_tensors

FAR = 2**61 - 1
"""Between the seeds of a sample's two trials. It is prime, so that no remainder hides it, and so large that no rounding
does: ``torch.initial_seed() / 2**63`` is the same float for two neighbouring seeds."""


class Source(Protocol):
    """A data set that gives whole batches."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor | slice, random: SampleRandom) -> Any:
        """The samples of these indices, int64 of shape (B,) or a slice, as one batch."""
        ...


class TensorSource:
    """A data set in memory, in the type it is stored in; a batch is indexed, augmented and transformed at once.

    inputs: (N, ...); targets: (N, ...); an ``ArrayFile`` stays on the disk, and batches are read from it.
    augment: gets the inputs of a batch as stored, and the random numbers of its samples.
    augment_pair: in place of it, where inputs and targets change together, as images and their masks: gets both as
        stored, and the random numbers, and gives both back.

            def flip(images: Tensor, masks: Tensor, random: SampleRandom) -> tuple[Tensor, Tensor]:
                mirrored = (random.uniform()[0] < 0.5).view(-1, 1, 1)  # (B, 1, 1)
                return torch.where(mirrored, images.flip(2), images), torch.where(mirrored, masks.flip(2), masks)

    transform: gets the inputs of a batch as stored and gives what the model sees, such as bytes scaled to floats.
    """

    def __init__(
        self,
        inputs: Tensor | ArrayFile,
        targets: Tensor | ArrayFile,
        *,
        augment: Callable[[Tensor, SampleRandom], Tensor] | None = None,
        augment_pair: Callable[[Tensor, Tensor, SampleRandom], tuple[Tensor, Tensor]] | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if augment is not None and augment_pair is not None:
            raise ValueError("augment and augment_pair cannot be given together; do both in augment_pair")
        if len(inputs) != len(targets):
            raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets")
        self.inputs = inputs
        self.targets = targets
        self.augment = augment
        self.augment_pair = augment_pair
        self.transform = transform
        self._versions: tuple[int, int] | None = None
        self._last_view: tuple[slice, tuple[Tensor, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, indices: Tensor | slice, random: SampleRandom) -> tuple[Tensor, Tensor]:
        if isinstance(indices, slice) and self._is_plain() and not torch.is_inference_mode_enabled():
            return self._view(indices)
        if isinstance(self.inputs, Tensor) and not self.inputs.is_cpu:
            random.device = self.inputs.device
        inputs = _copy(self.inputs, indices)
        targets = _copy(self.targets, indices)
        if self.augment is not None:
            inputs = self.augment(inputs, random)
        if self.augment_pair is not None:
            inputs, targets = self.augment_pair(inputs, targets, random)
        if self.transform is not None:
            inputs = self.transform(inputs)
        return inputs, targets

    @property
    def in_memory(self) -> bool:
        return isinstance(self.inputs, Tensor) and isinstance(self.targets, Tensor)

    def _is_plain(self) -> bool:
        """Whether a batch is what is in memory, as it is."""
        changed = self.augment is not None or self.augment_pair is not None or self.transform is not None
        return self.in_memory and not changed

    def _view(self, indices: slice) -> tuple[Tensor, Tensor]:
        """Consecutive samples without a copy, which would take a tenth of a small net's step (64 samples of 1,000
        floats). Raises DataError if the batch before was changed in place.

        Nothing may write into such a batch. torch's count of in-place changes, the private ``Tensor._version``, shows
        whether something did; it does not count in inference mode, where batches must be copied.
        """
        inputs, targets = cast("tuple[Tensor, Tensor]", (self.inputs, self.targets))
        versions = (inputs._version, targets._version)
        if self._versions is None:
            self._versions = versions
        if versions != self._versions:
            raise DataError(
                "the batch before was changed in place, perhaps by the model's first layer or by the loss, and since "
                "it was not a copy, the data themselves have changed. Begin the model with x = x.clone(), or do not "
                "write into x"
            )
        # a data set of a single batch gives the same tensors every time, unless someone wants their gradient
        last = self._last_view
        if last is None or last[0] != indices or last[1][0].requires_grad:
            self._last_view = last = indices, (inputs[indices], targets[indices])
        return last[1]


class SampleSource:
    """Any map-style data set. Its samples are what they would be with Python's, NumPy's and torch's generators seeded
    from (seed, pass, index) before each of them.

    To seed all three takes 15 us, five times what a small sample takes. So only those are seeded that the data set is
    seen to draw from: a batch in which another one moved is loaded again, with that one seeded from then on. What a
    sample is therefore does not depend on when this was seen, nor in which process.
    """

    def __init__(self, dataset: Dataset[Any], collate: Callable[[list[Any]], Any] = default_collate) -> None:
        self.dataset = dataset
        self.collate = collate
        self.drawn_from: list[str] = []
        """The generators that are seeded, by name. Each process finds its own."""
        self._first = True

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def batch(self, indices: Tensor | slice, random: SampleRandom) -> Any:
        """The samples, collated. ``collate`` finds the generators seeded too, from the batch's first draw.

        Whatever is drawn, the generators are afterwards as they were: without workers, the model's dropout draws from
        the same ones.
        """
        numbers = as_tensor(indices).tolist()
        draws = numbers if random.indices is indices else as_tensor(random.indices).tolist()
        generators = global_generators()
        before = {name: generator.state() for name, generator in generators.items()}
        try:
            if self._first:
                self._first = False
                self._try_sample(numbers[0], mix(*random.key, draws[0]))
                for name, generator in generators.items():
                    generator.restore(before[name])
            while True:
                batch = self._load(numbers, draws, random.key)
                moved = [name for name in generators if self._has_moved(name, before[name])]
                if not moved:
                    return batch
                self.drawn_from += moved
        finally:
            for name in self.drawn_from:
                generators[name].restore(before[name])

    def _load(self, indices: list[int], draws: list[int], key: RandomKey) -> Any:
        """draws: what the samples are seeded with, beside the key."""
        dataset: Any = self.dataset
        if not self.drawn_from:
            load_all = getattr(dataset, "__getitems__", None)
            samples = load_all(indices) if load_all else [dataset[index] for index in indices]
            return self.collate(samples)
        samples = []
        for index, seed in zip(indices, mix_each(key, draws), strict=True):
            self._seed(seed)
            samples.append(dataset[index])
        self._seed(mix(*key, draws[0], "collate"))
        return self.collate(samples)

    def _seed(self, seed: int) -> None:
        for name in self.drawn_from:
            global_generators()[name].seed(seed)

    def _has_moved(self, name: str, before: Any) -> bool:
        return name not in self.drawn_from and global_generators()[name].state() != before

    def _try_sample(self, index: int, seed: int) -> None:
        """Look with one sample for generators that it draws from, so that no whole batch is loaded twice, and for
        numbers that follow from one without moving it, as those of ``torch.initial_seed()`` do, or of a generator
        that the sample puts back itself.
        """
        generators = global_generators()

        def load(other: int) -> bytes | None:
            for name, generator in generators.items():
                generator.seed(seed if name in self.drawn_from else other)
            before = {name: generator.state() for name, generator in generators.items()}
            sample = self.dataset[index]
            self.drawn_from += [name for name in generators if self._has_moved(name, before[name])]
            return _as_bytes(sample)

        first = load(seed)
        unlike = first != load(seed - FAR if seed >= FAR else seed + FAR)
        # where it differs under the same seeds, it draws from a generator of its own, which is the data set's matter
        if first is None or (unlike and first == load(seed)):
            self.drawn_from = [*generators]


def _as_bytes(sample: Any) -> bytes | None:
    """What a sample holds, for a comparison; None if it cannot be written down."""

    def contents(tensor: Tensor) -> Any:
        # not the tensor: pickle would write its address, and for a view all that it is a view of
        return tensor.dtype, tensor.shape, tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()

    try:
        return pickle.dumps(map_tensors(contents, sample))
    except Exception:  # of whatever the data set is made
        return None


def _copy(data: Tensor | ArrayFile, indices: Tensor | slice) -> Tensor:
    """Some samples of (N, ...), copied so that whatever is done to a batch leaves the data as they are.

    ``index_select`` copies whole samples: images of 32x32 in an eighth of the time that ``[]`` takes.
    """
    if isinstance(data, ArrayFile):
        return data.rows(indices)
    if isinstance(indices, slice):
        return data[indices].clone()
    return data.index_select(0, indices if data.is_cpu else indices.to(data.device, non_blocking=True))


def as_source(data: Source | Dataset[Any], collate: Callable[[list[Any]], Any] = default_collate) -> Source:
    """Data as a source of batches: a source as it is, or anything map-style, with ``__getitem__`` and ``__len__``: a
    ``Dataset``, a list, a table of Hugging Face's datasets. Raises DataError if it is neither.
    """
    methods = dir(type(data))
    if isinstance(data, Dataset) or {"__getitem__", "__len__"} <= set(methods):
        return SampleSource(cast("Dataset[Any]", data), collate)
    if {"batch", "__len__"} <= set(methods):
        return data
    raise DataError(
        f"the data are of type {type(data).__name__}; expected a data set with __getitem__ and __len__, a class "
        "of your own with batch and __len__, or, for data that can only be read on, a StreamSource"
    )
