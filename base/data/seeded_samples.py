"""Batches of a map-style data set, for each sample of which the global generators are seeded."""

import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from base.data.sample_random import RandomKey
from utils.global_generators import global_generators
from utils.random import mix, mix_each
from utils.tree import map_tensors

FAR = 2**61 - 1
"""Between the seeds of a sample's two trials. It is prime, so that no remainder hides it, and so large that no rounding
does: ``torch.initial_seed() / 2**63`` is the same float for two neighbouring seeds."""


class SeededSamples:
    """Loads samples as if each found Python's, NumPy's and torch's generator seeded from its key and its number.

    To seed all three takes 15 us, five times what a small sample takes. So only those are seeded that the data set is
    seen to draw from: a batch in which another one moved is loaded again, with that one seeded from then on. What a
    sample is therefore does not depend on when this was seen, nor in which process.
    """

    def __init__(self, dataset: Dataset[Any], collate: Callable[[list[Any]], Any]) -> None:
        self.dataset = dataset
        self.collate = collate
        self.drawn_from: list[str] = []
        """The generators that are seeded, by name. Each process finds its own."""
        self._first = True

    def batch(self, indices: list[int], draws: list[int], key: RandomKey) -> Any:
        """The samples of some indices, collated. draws: what they are seeded with, beside the key.

        Whatever is drawn, the generators are afterwards as they were: without workers, the model's dropout draws from
        the same ones. ``collate`` finds them seeded too, from the batch's first draw.
        """
        generators = global_generators()
        before = {name: generator.state() for name, generator in generators.items()}
        try:
            if self._first:
                self._first = False
                self._try_sample(indices[0], mix(*key, draws[0]))
                for name, generator in generators.items():
                    generator.restore(before[name])
            while True:
                batch = self._load(indices, draws, key)
                moved = [name for name in generators if self._has_moved(name, before[name])]
                if not moved:
                    return batch
                self.drawn_from += moved
        finally:
            for name in self.drawn_from:
                generators[name].restore(before[name])

    def _load(self, indices: list[int], draws: list[int], key: RandomKey) -> Any:
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
