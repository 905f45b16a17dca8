"""Which of Python's, NumPy's and torch's generators a data set draws from: only those are seeded for each sample."""

import io
import pickle
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor

from base.data.sample_random import RandomKey
from utils.random import global_generators, kept_generators, mix

T = TypeVar("T")
FAR = 2**61 - 1
"""Difference between the seeds of a sample's two trials. It is prime, so that no remainder hides it, and large, so that
no rounding does: ``torch.initial_seed() / 2**63`` is the same float for two neighbouring seeds."""

LARGE = 2**26
"""Bytes of a sample that is not compared: seeding all generators for it takes little of its time."""


class DrawnGenerators:
    """Seeds the generators that a data set has been seen to draw from; all of them until a sample was tried.

    Seeding all three takes 15 us, five times as long as loading a small sample. So only generators that were seen to be
    drawn from are seeded: if another one moves during a batch, the batch is loaded again with it seeded, and so are all
    later ones. Samples therefore do not depend on when, or in which process, that was detected.
    """

    def __init__(self) -> None:
        self.names = [*global_generators()]
        """Generators to seed. Each process detects its own."""

    def seed(self, key: RandomKey, *more: int | str) -> None:
        if self.names:
            self.set_seed(mix(*key, *more))

    def set_seed(self, seed: int) -> None:
        """seed: from ``mix``."""
        generators = global_generators()
        for name in self.names:
            generators[name].seed(seed)

    def load(self, load: Callable[[], T]) -> T:
        """The batch that ``load`` returns, which seeds the generators by ``seed``; it may be called several times.

        Restores the generators' state afterwards: without workers, the model's dropout draws from the same generators.
        """
        before = self._states()
        try:
            while True:
                try:
                    batch = load()
                except Exception:
                    if not self._has_moved(before):  # otherwise it may be due to what was drawn unseeded
                        raise
                else:
                    if not self._has_moved(before):
                        return batch
        finally:
            for name in self.names:
                global_generators()[name].restore(before[name])

    def try_sample(self, load: Callable[[], Any], seed: int, *, patience: float = float("inf")) -> None:
        """Use one sample to detect which generators it is drawn from, to avoid loading a whole batch twice.

        Also detects numbers that depend on a generator without advancing it, as from ``torch.initial_seed()`` or a
        generator that the sample restores itself. load: loads the sample; called two to four times, or once if that
        fails or takes longer than the patience, in seconds: then all generators are seeded, as they are if it fails
        only with another seed.
        """
        self.names, others = [], True
        start = time.monotonic()
        try:
            with kept_generators():
                first = self._content(load, seed, seed)
                slow = time.monotonic() - start > patience
                with suppress(Exception):
                    others = slow or first is None or self._depends_on_others(load, seed, first)
        finally:
            if others:
                self.names = [*global_generators()]

    def _depends_on_others(self, load: Callable[[], Any], seed: int, first: bytes) -> bool:
        """Whether a sample depends on a generator that it was not seen to be drawn from. first: its content."""
        other = self._content(load, seed, seed - FAR if seed >= FAR else seed + FAR)
        if other == first:
            return False
        again = self._content(load, seed, seed)
        # the first one may have been drawn before it was known what to seed for a stream's order. If samples differ
        # with the same seeds, they use a generator of their own, which is up to the data set
        return again != other and (again == first or again == self._content(load, seed, seed))

    def _content(self, load: Callable[[], Any], seed: int, other: int) -> bytes | None:
        """The content of a sample. other: seed of the generators that were not seen to be drawn from."""
        for name, generator in global_generators().items():
            generator.seed(seed if name in self.names else other)
        before = self._states()
        sample = load()
        self._has_moved(before)
        return None if sample is NotImplemented else as_bytes(sample)

    def _states(self) -> dict[str, Any]:
        return {name: generator.state() for name, generator in global_generators().items()}

    def _has_moved(self, before: dict[str, Any]) -> bool:
        """Whether something was drawn from generators that are not seeded; from now on they are."""
        generators, seeded = global_generators(), self.names
        moved = [name for name, state in before.items() if name not in seeded and generators[name].state() != state]
        self.names += moved
        return bool(moved)


class _Content(io.BytesIO):
    """Raises OverflowError for a sample that refers to all data, say, so that copies of it would take much memory."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > LARGE:
            raise OverflowError
        return super().write(data)


def as_bytes(sample: Any) -> bytes | None:
    """The content of a sample, for comparison; None if it is large, or cannot be serialised."""
    content = _Content()
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
        if value.nbytes > LARGE:
            raise OverflowError
        plain = value.detach().cpu().resolve_conj().resolve_neg()
        flat = plain.reshape(-1).contiguous()  # a column of a table is not contiguous
        return bytes, (flat.view(torch.uint8).numpy().tobytes(),), (value.dtype, value.shape)
