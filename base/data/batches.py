"""Which samples make which batch: a function of (seed, pass, position), with nothing to remember but the position.

The way of the data: a position in the training data, the ranges of the batches that follow, the sample indices of a
range, the loaded micro-batch, the micro-batches of an optimizer step. orders.py has the orders that a pass may have.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from base.data.orders import Order, Shuffled, number_repeats
from base.data.sample_random import RandomBlock, RandomKey, SampleRandom, as_tensor
from base.data.sources import Source
from base.data.workers import Request, Workers
from utils.errors import UserError


class Position(NamedTuple):
    """How far the data are used."""

    passes: int = 0
    """Finished passes over the data."""
    samples: int = 0
    """Samples of the current pass."""


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
    """What one process loads of a batch."""

    range: BatchRange
    """The batch of all processes together."""
    size: int
    """Samples of this process; 0 if it has none."""
    data: Any
    """The samples as the source gives them, such as (inputs, targets). With size 0 they are those of the whole batch,
    since every process must go through the model; they count for nothing."""


@dataclass(slots=True)
class StepBatches:
    """The micro-batches of one optimizer step."""

    micro_batches: Iterable[MicroBatch]
    """Loaded one by one: those of a whole step would need the memory that accumulation saves. Go through them once."""
    count: int
    samples: int
    """Samples of all micro-batches and processes together."""
    position: Position
    """The position after the step."""


class Batches:
    """The batches of a data set, or of a part of it.

    indices: the samples that take part, integers of shape (N,); None: all.
    shuffle: whether each pass has a new order, with every sample once.
    order: another order of each pass, in place of that.
    num_workers: processes that load batches; with 0 this process loads them.
    drop_last: leave a short last batch out, so that all have batch_size samples. Which samples those are is another
        matter in each pass if it is shuffled.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        indices: Tensor | None = None,
        shuffle: bool = False,
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
        self.num_samples = len(source) if indices is None else len(indices)
        self.order = Shuffled(self.num_samples, seed) if shuffle and order is None else order
        self.repeats = self.order is not None and self.order.repeats
        self.samples_per_pass = self.num_samples - (self.num_samples % batch_size if drop_last else 0)
        self.rank, self.world_size = 0, 1
        self._kept_order: tuple[int, Tensor] | None = None
        self._random_block: RandomBlock | None = None
        self._workers: Workers | None = None

    def __len__(self) -> int:
        """Batches in one pass; a short last one counts."""
        return -(-self.samples_per_pass // self.batch_size)

    def smallest_batch(self) -> int:
        """Samples of the last batch of a pass."""
        return self.samples_per_pass % self.batch_size or self.batch_size

    def optimizer_steps(self, accumulate_steps: int) -> int:
        """Optimizer steps in one pass; a last step of fewer micro-batches counts."""
        return -(-len(self) // accumulate_steps)

    def divide(self, rank: int, world_size: int) -> None:
        """From now on, load only this process's part of each batch."""
        self.rank, self.world_size = rank, world_size

    # ------------------------------------------------------------------ position -> ranges -> sample indices

    def ranges(self, position: Position = START) -> Iterator[BatchRange]:
        """The batches from a position on, without end."""
        passes, start = position
        while True:
            batch_range = BatchRange(passes, start, min(start + self.batch_size, self.samples_per_pass))
            yield batch_range
            passes, start = self.after(batch_range)

    def after(self, batch_range: BatchRange) -> Position:
        """The position after a batch."""
        if batch_range.stop < self.samples_per_pass:
            return Position(batch_range.passes, batch_range.stop)
        return Position(batch_range.passes + 1, 0)

    def part(self, batch_range: BatchRange) -> BatchRange:
        """This process's part of a batch; empty for some if the batch has fewer samples than there are processes."""
        passes, start, _ = batch_range
        first = batch_range.size * self.rank // self.world_size
        end = batch_range.size * (self.rank + 1) // self.world_size
        return BatchRange(passes, start + first, start + end)

    def sample_indices(self, batch_range: BatchRange) -> Tensor | slice:
        """The samples of a batch: int64 of shape (B,), or a slice if they are consecutive, which is copied faster."""
        draws = self._draws(batch_range)
        return draws % len(self.source) if self.repeats and isinstance(draws, Tensor) else draws

    def _draws(self, batch_range: BatchRange) -> Tensor | slice:
        """The sample indices of a batch; if samples repeat, the numbers of their draws (``number_repeats``)."""
        positions = slice(batch_range.start, batch_range.stop)
        if self.order is not None:
            return self._kept(self.order, batch_range.passes)[positions].long()
        return positions if self.indices is None else self.indices[positions].long()

    def _kept(self, order: Order, passes: int) -> Tensor:
        """All draws in the order of a pass, integers of shape (N,); kept until another pass is asked for."""
        if self._kept_order is None or self._kept_order[0] != passes:
            samples = order(passes)
            if self.indices is not None:
                samples = self.indices.index_select(0, samples)
            self._kept_order = passes, number_repeats(samples, len(self.source)) if self.repeats else samples
        return self._kept_order[1]

    def _random_key(self, passes: int) -> RandomKey:
        return self.seed, "sample", passes

    # ------------------------------------------------------------------ ranges -> micro-batches -> steps

    def load_steps(self, steps: Iterable[Sequence[BatchRange]]) -> Iterator[StepBatches]:
        """Load the batches of some optimizer steps, given by the ranges of each."""
        steps, steps_ahead = itertools.tee(steps)  # worker processes load ahead
        loaded = self.load(itertools.chain.from_iterable(steps_ahead))
        for ranges in steps:
            samples = sum([batch_range.size for batch_range in ranges])
            micro_batches = itertools.islice(loaded, len(ranges))
            yield StepBatches(micro_batches, len(ranges), samples, self.after(ranges[-1]))

    def load(self, ranges: Iterable[BatchRange]) -> Iterator[MicroBatch]:
        """Load this process's part of some batches, in their order."""
        if self.num_workers:
            yield from self._load_in_workers(ranges)
            return
        for batch_range in ranges:
            size, loaded_range = self._loaded_range(batch_range)
            indices = self.sample_indices(loaded_range)
            draws = self._draws(loaded_range) if self.repeats else indices
            uniform = functools.partial(self._uniform, loaded_range)
            random = SampleRandom(draws, self._random_key(loaded_range.passes), uniform)
            yield MicroBatch(batch_range, size, self.source.batch(indices, random))

    def one_pass(self) -> Iterator[MicroBatch]:
        """Load every sample once."""
        return self.load(itertools.islice(self.ranges(), len(self)))

    def _loaded_range(self, batch_range: BatchRange) -> tuple[int, BatchRange]:
        """The size of this process's part, and what it loads: the part, or the whole batch if that is empty."""
        part = self.part(batch_range)
        return part.size, part if part.size else batch_range

    def _uniform(self, loaded_range: BatchRange, call: int, draws: int) -> Tensor:
        """The random numbers of a batch for one call, which are drawn for the next batches too: (draws, B)."""
        passes, start, stop = loaded_range
        key = self._random_key(passes)
        block = self._random_block
        if block is None or not block.covers(key, start, stop):
            block_stop = max(stop, min(start + RandomBlock.size(self.batch_size), self.num_samples))
            block_draws = self._draws(BatchRange(passes, start, block_stop))
            self._random_block = block = RandomBlock(block_draws, key, start, block_stop)
        return block.uniform(start, stop, call, draws)

    # ------------------------------------------------------------------ worker processes

    def _load_in_workers(self, ranges: Iterable[BatchRange]) -> Iterator[MicroBatch]:
        if self._workers is None:  # started once and kept from epoch to epoch
            self._workers = Workers(self.source, self.num_workers, self.seed, repeats=self.repeats)
        ranges, ranges_ahead = itertools.tee(ranges)
        requests = map(self._request, ranges_ahead)
        for batch_range, data in zip(ranges, self._workers.load(requests), strict=True):
            if isinstance(data, UserError):
                raise data
            yield MicroBatch(batch_range, self.part(batch_range).size, data)

    def _request(self, batch_range: BatchRange) -> Request:
        _, loaded_range = self._loaded_range(batch_range)
        return as_tensor(self._draws(loaded_range)).numpy().tobytes(), self._random_key(batch_range.passes)

    def close(self) -> None:
        """End the worker processes."""
        self._workers = None
