"""Processes that load batches in the background."""

import functools
import io
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from pickle import PicklingError
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from base.data.collate import send_small_tensors_by_value
from base.data.sample_random import RandomKey, SampleRandom
from base.data.sample_source import SampleSource
from base.data.sources import Source
from utils.device import pins_memory
from utils.errors import DataError, TrainingError, UserError
from utils.random import mix, seed_cpu_generators
from utils.signals import end_workers_at_exit, ignore_in_worker
from utils.user_code import user_line

Request = tuple[bytes, RandomKey]
"""The draws of a batch, int64 of shape (B,), and the key of its random numbers. A draw is the index of a sample, plus
the number of samples for each time it was drawn before in the pass.

Sent as bytes, which takes half the time of a NumPy array; a tensor would have to be fetched from the other process,
which may have ended by then."""


class _Loader(DataLoader[Any]):
    def check_worker_number_rationality(self) -> None:
        """Does nothing: torch would warn of too many workers twice for each loader; extras/advice does once."""


class Workers:
    """Processes that load batches. repeats: whether a pass can contain a sample more than once."""

    def __init__(self, source: Source, count: int, seed: int, *, repeats: bool) -> None:
        end_workers_at_exit()
        self._sampler = _RequestSampler()
        self._loader = _Loader(
            _BatchDataset(source, repeats),
            sampler=self._sampler,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=count,
            multiprocessing_context=start_method(count),
            persistent_workers=True,
            pin_memory=pins_memory(),
            worker_init_fn=_begin_worker,
            # the loader draws from this generator; by default it would draw from the model's
            generator=torch.Generator().manual_seed(mix(seed, "workers")),
        )

    def load(self, requests: Iterator[Request]) -> Iterator[Any]:
        """The batches for some requests, in order; requests are consumed ahead.

        Raises DataError if the data set cannot be sent to another process, UserError if none can be started.
        """
        self._sampler.requests = requests
        try:
            with starting_workers():
                return iter(self._loader)
        except (AttributeError, TypeError, PicklingError) as error:
            if not re.search("pickle|local object", str(error)):
                raise
            method = multiprocessing.get_start_method()
            raise DataError(
                f"the data set cannot be sent to worker processes: {error}\n"
                f'They are started with the method "{method}", which cannot send a lambda, or a function or class '
                "inside another: define it at the top level of its file, or set data_loader.args.num_workers to 0."
            ) from error


@contextmanager
def naming_dead_worker() -> Iterator[None]:
    """Raise TrainingError for torch's error about a ``DataLoader`` worker that died, but not for one raised in it.

    torch's signal handler raises it wherever the main thread is.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise TrainingError(f"a DataLoader worker died (out of memory?): {error}") from error


@contextmanager
def starting_workers() -> Iterator[None]:
    """Raises UserError where the system refuses more processes: by ulimit -u, a container's limit, or for memory."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if user_line(error) or (isinstance(error, RuntimeError) and "start new thread" not in str(error)):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"a worker process cannot be started: {reason}; set data_loader.args.num_workers lower, or allow more "
            "processes or memory"
        ) from error


def start_method(workers: int) -> str | None:
    """How a ``DataLoader`` starts its processes, for its ``multiprocessing_context``; None: as the program has set.

    On Linux they are forked, as by default before Python 3.14: they start at once and share the data set. Otherwise
    each imports torch, which takes seconds, and gets a copy of it.
    """
    by_default = (None, multiprocessing.get_all_start_methods()[0])
    forks = sys.platform == "linux" and multiprocessing.get_start_method(allow_none=True) in by_default
    return "fork" if workers and forks else None


def worker_count(chunks: int) -> int:
    """Processes to read these chunks once: one per CPU; 0 if this process would finish before they start."""
    return min(cpu_count(), chunks) if cpu_count() > 1 and chunks > 1 else 0


def cpu_count() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_once(read: Callable[[Any], Any], items: Sequence[Any], chunk: int, workers: int) -> Iterator[list[Any]]:
    """What a function returns for each item, in order, in lists. Raises TrainingError if a worker process dies,
    UserError if none can be started.

    Values that are not tensors need no shared memory, which is scarce in containers.
    """
    end_workers_at_exit()
    loader = DataLoader(
        cast("Dataset[Any]", items),
        batch_size=chunk,
        num_workers=workers,
        multiprocessing_context=start_method(workers),
        collate_fn=functools.partial(_read_each, read),  # in the worker
        worker_init_fn=ignore_in_worker,
        generator=torch.Generator(),  # by default the loader would draw from the model's
    )
    with naming_dead_worker():
        with starting_workers():
            values = iter(loader)
        yield from values


def _read_each(read: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [read(item) for item in items]


def _begin_worker(_: int) -> None:
    ignore_in_worker()
    seed_cpu_generators("worker")  # not by its number: after a resume, another worker loads the sample
    send_small_tensors_by_value()


def _unchanged(batch: Any) -> Any:
    """Replaces torch's ``default_convert``, which makes tensors of NumPy arrays: without workers they stay arrays."""
    return batch


class _BatchDataset(Dataset[Any]):
    """Loads requested batches in a worker process. Returns a UserError, for the main process to raise."""

    def __init__(self, source: Source, repeats: bool) -> None:
        self.source = source
        self.repeats = repeats
        self.is_first = True

    def __getitem__(self, request: Request) -> Any:
        draws = torch.frombuffer(bytearray(request[0]), dtype=torch.int64)
        indices = draws % len(self.source) if self.repeats else draws
        if not isinstance(self.source, SampleSource):  # which seeds them for each sample
            seed_cpu_generators(*request[1], int(draws[0]))  # after a resume, this is another worker's batch
        elif self.is_first:
            self.is_first = False
            self.source.forget()  # the data set may keep other generators in each process
        try:
            batch = self.source.batch(indices, SampleRandom(draws, request[1]))
            _check_sendable(batch)  # an error while it is sent would leave the main process waiting for ever
        except UserError as error:
            return error  # torch would put the worker's traceback into its message
        return batch


class _TensorlessPickler(ForkingPickler):
    """Pickles everything but tensors, whose values would be put into shared memory, and arrays of numbers."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return int, ()
        if not isinstance(value, torch.Tensor):
            return NotImplemented
        if value.requires_grad and not value.is_leaf:
            raise TypeError("a tensor has a gradient function: compute it under torch.no_grad(), or detach() it")
        return int, ()


def _check_sendable(batch: Any) -> None:
    """Raise DataError if a batch cannot be sent to another process."""
    try:
        _TensorlessPickler(io.BytesIO()).dump(batch)
    except Exception as error:  # any error: pickle runs the objects' own code
        raise DataError(
            f"a batch cannot be sent from a worker process: {error}\nLet collate return tensors, arrays, "
            "numbers and strings, in lists, tuples and dicts, or set data_loader.args.num_workers to 0"
        ) from error


class _RequestSampler(Sampler[Any]):
    """Passes requests to the workers."""

    def __init__(self) -> None:
        self.requests: Iterator[Request] = iter(())

    def __iter__(self) -> Iterator[Request]:
        # not kept: requests refer to the Batches that own these workers, and a cycle would keep both alive
        requests, self.requests = self.requests, iter(())
        yield from requests
