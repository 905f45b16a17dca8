"""Which samples make which batch: a function of (seed, pass, position), with nothing to remember but the position."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from base.data.lazy_indices import LazyIndices, Permutation
from base.data.sources import SampleRandom, Source, as_tensor, draw_together
from utils.random import mix, permutation
from utils.signals import end_workers_at_exit, ignore_in_worker

AHEAD, AHEAD_SAMPLES = 64, 2**14
"""So many optimizer steps, or the steps of so many samples, are planned together."""
IN_MEMORY = 2**25
"""Samples up to which an order is kept in memory: 256 MB in each process."""

Request = tuple[Tensor | slice, SampleRandom]
"""Which samples to load for a batch, and the random numbers that they have in this pass."""
Planned = tuple["BatchRange", int, Request]
Plan = tuple[list[Planned], int, "Position"]


@dataclass(slots=True)
class MicroBatch:
    """A loaded batch. size: how many of its samples are this process's."""

    range: "BatchRange"
    size: int
    data: Any


@dataclass(slots=True)
class StepBatches:
    """The micro-batches of an optimizer step, their samples in all processes together, the position after them."""

    micro_batches: Iterable[MicroBatch]
    count: int
    samples: int
    position: "Position"


class Position(NamedTuple):
    """How far the training data are used: whole passes, and samples of the pass that is under way."""

    passes: int = 0
    samples: int = 0


class BatchRange(NamedTuple):
    """One batch: the samples from start to stop in the order of a pass."""

    passes: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


