"""The interface of a data set: training data, test data, and the part that is held out for validation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate

from base.data.batches import Batches
from base.data.device_cache import DeviceCache
from base.data.orders import (
    Bucketed,
    Order,
    Shuffled,
    Weighted,
    balanced_weights,
    check_lengths,
    check_weights,
    class_indices,
)
from base.data.sample_source import as_source
from base.data.sources import Source
from base.data.stream import StreamBatches, StreamSource
from utils.errors import DataError
from utils.random import permutation
from utils.schema import BetweenEpochs, Changeable, Fraction, Workers

MOST_CLASSES = 100_000
"""Integer targets beyond are taken for numbers, as of a regression, and not for classes."""


class BaseDataLoader(ABC):
    """A data set and its batches.

    A subclass gives ``training_data`` and ``test_data``: any map-style data set of torch, or a ``TensorSource`` where
    the data fit in memory, which is many times as fast for small images, or a ``StreamSource`` of data that can only be
    read on: their order is their own. Data are read when they are first needed.

    batch_size: samples of a training batch.
    eval_batch_size: samples of a validation or test batch; None: batch_size.
    validation_split: part of the training data that is held out, a fraction in [0, 1) or a number of samples. The same
        samples are held out in every run, whatever its seed, so that runs can be compared.
    folds: cross-validation: divide the training data into so many parts, of which ``fold`` is held out for validation,
        in place of validation_split. They are the same in every run, whatever its seed.
    fold: which of the folds is held out, from 0 to folds - 1.
    shuffle: whether each pass over the training data has a new order.
    num_workers: processes that load batches beside the training.
    device_cache: keep data that are in memory on the device that trains; batches are made and augmented there.
    balanced: draw each class equally often in training: the samples with replacement, as many as a pass has.
    drop_last: leave the last training batch of a pass out if it is short, as for BatchNorm, which cannot take a single
        sample. Validation and test data are always used to the last sample.

    An argument of a subclass cannot change when a run is resumed, unless its annotation says so: ``Changeable[str]``,
    as for a folder that was moved, or ``BetweenEpochs[int]`` (utils/schema.py).
    """

    class_names: Sequence[str] | None = None
    input_suffixes: Sequence[str] | None = None
    """Endings of the files that predict.py reads from a folder, as in (".wav",); None: those of pictures."""

    def __init__(
        self,
        *,
        batch_size: BetweenEpochs[PositiveInt],
        eval_batch_size: Changeable[PositiveInt | None] = None,
        validation_split: Fraction | NonNegativeInt = 0,
        folds: Annotated[int, Field(ge=2)] | None = None,
        fold: NonNegativeInt | None = None,
        shuffle: BetweenEpochs[bool] = True,
        num_workers: Changeable[Workers] = 0,
        drop_last: BetweenEpochs[bool] = False,
        balanced: BetweenEpochs[bool] = False,
        device_cache: Changeable[bool] = False,
    ) -> None:
        check_folds(folds, fold, validation_split)
        if device_cache and num_workers:
            raise ValueError('"device_cache" makes batches on the device, which "num_workers" cannot; leave one out')
        if balanced and not shuffle:
            raise ValueError('"balanced" draws the samples at random, and "shuffle" is false; leave one of them out')
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.validation_split = validation_split
        self.folds = folds
        self.fold = fold
        self.shuffle = shuffle
        self.num_workers = num_workers
        self.drop_last = drop_last
        self.balanced = balanced
        self.device_cache: DeviceCache | None = DeviceCache(torch.device("cpu")) if device_cache else None

    @abstractmethod
    def training_data(self, *, augment: bool) -> Source | Dataset[Any]:
        """The training data. augment is False for the part that is held out for validation."""

    @abstractmethod
    def test_data(self) -> Source | Dataset[Any]:
        """The test data, never augmented. Only test.py asks for them."""

    def sample_weights(self) -> Tensor | None:
        """How often each training sample is drawn, relative to the others: floats >= 0 of shape (N,), for all samples
        of ``training_data``, before some are held out. None: every sample once a pass.

        With weights, a pass draws as many samples as there are, with replacement.
        """
        return None

    def lengths(self) -> Tensor | None:
        """The length of each training sample, as of a text, of shape (N,), for all samples of ``training_data``.

        With lengths, a batch holds samples of similar length, so that little is padded. None: any samples.
        """
        return None

    def validation_data(self) -> Source | Dataset[Any] | None:
        """Validation data that are not a part of the training data, never augmented; None: what is held out of them."""
        return None

    def collate(self, samples: list[Any]) -> Any:
        """One batch of some samples of a map-style data set: any nest of tuples, lists and dicts of tensors.

        By default torch's ``default_collate``, which stacks tensors of the same shape. A subclass overrides it to pad
        sequences, or to keep a list where each sample has another size, as the boxes of a detector. With num_workers it
        runs in the workers, to which the data loader is sent.
        """
        return default_collate(samples)

    def facts(self) -> dict[str, Any]:
        """What is known of the training data once they are read, as plain JSON values.

        num_classes: where there are class names, or integer targets of shape (N,); not of a stream without names.
        class_counts: of such targets, the samples of each class to train on, without those that are held out.

        A subclass adds its own: ``return {**super().facts(), "vocabulary_size": len(self.words)}``.
        """
        source = self._source(augment=False)
        facts: dict[str, Any] = {}
        if self.class_names is not None:
            facts["num_classes"] = len(self.class_names)
        if isinstance(source, StreamSource):
            return facts
        train, _ = self._split(len(source))
        classes = class_indices(source)
        if classes is not None and int(classes.max()) < MOST_CLASSES:
            count = facts.setdefault("num_classes", int(classes.max()) + 1)
            trained = classes if train is None else classes[train]
            facts["class_counts"] = torch.bincount(trained, minlength=count).tolist()
        return facts

    def input_facts(self) -> dict[str, Any]:
        """What ``prepare_input`` must know of the training data, such as their mean: plain values and tensors.

        Asked for once the training data are read, and kept in the checkpoints, so that a prediction does not need the
        data. "columns", a list of names, says which columns of a table the model takes, and in which order.
        """
        return {}

    def prepare_input(self, raw: Path | Tensor | Mapping[str, str], facts: Mapping[str, Any]) -> Any:
        """A new input as ``test_data`` would give it, without its target and without reading the data set.

        raw: a file; a row of an array, as stored; or a row of a table, its cells by the names of the columns.
        facts: what ``input_facts`` gave in training.

        A data loader that changes what it reads overrides this. Raises DataError for a kind of input that it does not
        take, which ends the prediction; any other error means that this one input cannot be read.
        """
        if isinstance(raw, Tensor):
            return raw
        if isinstance(raw, Path):
            raise DataError(
                f"{type(self).__name__} does not say how a file becomes an input of the model, so that predict.py "
                "takes arrays (.npy, .npz) and tables (.csv) only; define prepare_input in it (docs/predict.md)"
            )
        return row_of_numbers(raw, facts.get("columns"))

    def test_names(self) -> Sequence[str] | None:
        """A name of each test sample, such as its file, in the order of ``test_data``, for test.py's report; or None.

        Asked for once the test data are read.
        """
        return None

    def training(self, seed: int) -> Batches:
        """Shuffled, augmented batches whose order and augmentation follow from the seed."""
        source = self._source(augment=True)
        if isinstance(source, StreamSource):
            self._check_stream(source)
            return StreamBatches(source, batch_size=self.batch_size, seed=seed, num_workers=self.num_workers)
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
            order=self._order(source, train, seed),
            seed=seed,
            num_workers=self.num_workers,
            drop_last=self.drop_last,
        )

    def validation(self) -> Batches | None:
        """Batches of the validation data or of the held-out samples, or None if there are none."""
        data = self.validation_data()
        if data is not None:
            if self.validation_split or self.folds is not None:
                what = "validation_split" if self.validation_split else "folds"
                raise DataError(
                    f"data_loader.args.{what}: {type(self).__name__} has its own validation data; leave {what} out"
                )
            return self._evaluation(self._as_source(data), None)
        if not self.validation_split and self.folds is None:
            return None
        source = self._source(augment=False)
        return self._evaluation(source, self._split(len(source))[1])

    def test(self) -> Batches:
        """Batches of the test data. Raises DataError if there are none."""
        source = self._as_source(self.test_data())
        if not len(source):
            raise DataError(f"{type(self).__name__}: the test data are empty")
        return self._evaluation(source, None)

    def begin_epoch(self, epoch: int) -> None:  # noqa: B027  (may be left as it is)
        """Called before the training steps of an epoch, also before those that are left where a run resumes within it.

        It may be called twice for one epoch. The first epoch is 1.

        To change what depends on the epoch, such as the size of images. Worker processes are then restarted.
        """

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

    def _source(self, *, augment: bool) -> Source:
        return self._as_source(self.training_data(augment=augment))

    def _as_source(self, data: Source | Dataset[Any]) -> Source:
        # the loader is sent to the workers only for a method of its own: it may hold the data, and much else
        own = type(self).collate is not BaseDataLoader.collate
        collate: Callable[[list[Any]], Any] = self.collate if own else default_collate
        if isinstance(data, IterableDataset):
            data = StreamSource(data)
        if isinstance(data, StreamSource):
            data.collate = data.collate or collate
        source = as_source(data, collate)
        return self.device_cache.keep(source) if self.device_cache else source

    def _check_stream(self, source: StreamSource) -> None:
        """Raise DataError if a stream for training is asked for what only an index can give."""
        asked = {
            "validation_split": self.validation_split,
            "folds": self.folds,
            "balanced": self.balanced,
            "sample_weights()": self.sample_weights() is not None,
            "lengths()": self.lengths() is not None,
        }
        for name, value in asked.items():
            if value:
                where = "" if name.endswith("()") else "data_loader.args."
                raise DataError(
                    f"{where}{name}: the training data are a stream, which can only be read on; leave {name} out"
                    + ("" if name not in ("validation_split", "folds") else ", and give validation_data() instead")
                )
        if source.length is not None:
            raise DataError("a stream for training has no length: trainer.steps_per_epoch says how long an epoch is")

    def _evaluation(self, source: Source, indices: Tensor | None) -> Batches:
        if isinstance(source, StreamSource):
            if source.length is None:
                raise DataError("a stream for validation or test needs the number of samples to take: its length")
            return StreamBatches(source, batch_size=self.eval_batch_size, num_workers=self.num_workers)
        return Batches(source, batch_size=self.eval_batch_size, indices=indices, num_workers=self.num_workers)

    def _order(self, source: Source, train: Tensor | None, seed: int) -> Order | None:
        """The order of each pass over the training samples; None: as they are in the source.

        train: the indices of those to train on, (N,); None: all. Raises DataError for weights that cannot be drawn by.
        """
        weights, lengths = self._weights(source, train), self.lengths()
        if not self.shuffle:
            if weights is not None or lengths is not None:
                hook = "sample_weights() draws" if weights is not None else "lengths() sorts"
                raise DataError(
                    f"data_loader.args.shuffle: {type(self).__name__}.{hook} the samples, so shuffle cannot be false"
                )
            return None
        order: Order = Shuffled(len(source) if train is None else len(train), seed)
        if weights is not None:
            order = Weighted(weights, seed)
        if lengths is None:
            return order
        lengths = check_lengths(lengths, len(source))
        return Bucketed(order, lengths if train is None else lengths[train], self.batch_size, seed)

    def _weights(self, source: Source, train: Tensor | None) -> Tensor | None:
        """The weights of the samples to train on, float64 of shape (N,); None if each comes once."""
        given = self.sample_weights()
        if given is not None and self.balanced:
            raise DataError(
                f"data_loader.args.balanced: {type(self).__name__} has its own sample_weights(); leave balanced out"
            )
        if given is not None:
            weights = check_weights(given, len(source))
            weights = weights if train is None else weights[train]
            if not weights.any():
                raise DataError("sample_weights() is 0 for every sample to train on, so that none can be drawn")
            return weights
        if not self.balanced:
            return None
        classes = class_indices(source)
        if classes is None:
            raise DataError(
                "data_loader.args.balanced: needs a class for each sample: integer targets >= 0 of shape (N,) in a "
                'TensorSource, or as "targets" of the data set; otherwise give sample_weights()'
            )
        return balanced_weights(classes if train is None else classes[train])

    def _split(self, count: int) -> tuple[Tensor | None, Tensor | None]:
        """Sorted indices of the samples to train on, (N,), and of those held out, (M,); None: all, none."""
        if not count:
            raise DataError(f"{type(self).__name__}: the training data are empty")
        if not self.validation_split and self.folds is None:
            return None, None
        held_out = self._held_out(count)
        is_held_out = torch.zeros(count, dtype=torch.bool)
        is_held_out[held_out.long()] = True
        # sorted, so that the held-out samples are read one after the other
        train = (~is_held_out).nonzero()[:, 0]
        validation = is_held_out.nonzero()[:, 0]
        return train.to(held_out.dtype), validation.to(held_out.dtype)

    def _held_out(self, count: int) -> Tensor:
        """Indices of the samples that are held out, of so many, (M,). They do not depend on the run's seed."""
        order = permutation(count, "validation")
        if self.folds is not None and self.fold is not None:
            if self.folds > count:
                raise DataError(f"data_loader.args.folds: {count} training samples do not make {self.folds} folds")
            return order[count * self.fold // self.folds : count * (self.fold + 1) // self.folds]
        split = self.validation_split
        held_out = max(1, round(split * count)) if isinstance(split, float) else split
        if held_out >= count:
            raise DataError(
                f"data_loader.args.validation_split: {split} of {count} training samples leaves none to train on"
            )
        return order[:held_out]


def check_folds(folds: int | None, fold: int | None, validation_split: float) -> None:
    """Raise ValueError if these contradict each other."""
    if (folds is None) != (fold is None):
        given, missing = ("folds", "fold") if fold is None else ("fold", "folds")
        raise ValueError(f'"{given}" needs "{missing}" beside it, as in "folds": 5, "fold": 0')
    if folds is not None and fold is not None and fold >= folds:
        raise ValueError(f'"fold" is {fold}, and the {folds} folds are numbered from 0 to {folds - 1}')
    if folds is not None and validation_split:
        raise ValueError('"folds" holds one fold out for validation; leave "validation_split" out')


def row_of_numbers(cells: Mapping[str, str], columns: Sequence[str] | None = None) -> Tensor:
    """The cells of a table's row as float32 of shape (D,), those of some columns or all. Raises ValueError."""
    numbers = []
    for name in cells if columns is None else columns:
        try:
            numbers.append(float(cells[name]))
        except ValueError as error:
            raise ValueError(f"column {name}: {cells[name]!r} is not a number") from error
        except KeyError as error:
            raise DataError(f"the table has no column {name!r}; the model takes {', '.join(columns or ())}") from error
    return torch.tensor(numbers, dtype=torch.float32)
