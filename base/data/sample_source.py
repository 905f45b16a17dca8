"""Any map-style data set as a source of batches: loaded sample by sample, with random generators seeded for each."""

import functools
from collections.abc import Callable
from typing import Any, cast

from torch import Tensor
from torch.utils.data import Dataset

from base.data.collate import collate_samples
from base.data.errors import collate_error, sample_error
from base.data.sample_random import RandomKey, SampleRandom, as_tensor
from base.data.seeding import DrawnGenerators
from base.data.sources import Source
from utils.errors import DataError
from utils.random import mix


class SampleSource:
    """Any map-style data set, whose samples are as if Python's, NumPy's and torch's generators, and those that the data
    set keeps for itself, were seeded from (seed, pass, index) before each.
    """

    def __init__(self, dataset: Dataset[Any], collate: Callable[[list[Any]], Any] = collate_samples) -> None:
        self.dataset: Any = dataset
        self.collate = collate
        self.generators = DrawnGenerators()

    def __len__(self) -> int:
        return len(self.dataset)

    def forget(self) -> None:
        """Called where the data set may have changed, and with it the generators that it keeps and draws from."""
        self.generators = DrawnGenerators()

    def batch(self, indices: Tensor, random: SampleRandom) -> Any:
        """The samples, collated. For ``collate``, the generators are seeded too, from the batch's first draw."""
        numbers = indices.tolist()
        draws = numbers if random.indices is indices else as_tensor(random.indices).tolist()
        try:
            load = functools.partial(self._load, numbers, draws, random.key)
            return self.generators.load(load, self.dataset, self.collate)
        except Exception as error:
            raise self._explained(error, numbers, draws, random.key) from error

    def _load(self, indices: list[int], draws: list[int], key: RandomKey) -> Any:
        """draws: seed the samples, together with the key."""
        if not self.generators.names:
            return self.collate(self._read(indices))
        seeds = [mix(*key, draw) for draw in draws]  # at once: between two samples, each would take 9 us instead of 1
        samples = []
        for index, seed in zip(indices, seeds, strict=True):
            self.generators.set_seed(seed)
            samples += self._read([index])
        self.generators.seed(key, draws[0], "collate")
        return self.collate(samples)

    def _read(self, indices: list[int]) -> list[Any]:
        """By ``__getitems__`` where there is one, as in torch: it may do more than ``__getitem__``."""
        read = getattr(self.dataset, "__getitems__", None)
        return read(indices) if read else [self.dataset[index] for index in indices]

    def _explained(self, error: Exception, indices: list[int], draws: list[int], key: RandomKey) -> Exception:
        """The error to raise for one that came up in loading a batch: names the sample that causes it, if any."""
        name = type(self.dataset).__name__
        for index, draw in zip(indices, draws, strict=True):
            self.generators.seed(key, draw)
            try:
                self._read([index])
            except Exception as again:
                return sample_error(again, f"{name}: sample {index} cannot be read")
        return collate_error(error, name, indices)


def as_source(data: Source | Dataset[Any], collate: Callable[[list[Any]], Any] = collate_samples) -> Source:
    """Data as a source of batches: a source itself, or anything map-style, with ``__getitem__`` and ``__len__``: a
    ``Dataset``, a list, a table from Hugging Face datasets. Raises DataError if it is neither.
    """
    methods = set(dir(type(data)))
    if {"__getitem__", "__len__"} <= methods and not isinstance(data, (tuple, dict)):  # as (inputs, targets)
        return SampleSource(cast("Dataset[Any]", data), collate)
    if {"batch", "__len__"} <= methods:
        return cast("Source", data)
    raise DataError(
        f"the data is of type {type(data).__name__}; expected a TensorSource(inputs, targets), a data set with "
        "__getitem__ and __len__, your own class with batch and __len__, or, for data that can only be read "
        "sequentially, a StreamSource"
    )
