"""Samples into batches, and batches from worker processes to this one: like torch, but faster for small samples."""

import functools
from contextlib import suppress
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_storage, reduce_tensor
from torch.utils.data import default_collate, get_worker_info

from base.data.errors import MORE_SHARED_MEMORY
from utils.streams import say_error

SMALL = 2**18
"""Bytes up to which a worker process sends a tensor by value. Through shared memory, as torch does, each tensor takes
0.3 ms (64 rows of 20 numbers, CPU time: 800 us a batch instead of 300); from 1 MB on, copying takes longer."""


NUMBERS = {int: np.dtype(np.int64), float: np.dtype(np.float64), bool: np.dtype(np.bool_)}
"""The dtypes in which torch collates Python's numbers."""


def collate_samples(samples: list[Any]) -> Any:
    """The batch that torch's ``default_collate`` makes; for arrays and numbers in a tenth to a third of the time."""
    with suppress(Exception):
        return _collate(samples)
    return default_collate(samples)  # says what is wrong


def _collate(column: Any) -> Any:
    first = column[0]
    kind = type(first)
    if kind in (tuple, list) or hasattr(kind, "_fields"):
        parts = [_collate(part) for part in zip(*column, strict=True)]
        return kind(*parts) if hasattr(kind, "_fields") else parts
    if kind is dict:
        return {key: _collate([sample[key] for sample in column]) for key in first}
    in_shared_memory = getattr(first, "nbytes", 0) * len(column) > SMALL and get_worker_info()
    if not in_shared_memory:
        if kind is Tensor and first.layout is torch.strided:
            return torch.stack(column)
        dtype = first.dtype if isinstance(first, (np.ndarray, np.generic)) else NUMBERS.get(kind)
        if dtype is not None and (array := np.array(column)).dtype == dtype:  # else torch may promote to another one
            return torch.from_numpy(array)
    if kind is Tensor or isinstance(first, np.ndarray):  # not of torchvision, whose methods take 2 us each
        column = [_readable(row) for row in column]
    try:
        return default_collate(column)
    except RuntimeError:
        if not in_shared_memory:
            raise
        return torch.stack([torch.as_tensor(row) for row in column])  # perhaps none is left


def _readable(row: Any) -> Any:
    """A copy of an array that is read-only (from a memory-mapped file) or flipped: torch would warn, or refuse it.

    Likewise of a tensor that is only marked as conjugated or negated, which torch refuses in a worker process.
    """
    if isinstance(row, Tensor):
        return row.resolve_conj().resolve_neg()
    if isinstance(row, np.ndarray) and not (row.flags.writeable and min(row.strides, default=0) >= 0):
        return np.array(row, order="C")
    return row


def send_small_tensors_by_value() -> None:
    """Call it in a worker process; it applies to every batch that the process sends."""
    ForkingPickler.register(Tensor, _reduce)
    ForkingPickler.register(torch.UntypedStorage, _reduce_storage)


def _reduce(tensor: Tensor) -> Any:
    tensor = tensor.resolve_conj().resolve_neg()  # torch would send the values without these marks
    if tensor.layout is torch.strided and tensor.is_contiguous() and tensor.nbytes <= SMALL:
        with suppress(RuntimeError, TypeError):  # requires a gradient, or NumPy lacks its dtype
            return torch.from_numpy, (tensor.numpy(),)
    return reduce_tensor(tensor)  # type: ignore[no-untyped-call]


def _reduce_storage(storage: torch.UntypedStorage) -> Any:
    """Through shared memory or, where a container has no more of it, by value: after an error, nothing would be sent,
    and the main process would wait for ever.
    """
    try:
        return reduce_storage(storage)  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError) as error:
        if storage.device.type != "cpu":
            raise
        _warn_of_shared_memory(str(error).rpartition(": ")[2])
        return _rebuild_storage, (torch.empty(0, dtype=torch.uint8).set_(storage).numpy(),)


def _rebuild_storage(values: np.ndarray[Any, Any]) -> torch.UntypedStorage:
    return torch.from_numpy(values).clone().untyped_storage()  # in memory that is aligned like torch's


@functools.cache  # once in each process
def _warn_of_shared_memory(reason: str) -> None:
    say_error(
        f"warning: a worker process has no shared memory for a batch ({reason}), and sends it in a slower way; "
        f"{MORE_SHARED_MEMORY}"
    )
