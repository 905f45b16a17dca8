"""Data that can only be read sequentially: samples from an iterable, without indices and usually without a length."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor
from torch.utils.data import IterableDataset

from base.data.batches import Batches, BatchRange, MicroBatch, Position, StepBatches
from base.data.collate import collate_samples
from base.data.errors import ARGUMENTS, collate_error, sample_error
from base.data.own_generators import OwnGenerators
from base.data.sample_random import RandomKey, SampleRandom
from base.data.seeding import DrawnGenerators
from utils.errors import CheckpointError, DataError
from utils.text import count, listed

ENDLESS = 2**62
"""Nominal length of a stream of unknown length, never reached."""
END: Any = object()
"""In place of a sample: the iterator has ended."""
Snapshot = dict[str, Any]
"""Position in a stream: {"position": samples read, "passes": times it ended, "state": its own state_dict()}."""


class StreamSource:
    """A data set that can only be read sequentially, from its start. A batch consists of the next samples.

    samples: an iterable, such as a Hugging Face ``IterableDataset``; each ``iter(samples)`` starts at the first sample.
        When it ends, it is iterated again, after ``samples.set_epoch(number)`` if it has this method. If it has
        ``state_dict()`` and ``load_state_dict()``, a resumed run restores its position; otherwise it reads up to it
        again.
    transform: applied to each sample, for decoding and augmentation. Every process and worker reads all samples but
        transforms only its own, so expensive operations belong here.
    length: number of samples, from the start, used in validation or test. A stream for training has none.
    collate: builds a batch from samples; None: the data loader's ``collate``.

    Each sample is as if Python's, NumPy's and torch's generators, and those inside ``transform``, were seeded for it,
    from the run's seed and the sample's number. If one that was not drawn from before is drawn from later, the stream
    is read again from where it was begun: a state may lack something, such as a shuffle buffer. Raises DataError if the
    samples can be read only once, like those of a generator.
    """

    def __init__(
        self,
        samples: Iterable[Any],
        *,
        transform: Callable[[Any], Any] | None = None,
        length: int | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        if isinstance(samples, Iterator):
            raise DataError(
                f"StreamSource: a {type(samples).__name__} can be read only once; pass an object whose __iter__ starts "
                "at the first sample each time"
            )
        self.samples: Any = samples
        self.transform = transform
        self.length = length
        self.collate = collate
        self.snapshot: Snapshot | None = None
        """Where a resumed run starts to read."""
        self.generators = DrawnGenerators()
        self._checked = False
        self._iterator: Iterator[Any] | None = None
        self._position = 0
        self._passes = 0
        self._initial: Any = None
        """The state before anything was read, once it is known."""

    def __len__(self) -> int:
        return ENDLESS if self.length is None else self.length

    def batch(self, indices: Tensor, random: SampleRandom) -> tuple[Any, Snapshot | None]:
        """The samples with consecutive numbers as one batch, and the stream's position after it; None without state."""
        numbers = indices.tolist()
        with suppress(Exception):  # what is wrong is raised where it is read
            self.check_first_sample(random.key)
        return self.generators.load(lambda: self._load(numbers, random.key), self.transform, self.collate)

    def _load(self, numbers: Sequence[int], key: RandomKey) -> tuple[Any, Snapshot | None]:
        samples = self._read_samples(numbers, key)
        self.generators.seed(key, numbers[0], "collate")
        try:
            batch = (self.collate or collate_samples)(samples)
        except Exception as error:
            raise collate_error(error, type(self.samples).__name__, numbers) from error
        return batch, self._snapshot() if self.has_state() else None

    def _read_samples(self, numbers: Sequence[int], key: RandomKey) -> list[Any]:
        """The samples with consecutive numbers."""
        samples = list[Any]()
        number = first = numbers[0]
        transform = self.transform
        seeded = bool(self.generators.names)  # asked once: these are calls for each sample
        try:
            iterator = self._seek(first, key)
            for number in range(self._position, numbers[-1] + 1):
                if seeded:
                    self.generators.seed(key, number)
                sample = next(iterator, END)
                if sample is END:
                    iterator, sample = self._next_pass(key, number)
                if number >= first:
                    samples.append(sample if transform is None else transform(sample))
            self._position = number + 1
        except Exception as error:
            self._iterator = None  # it may have ended
            name = type(self.samples).__name__
            raise sample_error(error, f"{name}: sample {number} cannot be read") from error
        return samples

    def check_first_sample(self, key: RandomKey) -> None:
        """Load the first sample, unless done before. Raises DataError if there is none, or if it cannot be read.

        It shows which generators are drawn from: if the first batch did, a resumed run would read up to it twice.
        Afterwards the stream is closed: kept open for an epoch, a connection would end.
        """
        if self._checked:
            return
        self._checked = True
        self.generators.load(lambda: self._load_first_sample(key), self.transform, self.collate)
        self._iterator = None

    def _load_first_sample(self, key: RandomKey) -> None:
        samples = self._read_samples([0], key)
        with suppress(Exception):  # it may need several samples
            (self.collate or collate_samples)(samples)

    def has_state(self) -> bool:
        return hasattr(self.samples, "state_dict") and hasattr(self.samples, "load_state_dict")

    def _snapshot(self) -> Snapshot:
        state = copy.deepcopy(self.samples.state_dict())
        if state is None:
            raise DataError(
                f"StreamSource: {type(self.samples).__name__}.state_dict() returned None; expected its position. "
                "Without state_dict and load_state_dict, a resumed run reads up to its position again"
            )
        return {"position": self._position, "passes": self._passes, "state": state}

    def _seek(self, start: int, key: RandomKey) -> Iterator[Any]:
        """Go to a known position before a sample: the current one, that where a run was resumed, or the start."""
        known = self.snapshot if self.snapshot is not None and self.snapshot["position"] <= start else None
        if self._iterator is not None and self._position <= start:
            return self._iterator
        self._position, self._passes = (known["position"], known["passes"]) if known else (0, 0)
        return self._begin_pass(key, known["state"] if known else None)

    def _begin_pass(self, key: RandomKey, state: Any = None) -> Iterator[Any]:
        """A new iterator. state: to restore; None: from the first sample."""
        self._iterator = None  # closes the former one, which may change the position that the data set keeps
        if self.has_state():
            # only once: Hugging Face's tells a state that was loaded only after the next iter()
            if self._initial is None:
                self._initial = copy.deepcopy(self.samples.state_dict())
            self.samples.load_state_dict(copy.deepcopy(self._initial))
        self.generators.seed(key, "set_epoch", self._passes)  # it may draw an order, as __iter__ may
        if hasattr(self.samples, "set_epoch"):  # after the initial state, which may hold the first pass's number
            self.samples.set_epoch(self._passes)
        if state is not None:  # after set_epoch, which may go to the start of the pass
            self.samples.load_state_dict(copy.deepcopy(state))
        self.generators.seed(key, "pass", self._passes)
        iterator: Iterator[Any] = iter(self.samples)
        self._iterator = iterator
        return iterator

    def _next_pass(self, key: RandomKey, number: int) -> tuple[Iterator[Any], Any]:
        """The iterator of the next pass, and its first sample. number: the sample's, in the run."""
        name = type(self.samples).__name__
        if self.length is not None:  # another pass would count samples twice
            message = f"StreamSource: {name} ended after {count(number, 'sample')}; length is {self.length}"
            raise DataError(message)
        self._passes += 1
        iterator = self._begin_pass(key)
        self.generators.seed(key, number)
        sample = next(iterator, END)
        if sample is END:
            raise DataError(f"StreamSource: {name} has no samples")
        return iterator, sample


