"""The order of the samples in a pass over the data: a function of (seed, pass), with no state.

Shuffled    every sample once
Weighted    with replacement, in proportion to weights
Bucketed    another order, rearranged into batches of similar length
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from base.array_file import ArrayFile
from base.data.errors import call_hook
from base.data.sources import Source
from utils.errors import CheckpointError, DataError
from utils.random import mix, permutation

SMALLEST_POOL, LARGEST_POOL = 8, 50
"""Number of batches sorted by length together: a quarter of all, within these limits. More make lengths more alike,
fewer mix the samples better."""
MOST_CLASSES = 100_000
"""Integer targets above this are treated as numbers, as in regression, rather than classes."""


Order = Callable[[int], Tensor]
"""Returns the samples of a pass, by its number, as indices into those in use, integers of shape (N,)."""


@dataclass(frozen=True)
class Shuffled:
    """Every sample once."""

    count: int
    seed: int

    def __call__(self, passes: int) -> Tensor:
        return permutation(self.count, self.seed, "order", passes)


@dataclass(eq=False)
class Weighted:
    """As many draws as samples, with replacement.

    Each epoch has its own weights, and a checkpoint keeps them: they may depend on losses that have changed since.
    An epoch that begins in the middle of a pass draws the rest of it: no draw depends on those before.

    weights: returns the weights of a new epoch, float64 of shape (N,), from ``sample_numbers``, or ``once``.
    """

    weights: Callable[[], Tensor]
    seed: int

    def __post_init__(self) -> None:
        self.begin_epoch()

    def begin_epoch(self) -> None:
        self.current = self.weights()

    def __call__(self, passes: int) -> Tensor:
        weights = self.current
        if weights.isinf().any():
            return permutation(len(weights), self.seed, "order", passes)
        bounds = np.cumsum(weights.numpy())  # numbers between the previous bound and its own draw a sample
        generator = torch.Generator().manual_seed(mix(self.seed, "weighted order", passes))
        # sorted, they are found in a third of the time for a million samples, a tenth for ten million
        drawn, places = torch.rand(len(bounds), generator=generator, dtype=torch.float64).sort()
        samples = np.searchsorted(bounds, drawn.numpy() * bounds[-1], side="right")
        return torch.empty_like(places).scatter_(0, places, torch.from_numpy(samples))

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.current}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises CheckpointError if this is not the state of such weights."""
        weights, own = state.get("epoch"), self.current
        if not (isinstance(weights, Tensor) and (weights.shape, weights.dtype) == (own.shape, own.dtype)):
            raise CheckpointError("the checkpoint has no valid weights of samples: data.sample_weights")
        self.current = weights


@dataclass(frozen=True, eq=False)
class Bucketed:
    """Rearranges another order into batches of samples with similar length, in random order.

    lengths: of shape (N,). An incomplete last batch stays last; its lengths differ from pass to pass.
    """

    order: Order
    lengths: Tensor
    batch_size: int
    seed: int

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
    ordered, places = indices.long().sort(stable=True)
    first = torch.searchsorted(ordered, ordered)  # start of the draws of the same sample
    return torch.empty_like(ordered).scatter_(0, places, ordered + (torch.arange(len(ordered)) - first) * count)


def sample_numbers(data: Any, hook: str, count: int, *, are_weights: bool = False) -> Tensor | None:
    """What ``sample_weights`` or ``lengths`` of a data loader returns, copied to float64 of shape (count,); or None.

    Raises DataError if it fails, or for anything but numbers. are_weights: they must be finite and not negative.
    """
    values = call_hook(data, hook)
    if values is None:
        return None
    returned = f"{type(data).__name__}.{hook}() returned"
    try:
        numbers = torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(values).__name__
        raise DataError(f"{returned} type {kind}; expected one number per training sample, shape (N,)") from error
    if numbers.shape != (count,):
        shape = tuple(numbers.shape)
        raise DataError(f"{returned} shape {shape} for {count} training samples; expected ({count},)")
    if numbers.is_complex():
        raise DataError(f"{returned} complex numbers; expected real ones")
    numbers = numbers.to("cpu", torch.float64, copy=True)  # the loader may change its own in place
    wrong = ~numbers.isfinite() | (numbers < 0) if are_weights else numbers.isnan()
    if wrong.any():
        index = int(wrong.nonzero()[0])
        expected = "a finite number >= 0" if are_weights else "a number"
        raise DataError(f"{returned} {float(numbers[index])} for sample {index}; expected {expected}")
    return numbers


def once(count: int) -> Tensor:
    """Takes the place of weights where every sample is drawn once per pass."""
    return torch.full((count,), torch.inf, dtype=torch.float64)


def balanced_sample_weights(targets: Tensor) -> Tensor:
    """Weights that draw each class equally often, float64 of shape (N,). targets: class indices, (N,)."""
    return (1 / torch.bincount(targets).double())[targets]


def class_weights(counts: Tensor) -> list[float]:
    """A weight for each class that gives all the same total: N / (C * count), 0 without samples. counts: (C,)."""
    return [float(counts.sum()) / (len(counts) * each) if each else 0.0 for each in counts.tolist()]


def class_indices(source: Source) -> Tensor | None:
    """The class of every sample, int64 of shape (N,); None if the targets are something else.

    Targets come from a ``TensorSource``, or from a data set's attribute ``targets``, as in torchvision, to which its
    ``target_transform`` is applied.
    """
    dataset = getattr(source, "dataset", source)
    targets: Any = getattr(dataset, "targets", None)
    if isinstance(targets, ArrayFile):
        targets = targets.rows(slice(0, len(targets)))
    try:
        classes = _as_integers(targets)
        if classes is not None and (transform := getattr(dataset, "target_transform", None)):
            different, places = torch.unique(classes, dim=0, return_inverse=True)
            transformed = _as_integers([transform(target) for target in different.tolist()])
            classes = None if transformed is None else transformed[places]
    except Exception:  # also of the user's code
        return None
    if classes is None or classes.shape != (len(source),) or ((classes < 0) | (classes >= MOST_CLASSES)).any():
        return None
    return classes


def _as_integers(values: Any) -> Tensor | None:
    """Values as int64, before they are compared: bounds may not fit into a smaller dtype. None for other numbers."""
    numbers = torch.as_tensor(values)
    other = numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool
    return None if other else numbers.long()
