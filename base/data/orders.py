"""The order of the samples in a pass over the data: a function of (seed, pass), with no state.

Shuffled    every sample once
Weighted    drawn with replacement, each in proportion to its weight
Bucketed    the samples of another order, in batches of similar length
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from base.array_file import ArrayFile
from base.data.sources import Source
from utils.errors import DataError
from utils.random import mix, permutation

SMALLEST_POOL, LARGEST_POOL = 8, 50
"""Batches that are sorted by length together, a quarter of all within these limits: more make their lengths more alike,
fewer mix the samples better."""


class Order(Protocol):
    """Gives the samples of a pass as positions among those that take part, integers of shape (N,)."""

    @property
    def repeats(self) -> bool:
        """Whether a sample may come more than once in a pass."""
        ...

    def __call__(self, passes: int) -> Tensor: ...


@dataclass(frozen=True)
class Shuffled:
    """Every sample once."""

    count: int
    seed: int
    repeats: bool = False

    def __call__(self, passes: int) -> Tensor:
        return permutation(self.count, self.seed, "order", passes)


@dataclass(frozen=True, eq=False)
class Weighted:
    """As many samples as there are, drawn with replacement. weights: float64 of shape (N,), from ``check_weights``."""

    weights: Tensor
    seed: int
    repeats: bool = True

    def __call__(self, passes: int) -> Tensor:
        bounds = np.cumsum(self.weights.numpy())  # a sample is drawn by the numbers from the bound before it to its own
        generator = torch.Generator().manual_seed(mix(self.seed, "weighted order", passes))
        drawn = torch.rand(len(bounds), generator=generator, dtype=torch.float64).numpy() * bounds[-1]
        drawn = np.minimum(drawn, np.nextafter(bounds[-1], 0))
        return torch.from_numpy(np.searchsorted(bounds, drawn, side="right"))


@dataclass(frozen=True, eq=False)
class Bucketed:
    """The samples of another order, so that those of a batch are of similar length. The batches are shuffled.

    lengths: of shape (N,). A short last batch stays the last one; which lengths it has differs from pass to pass.
    """

    order: Order
    lengths: Tensor
    batch_size: int
    seed: int

    @property
    def repeats(self) -> bool:
        return self.order.repeats

    def __call__(self, passes: int) -> Tensor:
        order = self.order(passes)
        size, batches = self.batch_size, len(order) // self.batch_size
        pool = size * min(max(batches // 4, SMALLEST_POOL), LARGEST_POOL)
        lengths = self.lengths.numpy()[order.numpy()]
        order = order[torch.from_numpy(np.lexsort((lengths, np.arange(len(order)) // pool)))]

        rest = len(order) - batches * size
        start = mix(self.seed, "short batch", passes) % (batches + 1) * size
        order = torch.cat([order[:start], order[start + rest :], order[start : start + rest]])
        whole = order[: batches * size].view(batches, size)[permutation(batches, self.seed, "buckets", passes)]
        return torch.cat([whole.flatten(), order[batches * size :]])


def number_repeats(indices: Tensor, count: int) -> Tensor:
    """Give each draw of a sample a number of its own: its index, and count more each time that it was drawn before.

    Random numbers follow from it, so that a sample that is drawn twice in a pass is augmented in two ways.
    indices: of shape (N,), less than count. Returns int64 of shape (N,).
    """
    drawn = indices.numpy().astype(np.int64)
    by_index = np.argsort(drawn, kind="stable")
    ordered = drawn[by_index]
    first = np.searchsorted(ordered, ordered)  # where the draws of the same sample begin
    drawn[by_index] += (np.arange(len(drawn)) - first) * count
    return torch.from_numpy(drawn)


def check_weights(weights: Tensor, count: int) -> Tensor:
    """The weights of all training samples as float64 of shape (count,). Raises DataError if they cannot be weights."""
    weights = torch.as_tensor(weights)
    if weights.shape != (count,):
        raise DataError(
            f"sample_weights() gives shape {tuple(weights.shape)} for {count} training samples; it should be ({count},)"
        )
    weights = weights.detach().to("cpu", torch.float64)
    wrong = ~torch.isfinite(weights) | (weights < 0)
    if wrong.any():
        index = int(wrong.nonzero()[0])
        raise DataError(
            f"sample_weights() gives {float(weights[index])} for sample {index}; a weight is a finite number >= 0"
        )
    return weights


def balanced_weights(targets: Tensor) -> Tensor:
    """Weights by which each class is drawn equally often, float64 of shape (N,). targets: class indices, (N,)."""
    return (1 / torch.bincount(targets).double())[targets]


def check_lengths(lengths: Tensor, count: int) -> Tensor:
    """The lengths of all training samples, of shape (count,). Raises DataError if they cannot be lengths."""
    lengths = torch.as_tensor(lengths).detach().cpu()
    if lengths.shape != (count,):
        raise DataError(
            f"lengths() gives shape {tuple(lengths.shape)} for {count} training samples; it should be ({count},)"
        )
    if lengths.is_complex() or bool(torch.isnan(lengths).any()):
        raise DataError("lengths() gives values that are not numbers")
    return lengths


def class_indices(source: Source) -> Tensor | None:
    """The class of every sample, int64 of shape (N,); None if the targets are something else.

    They are the targets of a ``TensorSource``, or a data set's attribute ``targets``, as torchvision's have it.
    """
    targets = getattr(getattr(source, "dataset", source), "targets", None)
    if isinstance(targets, ArrayFile):
        targets = targets.rows(slice(0, len(targets)))
    try:
        targets = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):
        return None
    whole = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    if not whole or targets.shape != (len(source),) or (targets < 0).any():
        return None
    return targets.long()
