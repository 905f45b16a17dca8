"""Which samples make up which batch: a function of (seed, pass, position), with no state but the position.

Data flows from a position in the training data to the ranges of the following batches, the sample indices of a range,
the loaded micro-batch, and the micro-batches of an optimizer step. orders.py has the possible orders of a pass.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from base.data.orders import Order, number_repeats, weighted
from base.data.sample_random import RandomBlocks, RandomKey, SampleRandom
from base.data.sample_source import SampleSource
from base.data.sources import Source, TensorSource
from base.data.workers import Request, Workers
from utils.distributed.process_group import ProcessGroup
from utils.errors import UserError
from utils.random import numpy_random
from utils.tree import digest, to_device


class Position(NamedTuple):
    """Position in the data."""

    passes: int = 0
    """Finished passes over the data."""
    samples: int = 0
    """Samples used in the current pass."""


START = Position()


class BatchRange(NamedTuple):
    """One batch: the samples from start to stop in the order of a pass."""

    passes: int
    """Passes before this one."""
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(slots=True)
class MicroBatch:
    """The part of a batch that one process loads."""

    range: BatchRange
    """The whole batch, over all processes."""
    size: int
    """Samples of this process; 0 if it has none."""
    data: Any
    """The samples as returned by the source, such as (inputs, targets). With size 0, those of the whole batch, since
    every process must run the model; they do not count."""


@dataclass(slots=True)
class StepBatches:
    """The micro-batches of one optimizer step."""

    micro_batches: Iterable[MicroBatch]
    """Loaded one by one, since a whole step would need the memory that accumulation saves. Can be iterated once."""
    ranges: Sequence[BatchRange]
    """Of the whole batch of each."""
    samples: int
    """Samples in all micro-batches and processes together."""
    position: Position
    """The position after the step."""


@dataclass(slots=True)
class _Pass:
    """What the batches of a pass over the data have in common."""

    number: int  # 0 without an order: all passes are the same
    weights: Tensor | None  # by which the samples were drawn
    draws: Tensor | None  # the samples in order, integers of shape (N,), see ``number_repeats``; None: all as stored
    indices: Tensor | None  # int64 of shape (N,), where they are not the draws: without repeats, or on a device
    random: RandomBlocks

    def between(self, start: int, stop: int) -> Tensor:
        """Some of the draws, int64 of shape (B,)."""
        return torch.arange(start, stop) if self.draws is None else self.draws[start:stop].long()


class Batches:
    """The batches of a data set, or of part of it.

    indices: the samples to use, integers of shape (N,); None: all.
    order: the order of each pass, such as ``Shuffled(N, seed)``; None: the order of the indices.
    seed: determines the random numbers of the samples, used in augmentation.
    num_workers: processes that load batches; 0: this process loads them.
    drop_last: skip an incomplete last batch, so that all have batch_size samples. With an order that changes, each pass
        skips different samples.
    """

    checked = False
    """Whether a first batch has gone through the trainer's step, which is then no longer checked."""

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        indices: Tensor | None = None,
        order: Order | None = None,
        seed: int = 0,
        num_workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        self.source = source
        self.batch_size = batch_size
        self.indices = indices
        self.seed = seed
        self.num_workers = num_workers
        # in any other source, a slice would select views: what is done to a batch would be done to the data
        self._takes_slices = type(source).batch is TensorSource.batch
        self.num_samples = len(source) if indices is None else len(indices)
        self.order = order
        self.weighted = weighted(order)
        """The order by weights, if there is one: only it can contain a sample more than once in a pass."""
        self.samples_per_pass = self.num_samples - (self.num_samples % batch_size if drop_last else 0)
        self.drop_last = drop_last
        self.rank, self.world_size = 0, 1
        self._current_pass: _Pass | None = None
        self._workers: Workers | None = None

    def __len__(self) -> int:
        """Batches per pass, including an incomplete last one."""
        return -(-self.samples_per_pass // self.batch_size)

    def last_batch_size(self) -> int:
        """Samples in the last batch of a pass."""
        return self.samples_per_pass % self.batch_size or self.batch_size

    def optimizer_steps(self, accumulate_steps: int) -> int:
        """Optimizer steps per pass, including a last step with fewer micro-batches."""
        return -(-len(self) // accumulate_steps)

    def divide(self, rank: int, world_size: int) -> None:
        """From now on, load only this process's part of each batch."""
        self.rank, self.world_size = rank, world_size

    # ------------------------------------------------------------------ position -> ranges -> sample indices

    def begin_epoch(self, process_group: ProcessGroup) -> None:
        """Ask for the weights of the samples, if any. Raises UserError if they differ between the processes."""
        if self.weighted:
            self.weighted.begin_epoch()
            if process_group.world_size > 1:
                advice = (
                    "compute them from the samples of all processes, with self.runtime.process_group.all_reduce_sum"
                )
                process_group.check_same({"sample_weights()": digest(self.weighted.current)}, advice=advice)

    def ranges(self, position: Position = START) -> Iterator[BatchRange]:
        """The batches from a position on, endlessly."""
        while True:
            passes, start = self.next_start(position)
            stop = min(start + self.batch_size, self.num_samples)
            yield BatchRange(passes, start, stop)
            position = Position(passes, stop)

    def after(self, batch_range: BatchRange) -> Position:
        """The position after a batch."""
        return self.next_start(Position(batch_range.passes, batch_range.stop))

    def next_start(self, position: Position) -> Position:
        """Where the next batch from a position on starts: there, or in the next pass if too few samples are left.

        batch_size and drop_last may have changed within the pass, between epochs of ``steps_per_epoch``.
        """
        needed = self.batch_size if self.drop_last else 1
        if self.num_samples - position.samples >= needed:
            return position
        return Position(position.passes + 1, 0)

    def part(self, batch_range: BatchRange) -> BatchRange:
        """This process's part of a batch; empty for some if the batch has fewer samples than there are processes."""
        if self.world_size == 1:
            return batch_range
        passes, start, _ = batch_range
        first = batch_range.size * self.rank // self.world_size
        end = batch_range.size * (self.rank + 1) // self.world_size
        return BatchRange(passes, start + first, start + end)

    def sample_indices(self, batch_range: BatchRange) -> Tensor:
        """The samples of a batch, int64 of shape (B,)."""
        return self._pass(batch_range.passes).between(batch_range.start, batch_range.stop) % len(self.source)

    def _pass(self, passes: int) -> _Pass:
        """The pass after this many, kept until another one is asked for, or its samples have other weights."""
        number = 0 if self.order is None else passes
        weights = self.weighted.current if self.weighted else None
        current = self._current_pass
        if current is None or current.number != number or current.weights is not weights:
            draws = self._draws(passes)
            indices = draws % len(self.source) if draws is not None and self.weighted else None
            device = getattr(self.source, "index_device", None)
            if draws is not None and device is not None:
                indices = to_device((draws if indices is None else indices).long(), device)
            self._current_pass = current = _Pass(number, weights, draws, indices, RandomBlocks(draws, self.batch_size))
        return current

    def _draws(self, passes: int) -> Tensor | None:
        if self.order is None:
            return self.indices
        samples = self.order(passes)
        if self.indices is not None:
            samples = self.indices.index_select(0, samples)
        return number_repeats(samples, len(self.source)) if self.weighted else samples

    def _random_key(self, passes: int) -> RandomKey:
        return self.seed, "sample", passes

    # ------------------------------------------------------------------ ranges -> micro-batches -> steps

    def load_steps(self, steps: Iterable[Sequence[BatchRange]]) -> Iterator[StepBatches]:
        """Load the batches of optimizer steps, each given by its ranges."""
        steps, steps_ahead = itertools.tee(steps)  # worker processes load ahead
        loaded = self.load(itertools.chain.from_iterable(steps_ahead))
        for ranges in steps:
            samples = sum([stop - start for _, start, stop in ranges])
            micro_batches = itertools.islice(loaded, len(ranges))
            yield StepBatches(micro_batches, ranges, samples, self.after(ranges[-1]))
        next(loaded, None)  # ends ``load``, which then checks the last batch

    def load(self, ranges: Iterable[BatchRange]) -> Iterator[MicroBatch]:
        """Load this process's part of some batches, in order."""
        loaded = self._load_in_workers(ranges) if self.num_workers else self._load_here(ranges)
        for micro_batch in loaded:
            # as in the other case: forgets a second normal number that NumPy's generator may keep
            numpy_random.set_bit_generator(numpy_random.get_bit_generator())
            yield micro_batch

    def _load_here(self, ranges: Iterable[BatchRange]) -> Iterator[MicroBatch]:
        for batch_range in ranges:
            size, (passes, start, stop) = self._loaded_range(batch_range)
            current, key = self._pass(passes), self._random_key(passes)
            consecutive = current.draws is None and self._takes_slices
            draws = slice(start, stop) if consecutive else current.between(start, stop)
            indices: Any = draws if current.indices is None else current.indices[start:stop]
            random = SampleRandom(draws, key, functools.partial(current.random.uniform, key, start, stop))
            yield MicroBatch(batch_range, size, self.source.batch(indices, random))
        if isinstance(self.source, TensorSource):
            self.source.check_views()

    def one_pass(self) -> Iterator[MicroBatch]:
        """Load every sample once."""
        return self.load(itertools.islice(self.ranges(), len(self)))

    def _loaded_range(self, batch_range: BatchRange) -> tuple[int, BatchRange]:
        """The size of this process's part, and the range it loads: that part, or the whole batch if it is empty."""
        part = self.part(batch_range)
        size = part.stop - part.start
        return size, part if size else batch_range

    # ------------------------------------------------------------------ worker processes

    def _load_in_workers(self, ranges: Iterable[BatchRange]) -> Iterator[MicroBatch]:
        if self._workers is None:  # started once and kept across epochs
            self._workers = Workers(self.source, self.num_workers, self.seed, repeats=self.weighted is not None)
        ranges, ranges_ahead = itertools.tee(ranges)
        requests = map(self._request, ranges_ahead)
        try:
            for batch_range, data in zip(ranges, self._workers.load(requests), strict=True):
                if isinstance(data, UserError):
                    raise data
                yield MicroBatch(batch_range, self.part(batch_range).size, data)
        except Exception:
            self.close()  # otherwise the workers would wait until this object is garbage-collected
            raise

    def _request(self, batch_range: BatchRange) -> Request:
        _, (passes, start, stop) = self._loaded_range(batch_range)
        draws = self._pass(passes).between(start, stop)
        return draws.numpy().tobytes(), self._random_key(passes)

    def close(self) -> None:
        """End the worker processes. The next batches are of the data as it is then."""
        self._workers = None
        if isinstance(self.source, (TensorSource, SampleSource)):
            self.source.forget()