class StreamBatches(Batches):
    """Batches of a stream. Positions count samples since the run began, in pass 0; epochs are counted in steps."""

    source: StreamSource

    def __init__(self, source: StreamSource, *, batch_size: int, seed: int = 0, num_workers: int = 0) -> None:
        if num_workers > 1 and isinstance(source.samples, IterableDataset):
            name = type(source.samples).__name__
            raise DataError(
                f"{name} is an IterableDataset, which may split its samples between "
                "workers itself, but here each worker reads all of them; set num_workers to 1 or 0",
                (*ARGUMENTS, "num_workers"),
            )
        super().__init__(source, batch_size=batch_size, seed=seed, num_workers=num_workers)
        self._latest: Snapshot | None = None
        self._trained: Snapshot | None = None

    def close(self) -> None:
        super().close()
        self.source.generators.own = OwnGenerators()  # transform may have others now

    def last_batch_size(self) -> int:
        return self.batch_size if self.source.length is None else super().last_batch_size()

    def load(self, ranges: Iterable[BatchRange]) -> Iterator[MicroBatch]:
        for micro_batch in super().load(ranges):
            micro_batch.data, self._latest = micro_batch.data
            yield micro_batch

    def load_steps(self, steps: Iterable[Sequence[BatchRange]]) -> Iterator[StepBatches]:
        for step in super().load_steps(steps):
            step.micro_batches = self._noted(step.micro_batches)
            yield step

    def _noted(self, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatch]:
        """Record the stream's position after the last batch used in training, however far workers have read ahead."""
        for micro_batch in micro_batches:
            self._trained = self._latest
            yield micro_batch

    def samples_to_reread(self, position: Position) -> int:
        """Number of samples to read again in order to resume at a position."""
        return position.samples - (self._trained["position"] if self._trained else 0)

    def state_dict(self) -> Snapshot | None:
        """The stream's position; None without state or before reading.

        It is that of the main process, and with several, within the last batch: the rest of it is read again.
        """
        return self._trained

    def load_state_dict(self, state: Snapshot | None) -> None:
        """Raises CheckpointError if this is not a stream's state."""
        numbers = [state.get("position"), state.get("passes")] if isinstance(state, Mapping) else [None]
        if state is not None and any(type(number) is not int for number in numbers):
            raise CheckpointError("the checkpoint has no valid stream position: data.stream")
        self.close()
        self._trained = self.source.snapshot = state if self.source.has_state() else None  # its class may have changed


def check_for_training(source: StreamSource, indexed: Sequence[str]) -> None:
    """Raise DataError if a stream for training has a length, or what needs indices. indexed: its names."""
    if indexed:
        raise DataError(
            f"the training data is a stream, which has no indices; leave {listed(indexed)} out. To hold out samples, "
            "define validation_data()"
        )
    if source.length is not None:
        raise DataError(
            "a stream for training must not have a length; trainer.steps_per_epoch sets the length of an epoch"
        )


def check_not_empty(batches: Batches) -> None:
    """Raise DataError if validation batches have no samples. Of a stream, the first sample is read.

    With workers, the first batch, in one of them: files that samples open here would be shared by all.
    """
    if not batches.num_samples:
        raise DataError("the validation data is empty: validation() returned batches without samples")
    if isinstance(batches, StreamBatches) and batches.num_workers:
        next(batches.one_pass())
        batches.close()
    elif isinstance(batches, StreamBatches):
        batches.source.check_first_sample(batches._random_key(0))
