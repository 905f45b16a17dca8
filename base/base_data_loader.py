"""The interface of a data set: training data, test data, and a held-out part for validation."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from base.data.batches import Batches
from base.data.collate import collate_samples
from base.data.device_cache import DeviceCache
from base.data.errors import ARGUMENTS, call_hook
from base.data.orders import (
    MOST_CLASSES,
    Bucketed,
    Order,
    Shuffled,
    Weighted,
    balanced_sample_weights,
    class_indices,
    class_weights,
    once,
    sample_numbers,
)
from base.data.sample_source import as_source
from base.data.sources import Source
from base.data.split import check_folds, check_split, split_at_random
from base.data.stream import StreamBatches, StreamSource, check_for_training
from utils.errors import DataError
from utils.schema import BetweenEpochs, Changeable, Fraction, NotExport, TrainingAndTest, TrainingOnly, Workers
from utils.text import is_number

OVERFLOW = 2.0**128 - 2.0**103
"""The least number that float32 rounds to infinity."""


class BaseDataLoader(ABC):
    """A data set and its batches.

    Subclasses define ``training_data`` and, for test.py, ``test_data``, returning any map-style torch data set; a
    ``TensorSource``, which is many times as fast for small images that fit in memory; or a ``StreamSource`` for data
    that can only be read in its own order. Data is read when first needed.

    batch_size: samples per training batch.
    eval_batch_size: samples per validation or test batch; None: batch_size.
    validation_split: the held-out part of the training data, as a fraction in [0, 1) or a number of samples. It is the
        same in every run, whatever its seed, so that runs can be compared.
    folds: cross-validation: divide the training data into this many parts and hold out part ``fold`` for validation,
        instead of validation_split. They are the same for every seed.
    fold: which part to hold out, from 0 to folds - 1.
    shuffle: whether each pass over the training data has a new order.
    num_workers: processes that load batches in the background.
    device_cache: keep in-memory data on the training device, and build batches there. None: small data (docs/data.md).
    balanced: draw each class equally often in training, with replacement; a pass has as many samples as before.
    drop_last: skip an incomplete last training batch of a pass, for example since BatchNorm cannot train on a single
        sample. Validation and test data are always used completely.

    A subclass's arguments cannot change when a run is resumed, unless their annotation says so: ``Changeable[str]``, as
    for a folder that was moved, or ``BetweenEpochs[int]`` (utils/schema.py). ``TrainingOnly[bool]``, as for an
    augmentation, makes test.py, predict.py and export.py refuse an override of it, which would have no effect.
    """

    class_names: Sequence[str] | None = None
    input_suffixes: Sequence[str] | None = None
    """Suffixes of the files that predict.py reads from a folder, as in (".wav",); None: those of images."""

    def __init__(
        self,
        *,
        batch_size: NotExport[BetweenEpochs[PositiveInt]],
        eval_batch_size: NotExport[Changeable[PositiveInt | None]] = None,
        validation_split: TrainingAndTest[Fraction | NonNegativeInt] = 0,
        folds: TrainingAndTest[Annotated[int, Field(ge=2)] | None] = None,
        fold: TrainingAndTest[NonNegativeInt | None] = None,
        shuffle: TrainingOnly[BetweenEpochs[bool]] = True,
        num_workers: TrainingAndTest[Changeable[Workers]] = 0,
        drop_last: TrainingOnly[BetweenEpochs[bool]] = False,
        balanced: TrainingOnly[BetweenEpochs[bool]] = False,
        device_cache: TrainingAndTest[Changeable[bool | None]] = None,
    ) -> None:
        check_folds(folds, fold, validation_split)
        if device_cache and num_workers:
            raise ValueError(
                '"device_cache" builds batches on the device, which "num_workers" cannot; use only one of them'
            )
        if device_cache and self.defines("begin_epoch"):
            raise ValueError(
                f'"device_cache" copies data once, but {type(self).__name__}.begin_epoch may change it; leave one out'
            )
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.validation_split = validation_split
        self.folds = folds
        self.fold = fold
        self.shuffle = shuffle
        self.num_workers = num_workers
        self.drop_last = drop_last
        self.balanced = balanced
        asked = not (num_workers or self.defines("begin_epoch")) if device_cache is None else device_cache
        self.device_cache = DeviceCache(if_suitable=device_cache is None) if asked else None
        self._parts: tuple[Tensor, Tensor] | None = None
        self.device = torch.device("cpu")
        """Where data is kept with device_cache: the training device, once it is known."""

    @abstractmethod
    def training_data(self, *, augment: bool) -> Source | Dataset[Any]:
        """The training data. augment is False for the held-out validation part."""

    def test_data(self) -> Source | Dataset[Any]:
        """The test data, never augmented: for test.py, or a loader of "validation" that holds out nothing."""
        raise DataError(f"{type(self).__name__} has no test data; let it define test_data()")

    def split(self, count: int) -> tuple[Tensor, Tensor]:
        """Indices of the samples of ``training_data`` to train on, (N,), and of those to hold out, (M,).

        By default held out at random, by ``validation_split`` or ``folds``. Override it to hold out all samples of some
        people, or the latest: integers, or masks of shape (count,). Samples in neither are not used. Called after
        ``training_data``, which may call it for statistics of the training samples alone: it must return the same.
        """
        return split_at_random(count, validation_split=self.validation_split, folds=self.folds, fold=self.fold)

    def sample_weights(self) -> Tensor | None:
        """How often to draw each training sample, relative to the others: floats >= 0 of shape (N,), for all samples of
        ``training_data``, including those held out later. None: every sample once per pass.

        With weights, a pass draws as many samples as there are, with replacement. Called when the data is read and
        after each ``begin_epoch``, which may change them; an epoch within a pass draws the rest of it by the new ones.
        """
        return None

    def lengths(self) -> Tensor | None:
        """The length of each training sample, such as a text, shape (N,), for all samples of ``training_data``.

        With lengths, batches contain samples of similar length, to reduce padding. None: no grouping by length.
        """
        return None

    def validation_data(self) -> Source | Dataset[Any] | None:
        """Separate validation data, never augmented; None: use the held-out part of the training data."""
        return None

    def collate(self, samples: list[Any]) -> Any:
        """Build a batch from samples of a map-style data set: any nest of tuples, lists and dicts of tensors.

        By default like torch's ``default_collate``, which stacks tensors of the same shape. Override it to pad
        sequences, or to keep a list if samples differ in size, such as a detector's boxes. With num_workers it runs in
        the workers, to which the data loader is sent.
        """
        return collate_samples(samples)

    def facts(self) -> dict[str, Any]:
        """Facts about the training data, known once it is read, as plain JSON values.

        num_classes: if there are class names or integer targets of shape (N,); not for a stream without names.
        class_counts: for such targets, the number of training samples per class, without those held out.
        class_weights: weights of a loss that give each class the same total, N / (num_classes * class_counts).

        Subclasses can add their own: ``return {**super().facts(), "vocabulary_size": len(self.words)}``.
        """
        source = self._source(augment=False)
        facts: dict[str, Any] = {} if self.class_names is None else {"num_classes": len(self.class_names)}
        if isinstance(source, StreamSource):
            return facts
        train, _ = self._split(len(source))
        classes = class_indices(source)
        if classes is not None:
            highest = int(classes.max())
            count = facts.setdefault("num_classes", highest + 1)
            if highest >= count:
                names = f"{type(self).__name__}.class_names has {count} names"
                raise DataError(f"{names}, but the targets are classes from 0 to {highest}")
            counts = torch.bincount(classes if train is None else classes[train], minlength=count)
            facts |= {"class_counts": counts.tolist(), "class_weights": class_weights(counts)}
        return facts

    def input_facts(self) -> dict[str, Any]:
        """What ``prepare_input`` needs to know about the training data, such as its mean: plain values and tensors.

        Called once the training data is read, and saved in checkpoints, so that predictions do not need the data.
        "columns", a list of names, gives the columns of a table that the model takes, in order.
        """
        return {}

    def prepare_input(self, raw: Path | Tensor | Mapping[str, str], facts: Mapping[str, Any]) -> Any:
        """Convert a new input to the form of ``test_data``, without its target and without reading the data set.

        raw: a file; a row of an array, as stored; or a row of a table, its cells by column name.
        facts: what ``input_facts`` returned in training.

        Override this in a data loader that transforms its data. Raises DataError for an unsupported kind of input,
        which ends the prediction; any other error means that this particular input cannot be read.
        """
        if isinstance(raw, Tensor):
            return raw
        if isinstance(raw, Path):
            raise DataError(
                f"{type(self).__name__} does not define how to read files, so predict.py takes only "
                "arrays (.npy, .npz) and tables (.csv); define prepare_input in it (docs/predict.md)"
            )
        return row_of_numbers(raw, facts.get("columns"))

    def test_names(self) -> Sequence[str] | None:
        """Names of the test samples, such as their files, in the order of ``test_data``, for test.py's report; or None.

        Called once the test data is read.
        """
        return None

    def training(self, seed: int) -> Batches:
        """Shuffled, augmented batches, in an order and with an augmentation determined by the seed."""
        source = self._source(augment=True)
        if isinstance(source, StreamSource):
            asked = {
                self.holds_out(): True,
                "balanced": self.balanced,
                "sample_weights()": self.defines("sample_weights"),
                "lengths()": call_hook(self, "lengths") is not None,
            }
            check_for_training(source, [name for name, given in asked.items() if name and given])
            return StreamBatches(source, batch_size=self.batch_size, seed=seed, num_workers=self.num_workers)
        train, _ = self._split(len(source))
        count = len(source) if train is None else len(train)
        if self.drop_last and count < self.batch_size:
            raise DataError(
                f"the {count} training samples do not fill one batch of {self.batch_size}, "
                "so all would be dropped; set a smaller batch_size, or drop_last to false",
                (*ARGUMENTS, "drop_last"),
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
            if what := self.holds_out():
                raise DataError(f"{type(self).__name__} has its own validation data; leave {what} out")
            return self._evaluation(self._as_source(data), None)
        if not self.holds_out():
            return None
        source = self._source(augment=False)
        _, held_out = self._split(len(source))
        return None if held_out is None or not len(held_out) else self._evaluation(source, held_out)

    def test(self) -> Batches:
        """Batches of the test data. Raises DataError if there are none."""
        return self._evaluation(self._as_source(self.test_data()), None, "test")

    def defines(self, name: str) -> bool:
        """Whether the subclass defines an optional method."""
        return getattr(type(self), name) is not getattr(BaseDataLoader, name)

    def begin_epoch(self, epoch: int) -> None:  # noqa: B027  (optional)
        """Called before the training steps of an epoch, also if a run resumes within it. The first is 1.

        Use it to change what depends on the epoch, such as the image size, in the data set that ``training_data`` has
        returned once; its length must stay the same. Worker processes are then restarted, after the trainer's
        ``begin_epoch``, which may change the data set too; define this then, even if it does nothing. A loader that
        defines it has no device_cache. A test (after ``test_data``), a prediction and an export call it, too.
        """

    def pictures(self, inputs: Tensor) -> Tensor | None:
        """Convert model inputs, (B, C, H, W) on the CPU, to pictures: uint8 of shape (B, H, W, 3), or (B, H, W, 1) for
        grey. None if the inputs are not images.

        Floats are scaled so that the smallest of these inputs is black and the largest white; with two channels, or
        more than three, the mean is shown. Override this to undo a known normalisation.
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
        # the loader is sent to the workers only for its own collate: it may hold the data, and much else
        collate = self.collate if self.defines("collate") else collate_samples
        if isinstance(data, IterableDataset):
            data = StreamSource(data)
        if isinstance(data, StreamSource):
            data.collate = data.collate or collate
        source = as_source(data, collate)
        return self.device_cache.keep(source, self.device) if self.device_cache else source

    def _evaluation(self, source: Source, indices: Tensor | None, phase: str = "validation") -> Batches:
        if not len(source):
            raise DataError(f"{type(self).__name__}: the {phase} data is empty")
        if isinstance(source, StreamSource):
            if source.length is None:
                raise DataError("a stream for validation or test needs a length: the number of samples to take")
            return StreamBatches(source, batch_size=self.eval_batch_size, num_workers=self.num_workers)
        return Batches(source, batch_size=self.eval_batch_size, indices=indices, num_workers=self.num_workers)

    def _order(self, source: Source, train: Tensor | None, seed: int) -> Order | None:
        """The order of each pass over the training samples; None: as in the source.

        train: indices of the training samples, (N,); None: all. Raises DataError for invalid weights.
        """
        lengths = sample_numbers(self, "lengths", len(source))
        weighted = self.balanced or self.defines("sample_weights")
        if not self.shuffle:
            if weighted or lengths is not None:
                what = "balanced, sample_weights() or lengths()"
                message = f"{what} determines the order, so shuffle cannot be false"
                raise DataError(message, (*ARGUMENTS, "shuffle"))
            return None
        order: Order = Shuffled(len(source) if train is None else len(train), seed)
        if weighted:
            order = Weighted(partial(self._weights, source, train), seed)
        if lengths is None:
            return order
        return Bucketed(order, lengths if train is None else lengths[train], self.batch_size, seed)

    def _weights(self, source: Source, train: Tensor | None) -> Tensor:
        """The weights of the training samples in an epoch, float64 of shape (N,)."""
        weights, kind = sample_numbers(self, "sample_weights", len(source), are_weights=True), type(self).__name__
        if weights is not None and self.balanced:
            raise DataError(f"{kind} has its own sample_weights(); leave balanced out", (*ARGUMENTS, "balanced"))
        if weights is not None:
            weights = weights if train is None else weights[train]
            if not torch.finfo(torch.float64).tiny <= (total := weights.sum()) < torch.inf:
                raise DataError(f"{kind}.sample_weights() adds up to {total:g} in training: none can be drawn")
            return weights
        if not self.balanced:
            return once(len(source) if train is None else len(train))
        classes = class_indices(source)
        if classes is None:
            raise DataError(
                "needs a class for each sample: integer targets from 0 to "
                f'{MOST_CLASSES - 1:,}, of shape (N,), in a TensorSource or as "targets" of the data set; otherwise '
                "define sample_weights()",
                (*ARGUMENTS, "balanced"),
            )
        return balanced_sample_weights(classes if train is None else classes[train])

    def holds_out(self) -> str:
        """The argument or hook by which samples are held out; "" if none are."""
        if self.defines("split"):
            return "split()"
        return "folds" if self.folds is not None else "validation_split" if self.validation_split else ""

    def _split(self, count: int) -> tuple[Tensor | None, Tensor | None]:
        """What ``split`` returns, checked; None: all, none."""
        if not count:
            raise DataError(f"{type(self).__name__}: the training data is empty")
        if not self.holds_out():
            return None, None
        if self._parts is None:  # asked once: one that draws samples at random would hold out others each time
            kind = type(self)  # the loader may keep an argument as self.split
            self._parts = check_split(kind.split(self, count), count, by=kind.__name__)
        return self._parts


def row_of_numbers(cells: Mapping[str, str], columns: Sequence[str] | None = None) -> Tensor:
    """Some or all cells of a table row as float32 of shape (D,). Raises ValueError."""
    numbers = []
    for name in cells if columns is None else columns:
        if name not in cells:
            raise DataError(f"the table has no column {name!r}; the model takes {', '.join(columns or ())}")
        cell = cells[name]
        number = float(cell) if is_number(cell) else math.nan
        if math.isnan(number) or "_" in cell:  # Python takes 1_5 for 15
            raise ValueError(f"column {name}: {cell!r} is not a number")
        if OVERFLOW <= abs(number) < math.inf:
            raise ValueError(f"column {name}: {cell!r} is out of range")
        numbers.append(number)
    return torch.tensor(numbers, dtype=torch.float32)
