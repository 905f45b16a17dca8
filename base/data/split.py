"""Which samples of the training data are held out for validation."""

from typing import Any

import torch
from torch import Tensor

from base.data.errors import ARGUMENTS
from utils.errors import DataError
from utils.random import permutation
from utils.tree import describe_batch


def split_at_random(
    count: int, *, validation_split: float, folds: int | None, fold: int | None
) -> tuple[Tensor, Tensor]:
    """Sorted indices of the training samples, (N,), and of those held out, (M,), out of ``count``.

    Takes the arguments of ``BaseDataLoader``. Raises DataError if too few samples are left.
    """
    is_held_out = torch.zeros(count, dtype=torch.bool)
    is_held_out[_held_out(count, validation_split, folds, fold).long()] = True
    return indices_of(~is_held_out), indices_of(is_held_out)  # sorted, so that samples are read in sequence


def _held_out(count: int, validation_split: float, folds: int | None, fold: int | None) -> Tensor:
    order = permutation(count, "validation")
    if folds is not None and fold is not None:
        if folds > count:
            raise DataError(f"{count} training samples are not enough for {folds} folds", (*ARGUMENTS, "folds"))
        return order[count * fold // folds : count * (fold + 1) // folds]
    if not validation_split:
        return order[:0]
    split = validation_split
    held_out = max(1, round(split * count)) if isinstance(split, float) else split
    if held_out >= count:
        message = f"{split} of {count} training samples leaves none to train on"
        raise DataError(message, (*ARGUMENTS, "validation_split"))
    return order[:held_out]


def indices_of(mask: Tensor) -> Tensor:
    """The indices at which a mask of shape (N,) is true: int32, or int64 if they are too large."""
    indices = mask.nonzero()[:, 0]
    return indices.to(torch.int32) if len(mask) <= 2**31 else indices


def check_folds(folds: int | None, fold: int | None, validation_split: float) -> None:
    """Raise ValueError if these arguments contradict each other."""
    if (folds is None) != (fold is None) or (folds or 1) <= (fold or 0):
        raise ValueError('"folds" and "fold" go together, with fold from 0 to folds - 1, as in "folds": 5, "fold": 0')
    if folds is not None and validation_split:
        raise ValueError('"folds" already holds out validation data; leave "validation_split" out, or set it to 0')


def check_split(parts: Any, count: int, *, by: str) -> tuple[Tensor, Tensor]:
    """The indices returned by the ``split`` of a data loader, on the CPU. by: its class. Raises DataError."""
    expected = f"{by}.split should return training and validation indices: integers from 0 to {count - 1}"
    try:
        train, held_out = (_as_indices(part, count) for part in parts)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{expected}, or masks of shape ({count},); {error}") from error
    used = torch.cat([train, held_out]).long().bincount(minlength=count)
    if int(used.max()) > 1:
        raise DataError(f"{by}.split returned the index {int(used.argmax())} more than once")
    if not len(train):
        raise DataError(f"{by}.split leaves no samples to train on")
    return train, held_out


def _as_indices(part: Any, count: int) -> Tensor:
    indices = torch.as_tensor(part).detach().cpu()
    if indices.dtype == torch.bool and indices.shape == (count,):
        indices = indices_of(indices)
    is_integer = not (indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool)
    # torch makes floats of [], takes uint8 for a mask, and has no comparison for other unsigned integers; int32, as
    # of ``permutation``, takes half the memory of int64
    if not indices.numel() or (is_integer and indices.dtype != torch.int32):
        indices, is_integer = indices.long(), True
    if not is_integer or indices.dim() != 1 or ((indices < 0) | (indices >= count)).any():
        raise ValueError(f"got {describe_batch(indices)}")
    return indices
