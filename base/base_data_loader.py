"""The interface of a data set: training data, test data, and the part that is held out for validation."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor
from torch.utils.data import Dataset

from base.data.batches import Batches
from base.data.sources import Source, as_source
from utils.errors import DataError
from utils.random import permutation
from utils.schema import BetweenEpochs, Changeable, Fraction, Workers


class BaseDataLoader(ABC):
    """A data set and its batches.

    A subclass gives ``training_data`` and ``test_data``: any map-style data set of torch, or a ``TensorSource`` where
    the data fit in memory, which is many times as fast for small images. Data are read when they are first needed.

    batch_size: samples of a training batch.
    eval_batch_size: samples of a validation or test batch; None: batch_size.
    validation_split: part of the training data that is held out, a fraction in [0, 1) or a number of samples. The same
        samples are held out in every run, whatever its seed, so that runs can be compared.
    shuffle: whether each pass over the training data has a new order.
    num_workers: processes that load batches beside the training.
    drop_last: leave the last training batch of a pass out if it is short, as for BatchNorm, which cannot take a single
        sample. Validation and test data are always used to the last sample.

    An argument of a subclass cannot change when a run is resumed, unless its annotation says so: ``Changeable[str]``,
    as for a folder that was moved, or ``BetweenEpochs[int]`` (utils/schema.py).
    """

    class_names: Sequence[str] | None = None

    def __init__(
        self,
        *,
        batch_size: BetweenEpochs[PositiveInt],
        eval_batch_size: Changeable[PositiveInt | None] = None,
        validation_split: Fraction | NonNegativeInt = 0,
        shuffle: BetweenEpochs[bool] = True,
        num_workers: Changeable[Workers] = 0,
        drop_last: BetweenEpochs[bool] = False,
    ) -> None:
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.validation_split = validation_split
        self.shuffle = shuffle
        self.num_workers = num_workers
        self.drop_last = drop_last

    @abstractmethod
    def training_data(self, *, augment: bool) -> Source | Dataset[Any]:
        """The training data. augment is False for the part that is held out for validation."""

    @abstractmethod
    def test_data(self) -> Source | Dataset[Any]:
        """The test data, never augmented. Only test.py asks for them."""

    def facts(self) -> dict[str, Any]:
        """What a config may refer to as "${data.NAME}": numbers, strings and lists of them, by name."""
        return {"num_classes": len(self.class_names)} if self.class_names else {}

    def training(self, seed: int) -> Batches:
        """Shuffled, augmented batches whose order and augmentation follow from the seed."""
        source = as_source(self.training_data(augment=True))
        train, _ = self._split(len(source))
        count = len(source) if train is None else len(train)
        if self.drop_last and count < self.batch_size:
            raise DataError(
                f"data_loader.args.drop_last: the {count} training samples do not fill one batch of {self.batch_size}, "
                "so none would be left; set a smaller batch_size, or drop_last to false"
            )
        return Batches(
            source,
            batch_size=self.batch_size,
            indices=train,
            shuffle=self.shuffle,
            seed=seed,
            num_workers=self.num_workers,
            drop_last=self.drop_last,
        )

    def validation(self) -> Batches | None:
        """Batches of the held-out samples, or None if there are none."""
        if not self.validation_split:
            return None
        source = as_source(self.training_data(augment=False))
        return self._evaluation(source, self._split(len(source))[1])

    def test(self) -> Batches:
        """Batches of the test data. Raises DataError if there are none."""
        source = as_source(self.test_data())
        if not len(source):
            raise DataError(f"{type(self).__name__}: the test data are empty")
        return self._evaluation(source, None)

    def pictures(self, inputs: Tensor) -> Tensor | None:
        """Inputs of the model, (B, C, H, W) on the CPU, as pictures: uint8 of shape (B, H, W, 3), or (B, H, W, 1) in
        grey. None if the inputs are not images.

        Floats are scaled so that the smallest of these inputs is black and the largest white; of two channels, or more
        than three, the mean is shown. A data set that knows how it was normalised overrides this to undo it.
        """
        if inputs.dim() != 4 or inputs.is_complex():
            return None
        pixels = inputs.permute(0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C)
        if pixels.shape[3] not in (1, 3):
            pixels = pixels.float().mean(3, keepdim=True)
        if pixels.dtype == torch.uint8 or not pixels.numel():
            return pixels.to(torch.uint8)
        pixels = pixels.float().nan_to_num(0.0, 0.0, 0.0)
        low, high = pixels.aminmax()
        return ((pixels - low) * (255 / (high - low).clamp(min=1e-12))).round().to(torch.uint8)

    def _evaluation(self, source: Source, indices: Tensor | None) -> Batches:
        return Batches(source, batch_size=self.eval_batch_size, indices=indices, num_workers=self.num_workers)

    def _split(self, count: int) -> tuple[Tensor | None, Tensor | None]:
        """Sorted indices of the samples to train on, (N,), and of those held out, (M,); None: all, none."""
        if not count:
            raise DataError(f"{type(self).__name__}: the training data are empty")
        if not self.validation_split:
            return None, None
        split = self.validation_split
        held_out = max(1, round(split * count)) if isinstance(split, float) else split
        if held_out >= count:
            raise DataError(
                f"data_loader.args.validation_split: {split} of {count} training samples leaves none to train on"
            )
        order = permutation(count, "validation")
        is_held_out = torch.zeros(count, dtype=torch.bool)
        is_held_out[order[:held_out].long()] = True
        # sorted, so that the held-out samples are read one after the other
        train = (~is_held_out).nonzero()[:, 0]
        validation = is_held_out.nonzero()[:, 0]
        return train.to(order.dtype), validation.to(order.dtype)
