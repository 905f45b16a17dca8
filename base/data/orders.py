"""The order of the samples in a pass over the data: a function of (seed, pass), with no state.

Shuffled    every sample once
Weighted    with replacement, in proportion to weights
Bucketed    another order, rearranged into batches of similar length
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from base.array_file import ArrayFile
from base.data.sources import Source
from utils.errors import DataError
from utils.random import mix, permutation

SMALLEST_POOL, LARGEST_POOL = 8, 50
"""Number of batches sorted by length together: a quarter of all, within these limits. More make lengths more alike,
fewer mix the samples better."""


class Order(Protocol):
    """Returns the samples of a pass as indices into those in use, integers of shape (N,)."""

    @property
    def repeats(self) -> bool:
        """Whether a sample can occur more than once in a pass."""
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


Drawn = tuple[int, str]
"""A pass, and a hash of the weights by which its samples were drawn."""


@dataclass(eq=False)
class Weighted:
    """As many draws as samples, with replacement.

    weights: returns the weights of a pass when it begins, float64 of shape (N,), from ``check_weights``.
    """

    weights: Callable[[], Tensor]
    seed: int
    repeats: bool = True
    last: Drawn | None = None
    resumed: Drawn | None = None
    """Those of the pass in which the run was saved."""

    def __call__(self, passes: int) -> Tensor:
        weights = self.weights().numpy()
        self.last = passes, blake2b(weights.tobytes(), digest_size=16).hexdigest()
        if self.resumed and self.resumed != self.last and self.resumed[0] == passes:
            raise DataError(
                "sample_weights() returns other weights than when this pass over the data began, so its samples cannot "
                "be drawn again; let stateful() of the trainer return them, or what begin_epoch computes them from"
            )
        bounds = np.cumsum(weights)  # numbers between the previous bound and its own draw a sample
        generator = torch.Generator().manual_seed(mix(self.seed, "weighted order", passes))
        drawn = torch.rand(len(bounds), generator=generator, dtype=torch.float64).numpy() * bounds[-1]
        drawn = np.minimum(drawn, np.nextafter(bounds[-1], 0))
        return torch.from_numpy(np.searchsorted(bounds, drawn, side="right"))


@dataclass(frozen=True, eq=False)
class Bucketed:
    """Rearranges another order into batches of samples with similar length, in random order.

    lengths: of shape (N,). An incomplete last batch stays last; its lengths differ from pass to pass.
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


def weighted(order: Order | None) -> Weighted | None:
    """The order by weights in another one, if there is one."""
    while order is not None and not isinstance(order, Weighted):
        order = getattr(order, "order", None)
    return order


def number_repeats(indices: Tensor, count: int) -> Tensor:
    """Number repeated draws of a sample: its index, plus count for each time it was drawn before.

    Random numbers follow from it, so that a sample drawn twice in a pass is augmented in two different ways.
    indices: of shape (N,), less than count. Returns int64 of shape (N,).
    """
    drawn = indices.numpy().astype(np.int64)
    by_index = np.argsort(drawn, kind="stable")
    ordered = drawn[by_index]
    first = np.searchsorted(ordered, ordered)  # start of the draws of the same sample
    drawn[by_index] += (np.arange(len(drawn)) - first) * count
    return torch.from_numpy(drawn)


def check_weights(weights: Tensor, count: int) -> Tensor:
    """Validate the weights of all training samples; float64 of shape (count,). Raises DataError."""
    weights = torch.as_tensor(weights)
    if weights.shape != (count,):
        raise DataError(
            f"sample_weights() returned shape {tuple(weights.shape)} for {count} training samples; expected ({count},)"
        )
    weights = weights.detach().to("cpu", torch.float64)
    wrong = ~torch.isfinite(weights) | (weights < 0)
    if wrong.any():
        index = int(wrong.nonzero()[0])
        raise DataError(
            f"sample_weights() returned {float(weights[index])} for sample {index}; a weight is a finite number >= 0"
        )
    return weights


def balanced_weights(targets: Tensor) -> Tensor:
    """Weights that draw each class equally often, float64 of shape (N,). targets: class indices, (N,)."""
    return (1 / torch.bincount(targets).double())[targets]


def balancing_weights(counts: Tensor) -> list[float]:
    """A weight for each class that gives all the same total: N / (C * count), 0 without samples. counts: (C,)."""
    return [float(counts.sum()) / (len(counts) * each) if each else 0.0 for each in counts.tolist()]


def check_lengths(lengths: Tensor, count: int) -> Tensor:
    """Validate the lengths of all training samples, shape (count,). Raises DataError."""
    lengths = torch.as_tensor(lengths).detach().cpu()
    if lengths.shape != (count,):
        raise DataError(
            f"lengths() returned shape {tuple(lengths.shape)} for {count} training samples; expected ({count},)"
        )
    if lengths.is_complex() or bool(torch.isnan(lengths).any()):
        raise DataError("lengths() returned values that are not numbers")
    return lengths


def class_indices(source: Source) -> Tensor | None:
    """The class of every sample, int64 of shape (N,); None if the targets are something else.

    The targets are those of a ``TensorSource``, or a data set's attribute ``targets``, as in torchvision.
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
