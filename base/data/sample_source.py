"""Any map-style data set as a source of batches: loaded sample by sample, with random generators seeded for each."""

import pickle
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from base.data.sample_random import RandomKey, SampleRandom, as_tensor
from base.data.sources import Source
from utils.errors import DataError
from utils.global_generators import global_generators
from utils.random import mix, mix_each
from utils.tree import map_tensors

FAR = 2**61 - 1
"""Between the seeds of a sample's two trials. It is prime, so that no remainder hides it, and so large that no rounding
does: ``torch.initial_seed() / 2**63`` is the same float for two neighbouring seeds."""


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
                moved = self._moved(before)
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
        generators = [global_generators()[name] for name in self.drawn_from]
        samples = []
        for index, seed in zip(indices, mix_each(key, draws), strict=True):
            for generator in generators:
                generator.seed(seed)
            samples.append(dataset[index])
        for generator in generators:
            generator.seed(mix(*key, draws[0], "collate"))
        return self.collate(samples)

    def _moved(self, before: dict[str, Any]) -> list[str]:
        """The generators that are not seeded and that something was drawn from."""
        generators, seeded = global_generators(), self.drawn_from
        return [name for name, state in before.items() if name not in seeded and generators[name].state() != state]

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
            self.drawn_from += self._moved(before)
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
