"""Any map-style data set as a source of batches: loaded sample by sample, with random generators seeded for each."""

import io
import pickle
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from base.data.collate import OneThread, collate_samples
from base.data.errors import collate_error, sample_error
from base.data.sample_random import RandomKey, SampleRandom, as_tensor
from base.data.sources import Source
from utils.errors import DataError
from utils.random import global_generators, mix
from utils.tree import tensors

FAR = 2**61 - 1
"""Difference between the seeds of a sample's two trials. It is prime, so that no remainder hides it, and large, so that
no rounding does: ``torch.initial_seed() / 2**63`` is the same float for two neighbouring seeds."""


class SampleSource:
    """Any map-style data set, whose samples are as if Python's, NumPy's and torch's generators were seeded from
    (seed, pass, index) before each.

    Seeding all three takes 15 us, five times as long as loading a small sample. So only generators that the data set
    has been seen to draw from are seeded: if another one moves during a batch, the batch is loaded again with it
    seeded, and so are all later ones. Samples therefore do not depend on when, or in which process, that was detected.
    """

    def __init__(self, dataset: Dataset[Any], collate: Callable[[list[Any]], Any] = collate_samples) -> None:
        self.dataset = dataset
        self.collate = collate
        self.drawn_from: list[str] = []
        """Generators to seed, by name. Each process detects its own."""
        self._first = True

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def batch(self, indices: Tensor | slice, random: SampleRandom) -> Any:
        """The samples, collated. For ``collate``, the generators are seeded too, from the batch's first draw.

        Restores the generators' state afterwards: without workers, the model's dropout draws from the same generators.
        """
        numbers = as_tensor(indices).tolist()
        draws = numbers if random.indices is indices else as_tensor(random.indices).tolist()
        generators = global_generators()
        before = {name: generator.state() for name, generator in generators.items()}
        try:
            if self._first:
                self._first = False
                with OneThread():
                    self._try_sample(numbers[0], mix(*random.key, draws[0]))
                for name, generator in generators.items():
                    generator.restore(before[name])
            while True:
                with OneThread():
                    batch = self._load(numbers, draws, random.key)
                moved = self._moved(before)
                if not moved:
                    return batch
                self.drawn_from += moved
        except Exception as error:
            raise self._explained(error, numbers) from error
        finally:
            for name in self.drawn_from:
                generators[name].restore(before[name])

    def _load(self, indices: list[int], draws: list[int], key: RandomKey) -> Any:
        """draws: seed the samples, together with the key."""
        dataset: Any = self.dataset
        if not self.drawn_from:
            load_all = getattr(dataset, "__getitems__", None)
            samples = load_all(indices) if load_all else [dataset[index] for index in indices]
            return self.collate(samples)
        generators = [global_generators()[name] for name in self.drawn_from]
        samples = []
        for index, draw in zip(indices, draws, strict=True):
            seed = mix(*key, draw)
            for generator in generators:
                generator.seed(seed)
            samples.append(dataset[index])
        for generator in generators:
            generator.seed(mix(*key, draws[0], "collate"))
        return self.collate(samples)

    def _explained(self, error: Exception, indices: list[int]) -> Exception:
        """The error to raise for one that came up in loading a batch: names the sample that causes it, if any."""
        name, samples = type(self.dataset).__name__, list[Any]()
        for index in indices:
            try:
                samples.append(self.dataset[index])
            except Exception as again:
                return sample_error(again, f"{name}: sample {index} cannot be read")
        return collate_error(error, name, indices, samples if self.collate is collate_samples else ())

    def _moved(self, before: dict[str, Any]) -> list[str]:
        """The generators that are not seeded and that something was drawn from."""
        generators, seeded = global_generators(), self.drawn_from
        return [name for name, state in before.items() if name not in seeded and generators[name].state() != state]

    def _try_sample(self, index: int, seed: int) -> None:
        """Use one sample to detect which generators are drawn from, to avoid loading a whole batch twice.

        Also detects numbers that depend on a generator without advancing it, as from ``torch.initial_seed()`` or a
        generator that the sample restores itself.
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
        # if samples differ with the same seeds, they use a generator of their own, which is up to the data set
        if first is None or (unlike and first == load(seed)):
            self.drawn_from = [*generators]


def _as_bytes(sample: Any) -> bytes | None:
    """The content of a sample, for comparison; None if it cannot be serialised."""
    content = io.BytesIO()
    try:
        _ContentPickler(content).dump(sample)
    except Exception:  # samples may contain anything
        return None
    return content.getvalue()


class _ContentPickler(pickle.Pickler):
    """Writes the values of tensors, also of those in an object such as a graph.

    torch would write the address of a tensor, and of a view the whole tensor that it is a view of.
    """

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            return NotImplemented  # torch writes a sparse tensor as several dense ones
        flat = value.detach().cpu().resolve_conj().reshape(-1).contiguous()  # a column of a table is not contiguous
        return bytes, (flat.view(torch.uint8).numpy().tobytes(),), (value.dtype, value.shape)


def as_source(data: Source | Dataset[Any], collate: Callable[[list[Any]], Any] = collate_samples) -> Source:
    """Data as a source of batches: a source itself, or anything map-style, with ``__getitem__`` and ``__len__``: a
    ``Dataset``, a list, a table from Hugging Face datasets. Raises DataError if it is neither.
    """
    if isinstance(data, (tuple, dict)) and any(isinstance(part, Tensor) for part in tensors(data)):
        raise DataError(
            f"the data is a {type(data).__name__} of tensors; expected a data set: return TensorSource(inputs, targets)"
        )
    methods = dir(type(data))
    if isinstance(data, Dataset) and "__len__" not in methods:
        raise DataError(
            f"{type(data).__name__} has no __len__, which returns the number of samples; data that can only be read "
            "sequentially is an IterableDataset or a StreamSource"
        )
    if {"__getitem__", "__len__"} <= set(methods):
        return SampleSource(cast("Dataset[Any]", data), collate)
    if {"batch", "__len__"} <= set(methods):
        return cast("Source", data)
    raise DataError(
        f"the data is of type {type(data).__name__}; expected a data set with __getitem__ and __len__, your own "
        "class with batch and __len__, or, for data that can only be read sequentially, a StreamSource"
    )