class Batches:
    """The batches of a data set or of a part of it.

    indices: the samples that take part, int64 of shape (N,); None: all. shuffle: an order of its own for each pass.
    num_workers: processes that prepare batches; 0 prepares them in this one.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        indices: Tensor | LazyIndices | None = None,
        shuffle: bool = False,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        self.source, self.batch_size, self.indices = source, batch_size, indices
        self.shuffle, self.seed, self.num_workers = shuffle, seed, num_workers
        self.num_samples = len(source) if indices is None else len(indices)
        self.rank, self.count = 0, 1
        self._order: tuple[int, Tensor | LazyIndices] | None = None
        self._workers: tuple[_Requests, DataLoader[Any]] | None = None

    def __len__(self) -> int:
        """Batches in one pass; a short last one counts."""
        return -(-self.num_samples // self.batch_size)

    def divide(self, rank: int, count: int) -> None:
        """From now on load only the part of each batch that is the rank-th of count processes'."""
        self.rank, self.count = rank, count

    def part(self, window: BatchRange) -> BatchRange:
        """The samples of a batch that are this process's; none, where a batch has fewer samples than processes."""
        start = window.start + window.size * self.rank // self.count
        return BatchRange(window.passes, start, window.start + window.size * (self.rank + 1) // self.count)

    def optimizer_steps(self, accumulate_steps: int) -> int:
        """Optimizer steps in one pass; a short last group of batches counts."""
        return -(-len(self) // accumulate_steps)

    def ranges(self, position: Position = Position(0, 0)) -> Iterator[BatchRange]:  # noqa: B008  (immutable)
        """The batches from a position on, without end."""
        passes, start = position
        while True:
            stop = min(start + self.batch_size, self.num_samples)
            yield BatchRange(passes, start, stop)
            passes, start = (passes, stop) if stop < self.num_samples else (passes + 1, 0)

    def after(self, window: BatchRange) -> Position:
        """The position when a batch is used."""
        return (
            Position(window.passes, window.stop) if window.stop < self.num_samples else Position(window.passes + 1, 0)
        )

    def sample_indices(self, window: BatchRange) -> Tensor | slice:
        """Which samples of the data set a batch holds, int64 of shape (B,), or a range, which is copied faster."""
        if not self.shuffle:
            chosen = slice(window.start, window.stop)
            return chosen if self.indices is None else self.indices[chosen]
        if self._order is None or self._order[0] != window.passes:
            self._order = window.passes, self._order_of(window.passes)
        order, places = self._order[1], slice(window.start, window.stop)
        return order[places] if self.indices is None or isinstance(order, Tensor) else self.indices[order[places]]

    def _order_of(self, passes: int) -> Tensor | LazyIndices:
        """The samples of a pass or, where they are so many that it is computed, their places among the indices."""
        key = (self.seed, "order", passes)
        if self.num_samples > IN_MEMORY:
            return Permutation(self.num_samples, *key)
        order = permutation(self.num_samples, *key)
        return order if self.indices is None else self.indices[order]

    def load(self, windows: Iterable[BatchRange]) -> Iterator[MicroBatch]:
        """The batches of these windows, or this process's part of each, in their order."""
        for step in self.load_steps(zip(windows)):
            yield from step.micro_batches

    def load_steps(self, groups: Iterable[Sequence[BatchRange]]) -> Iterator[StepBatches]:
        """The batches of these windows, or this process's part of each, in their order and in the same groups.

        A process that has no part of a batch gets all of it, since it must go through the model with the others; it
        counts for nothing.
        """
        if self.num_workers:
            yield from self._prepared(groups)
            return
        for requests, samples, after in self._planned(groups):
            batches = (MicroBatch(window, size, self.source.batch(*request)) for window, size, request in requests)
            yield StepBatches(batches, len(requests), samples, after)

    def one_pass(self) -> Iterator[MicroBatch]:
        """Every sample once."""
        return self.load(itertools.islice(self.ranges(), len(self)))

    def _planned(self, groups: Iterable[Sequence[BatchRange]]) -> Iterator[Plan]:
        """What ``_requests`` gives, some ahead: one after the other that takes a quarter of the time that it does in
        between steps, after each of which the processor must fetch the code anew.
        """
        plans, planned = [], 0
        for group in groups:
            plans.append(plan := self._requests(group))
            planned += plan[1]
            if len(plans) == AHEAD or planned >= AHEAD_SAMPLES:
                yield from _drawing_together(plans)
                plans, planned = [], 0
        yield from _drawing_together(plans)

    def _requests(self, group: Sequence[BatchRange]) -> Plan:
        """What to load for a group of batches, and the rest of the group."""
        return [self._request(window) for window in group], sum([w.size for w in group]), self.after(group[-1])

    def _request(self, window: BatchRange) -> Planned:
        """How many samples of a batch are this process's, and which ones to load for it."""
        own = window if self.count == 1 else self.part(window)
        indices = self.sample_indices(own if own.size else window)
        return window, own.size, (indices, SampleRandom(indices, (self.seed, "sample", window.passes)))

    def _prepared(self, groups: Iterable[Sequence[BatchRange]]) -> Iterator[StepBatches]:
        """As ``load_steps``, from the worker processes."""
        if self._workers is None:  # started once and kept from epoch to epoch
            self._workers = self._start_workers(_Fetch(self.source))
        sampler, loader = self._workers
        plans, ahead = itertools.tee(map(self._requests, groups))  # the workers' requests go ahead of what they give
        sampler.requests = (request for requests, _, _ in ahead for _, _, request in requests)
        loaded = iter(loader)
        for requests, samples, after in plans:
            batches = (MicroBatch(window, size, next(loaded)) for window, size, _ in requests)
            yield StepBatches(batches, len(requests), samples, after)

    def close(self) -> None:
        """End the worker processes."""
        self._workers = None

    def _start_workers(self, fetch: "_Fetch") -> "tuple[_Requests, DataLoader[Any]]":
        end_workers_at_exit()
        sampler = _Requests()
        loader: DataLoader[Any] = DataLoader(
            fetch,
            sampler=sampler,
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=True,
            pin_memory=torch.accelerator.is_available(),
            worker_init_fn=ignore_in_worker,
            # a generator of its own: the loader draws from it, and must not draw from the model's
            generator=torch.Generator().manual_seed(mix(self.seed, "workers")),
        )
        return sampler, loader


class _Fetch(Dataset[Any]):
    """Batches by request in a worker."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, sent: tuple[npt.NDArray[np.int64], tuple[int | str, ...]]) -> Any:
        indices = torch.from_numpy(sent[0])
        return self.source.batch(indices, SampleRandom(indices, sent[1]))


class _Requests(torch.utils.data.Sampler[Any]):
    """Hands the requests of one epoch to the workers."""

    def __init__(self) -> None:
        self.requests: Iterable[Request] = ()

    def __iter__(self) -> Iterator[tuple[npt.NDArray[np.int64], tuple[int | str, ...]]]:
        # as bytes: for a tensor a worker would ask this process back, which complains if the worker is gone by then
        for indices, random in self.requests:
            yield as_tensor(indices).numpy(), random.key


def _drawing_together(plans: list[Plan]) -> list[Plan]:
    draw_together(random for requests, _, _ in plans for _, _, (_, random) in requests)
    return plans
