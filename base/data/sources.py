"""Sources of whole batches: here, tensors in memory or arrays on disk."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from base.array_file import ArrayFile
from base.data.errors import sample_error
from base.data.sample_random import SampleRandom, as_tensor
from utils.errors import DataError
from utils.tree import describe_batch, to_device


class Source(Protocol):
    """A data set that returns whole batches."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, random: SampleRandom) -> Any:
        """The samples with these indices, int64 of shape (B,), as one batch."""
        ...


class TensorSource:
    """A data set in memory in its stored dtype; whole batches are indexed, augmented and transformed at once.

    inputs: (N, ...); targets: (N, ...); an ``ArrayFile`` stays on disk, and batches are read from it.
    augment: maps a batch of inputs as stored, and the random numbers of its samples, to augmented inputs.
    augment_pair: used instead if inputs and targets change together, like images and masks: maps both as stored, and
        the random numbers, to both augmented.

            def flip(images: Tensor, masks: Tensor, random: SampleRandom) -> tuple[Tensor, Tensor]:
                mirrored = (random.uniform()[0] < 0.5).view(-1, 1, 1)  # (B, 1, 1)
                return torch.where(mirrored, images.flip(2), images), torch.where(mirrored, masks.flip(2), masks)

    transform: maps inputs as stored to the model's inputs, as from bytes to scaled floats.
    any_device: whether these functions also work on tensors of an accelerator, where small data is then kept.
    """

    def __init__(
        self,
        inputs: Tensor | ArrayFile,
        targets: Tensor | ArrayFile,
        *,
        augment: Callable[[Tensor, SampleRandom], Tensor] | None = None,
        augment_pair: Callable[[Tensor, Tensor, SampleRandom], tuple[Tensor, Tensor]] | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        any_device: bool = False,
    ) -> None:
        if augment is not None and augment_pair is not None:
            raise ValueError("augment and augment_pair cannot be given together; do both in augment_pair")
        for each in (inputs, targets):
            if not isinstance(each, (Tensor, ArrayFile)):
                instead = "convert it with torch.as_tensor, or return a data set of samples (input, target)"
                raise TypeError(f"TensorSource takes tensors, got {type(each).__name__}; {instead}")
            if isinstance(each, Tensor) and each.layout not in (torch.strided, torch.sparse_coo):
                raise TypeError(f"TensorSource cannot select rows of {each.layout}; use x.to_dense() or x.to_sparse()")
        if len(inputs) != len(targets):
            raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets")
        self.inputs = inputs
        self.targets = targets
        self.augment = augment
        self.augment_pair = augment_pair
        self.transform = transform
        self.any_device = any_device
        # consecutive samples can be views whose changes are counted
        self._has_views = all(_counts_changes(each) for each in (inputs, targets))
        self._versions: tuple[int, int] | None = None
        self._last_views: tuple[slice, tuple[Tensor, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, indices: Tensor | slice, random: SampleRandom) -> tuple[Tensor, Tensor]:
        if isinstance(indices, slice) and self._has_views and self.is_plain() and not torch.is_inference_mode_enabled():
            return self._views(self.inputs, self.targets, indices)  # type: ignore[arg-type]
        if isinstance(self.inputs, Tensor) and not self.inputs.is_cpu:
            random.device = self.inputs.device
            if isinstance(indices, Tensor):
                indices = to_device(indices, self.inputs.device)  # once for both
        inputs = _copy(self.inputs, indices)
        targets = _copy(self.targets, indices)
        step = ""
        try:
            if self.augment is not None:
                step = "augment"
                inputs = self.augment(inputs, random)
            if self.augment_pair is not None:
                step = "augment_pair"
                inputs, targets = self.augment_pair(inputs, targets, random)
            if self.transform is not None:
                step = "transform"
                inputs = self.transform(inputs)
        except Exception as error:
            raise sample_error(error, f"{step} fails for a batch of {describe_batch([inputs, targets])}") from error
        return inputs, targets

    def _views(self, inputs: Tensor, targets: Tensor, indices: slice) -> tuple[Tensor, Tensor]:
        """Consecutive samples as views: a copy takes a tenth of a small net's step (64 samples of 1,000 floats)."""
        self.check_views()
        self._versions, last = (inputs._version, targets._version), self._last_views
        # a data set of one batch returns the same tensors every time, unless they require gradients
        if last is not None and last[0] == indices and not last[1][0].requires_grad:
            return last[1]
        views = inputs[indices], targets[indices]
        batch = _aligned(views[0]), _aligned(views[1])
        # copies must be made again: a change to them goes unnoticed
        self._last_views = (indices, views) if batch[0] is views[0] and batch[1] is views[1] else None
        return batch

    def check_views(self) -> None:
        """Raise DataError if the last batch was views, and was written to.

        torch's private count of in-place changes, ``Tensor._version``, shows it.
        """
        inputs, targets = self.inputs, self.targets
        if self._versions and self._versions != (inputs._version, targets._version):  # type: ignore[union-attr]
            raise DataError(
                "the previous batch was changed in place, perhaps by the model's first layer or the loss. It was not a "
                "copy, so the data itself has changed. Begin the model with x = x.clone(), or do not write to x"
            )

    def forget(self) -> None:
        """Called where the data itself may have changed."""
        self._versions = self._last_views = None

    @property
    def index_device(self) -> torch.device | None:
        """Where ``batch`` takes the indices that it would otherwise copy there in each step; None: the CPU."""
        if not isinstance(self.inputs, Tensor) or self.inputs.is_cpu or type(self).batch is not TensorSource.batch:
            return None
        return self.inputs.device

    @property
    def in_memory(self) -> bool:
        return isinstance(self.inputs, Tensor) and isinstance(self.targets, Tensor)

    def is_plain(self) -> bool:
        """Whether a batch is returned exactly as stored."""
        changed = self.augment is not None or self.augment_pair is not None or self.transform is not None
        return self.in_memory and not changed


def _counts_changes(data: Tensor | ArrayFile) -> bool:
    """Whether torch counts changes in place to views of this data: not if it is sparse, or from inference mode."""
    return isinstance(data, Tensor) and data.layout is torch.strided and not data.is_inference()


def _copy(data: Tensor | ArrayFile, indices: Tensor | slice) -> Tensor:
    """Copy some samples of (N, ...), so that the data is safe from changes to a batch.

    ``index_select`` copies whole samples: 32x32 images in an eighth of the time of ``[]``.
    """
    if isinstance(data, ArrayFile):
        return data.rows(indices)
    if isinstance(indices, slice):
        if data.layout is torch.strided:
            return data[indices].clone()
        indices = as_tensor(indices)
    return data.index_select(0, indices.to(data.device))


def _aligned(view: Tensor) -> Tensor:
    """A copy unless it begins at 64 bytes, as new tensors do: the last bits of a product depend on it."""
    return view.clone() if view.is_cpu and view.data_ptr() % 64 else view
