"""Which samples, in which order, with which augmentation: functions of seed, pass and sample, and of nothing else."""

import errno
import itertools
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import v2

from base.data.batches import Batches, BatchRange, Position
from base.data.images.image_loader import random_crop, random_flip
from base.data.orders import Shuffled
from base.data.sample_random import SampleRandom
from base.data.sample_source import SampleSource, as_source
from base.data.sources import TensorSource
from base.data.workers import Workers, naming_dead_worker, read_once, start_method, starting_workers
from data_loader.cifar10 import CIFAR10Loader
from data_loader.random_tensor import RandomTensorLoader
from utils.errors import DataError, UserError
from utils.tree import describe_batch


class Photos(Dataset[tuple[Tensor, int]]):
    """A map-style data set with torchvision's transforms, which draw from the global generators."""

    transform = v2.Compose([v2.RandomCrop(8, padding=2), v2.RandomHorizontalFlip(), v2.ColorJitter(0.5)])

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(index))
        noise = torch.rand(()) + random.random() + np.random.rand()
        return self.transform(image) + noise, index


class Arrays(Dataset[Any]):
    """Rows of NumPy, which a collate function of its own stacks as they are."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return np.full(3, index)


def stacked(rows: list[Any]) -> Any:
    return np.stack(rows)


def numbers(count: int = 23) -> TensorSource:
    def jitter(inputs: Tensor, draws: SampleRandom) -> Tensor:
        return inputs + draws.uniform()[0].float()

    return TensorSource(torch.arange(float(count)), torch.arange(count), augment=jitter)


def passes(batches: Batches, count: int) -> list[Any]:
    ranges = itertools.islice(batches.ranges(), count * len(batches))
    return [micro_batch.data for micro_batch in batches.load(ranges)]


def equal(left: list[Any], right: list[Any]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, b) for one, two in zip(left, right, strict=True) for a, b in zip(one, two, strict=True)
    )


@pytest.mark.parametrize("source", [numbers(), SampleSource(Photos())], ids=["in memory", "map-style"])
def test_batches_are_the_same_for_any_number_of_workers(source: Any) -> None:
    made = [
        Batches(source, batch_size=4, order=Shuffled(len(source), 3), seed=3, num_workers=workers)
        for workers in (0, 1, 2)
    ]
    alone, one, two = (passes(batches, 2) for batches in made)
    assert equal(alone, one)
    assert equal(alone, two)
    assert not equal(alone[:6], alone[6:]), "the second pass is the first again"


@pytest.mark.parametrize("source", [numbers(), SampleSource(Photos())], ids=["in memory", "map-style"])
@pytest.mark.parametrize("start", [0, 1, 5, 7])
def test_batches_are_the_same_from_any_position(source: Any, start: int) -> None:
    batches = Batches(source, batch_size=4, order=Shuffled(len(source), 3), seed=3)
    ranges = list(itertools.islice(batches.ranges(), 12))
    loaded = [micro_batch.data for micro_batch in batches.load(ranges)]
    position = batches.after(ranges[start - 1]) if start else Position()
    again = Batches(source, batch_size=4, order=Shuffled(len(source), 3), seed=3)
    later = list(itertools.islice(again.ranges(position), 12 - start))
    assert later == ranges[start:]
    assert equal([micro_batch.data for micro_batch in again.load(later)], loaded[start:])


@pytest.mark.parametrize("start", [3, 7, 8, 9])
def test_a_position_of_another_batch_size_gives_no_short_batch(start: int) -> None:
    batches = Batches(numbers(10), batch_size=4, drop_last=True)
    ranges = list(itertools.islice(batches.ranges(Position(0, start)), 3))
    assert [batch_range.size for batch_range in ranges] == [4, 4, 4]
    assert [batch_range.passes for batch_range in ranges] == ([0, 1, 1] if start == 3 else [1, 1, 2])


class Pair(NamedTuple):
    inputs: Tensor
    labels: Any


class Pairs(Dataset[Pair]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Pair:
        return Pair(torch.full((3,), float(index)), {"class": index})


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_may_be_a_named_tuple(workers: int) -> None:
    batches = Batches(SampleSource(Pairs()), batch_size=4, num_workers=workers)
    first, second = passes(batches, 1)
    assert isinstance(first, Pair)
    assert first.inputs.shape == (4, 3)
    assert second.labels["class"].tolist() == [4, 5]
    assert describe_batch(first) == "inputs: (4, 3) float32, labels.class: (4,) int64"


def test_a_packed_sequence_is_described() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.zeros(3), torch.zeros(2)])
    assert describe_batch({"words": packed}) == "words.data: (5,) float32, words.batch_sizes: (3,) int64"


@pytest.mark.parametrize("workers", [0, 1])
def test_steps_hold_their_micro_batches_samples_and_position(workers: int) -> None:
    batches = Batches(numbers(), batch_size=5, num_workers=workers)
    batches.divide(1, 4)
    ranges = list(itertools.islice(batches.ranges(), 5))
    steps, loaded = [], []
    for step in batches.load_steps([ranges[:2], ranges[2:4], ranges[4:]]):
        steps.append(step)
        loaded.append(list(step.micro_batches))
    assert [step.ranges for step in steps] == [ranges[:2], ranges[2:4], ranges[4:]]
    assert [step.samples for step in steps] == [10, 10, 3]
    assert [step.position for step in steps] == [Position(0, 10), Position(0, 20), Position(1, 0)]
    micro_batches = list(itertools.chain(*loaded))
    assert [micro_batch.range for micro_batch in micro_batches] == ranges
    assert [micro_batch.size for micro_batch in micro_batches] == [1, 1, 1, 1, 1]
    assert [micro_batch.data[1].tolist() for micro_batch in micro_batches] == [[1], [6], [11], [16], [20]]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_process_without_samples_loads_the_whole_batch(workers: int) -> None:
    batches = Batches(numbers(2), batch_size=2, num_workers=workers)
    batches.divide(0, 4)
    [micro_batch] = batches.one_pass()
    assert micro_batch.size == 0
    assert micro_batch.data[1].tolist() == [0, 1]


def test_a_pass_holds_every_sample_once() -> None:
    for _, targets in [*passes(Batches(numbers(), batch_size=50, order=Shuffled(23, 0)), 2)]:
        assert sorted(targets.tolist()) == list(range(23))


@pytest.mark.parametrize("transform", [None, torch.clone])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("size", [5, 23])
def test_what_is_done_to_a_batch_leaves_the_data_as_they_are(size: int, shuffle: bool, transform: Any) -> None:
    stored, labels = torch.arange(23.0), torch.arange(23)
    source = TensorSource(stored, labels, transform=transform)
    batches = Batches(source, batch_size=size, order=Shuffled(23, 0) if shuffle else None)
    with nullcontext() if shuffle or transform else pytest.raises(DataError, match="changed in place"):
        for step in batches.load_steps([[each] for each in itertools.islice(batches.ranges(), len(batches))]):
            [micro_batch] = step.micro_batches
            inputs, targets = micro_batch.data
            inputs.zero_()
            targets.zero_()
        assert torch.equal(stored, torch.arange(23.0))
        assert torch.equal(labels, torch.arange(23))


def test_a_change_to_a_batch_or_to_the_data_between_epochs_stays_out_of_later_batches() -> None:
    stored = torch.arange(23.0)
    batches = Batches(TensorSource(stored, torch.arange(23)), batch_size=23)
    next(batches.one_pass()).data[0].requires_grad_()  # as for a gradient penalty
    assert not next(batches.one_pass()).data[0].requires_grad
    stored += 1
    batches.close()
    assert torch.equal(next(batches.one_pass()).data[0], torch.arange(23.0) + 1)


def test_evaluation_leaves_the_data_as_they_are() -> None:
    stored = torch.arange(23.0)
    source = TensorSource(stored, torch.arange(23))
    with torch.inference_mode():
        for micro_batch in Batches(source, batch_size=5).one_pass():
            micro_batch.data[0].zero_()
    assert torch.equal(stored, torch.arange(23.0))


def test_a_change_to_a_copy_of_data_in_memory_stays_out_of_later_batches() -> None:
    """Data that is not aligned is copied, even if it is a single batch, which is the same every time."""
    stored = torch.arange(24.0)
    batches = Batches(TensorSource(stored[1:], torch.arange(23)), batch_size=23)
    for _ in range(2):
        inputs = next(batches.one_pass()).data[0]
        assert torch.equal(inputs, torch.arange(1, 24.0))
        inputs.zero_()
    assert torch.equal(stored, torch.arange(24.0))


class Rows:
    """A user's source of batches."""

    def __init__(self) -> None:
        self.stored = torch.arange(23.0)

    def __len__(self) -> int:
        return 23

    def batch(self, indices: Tensor, random: SampleRandom) -> Tensor:
        return self.stored[indices]


def test_what_is_done_to_a_batch_of_an_own_source_leaves_its_data_as_they_are() -> None:
    source = Rows()
    for micro_batch in Batches(source, batch_size=5).one_pass():
        micro_batch.data.zero_()
    assert torch.equal(source.stored, torch.arange(23.0))


def test_data_created_in_inference_mode_is_read_like_any_other() -> None:
    """Such as features that another model has computed."""
    with torch.inference_mode():
        stored = torch.arange(23.0)
    for micro_batch in Batches(TensorSource(stored, torch.arange(23)), batch_size=5).one_pass():
        inputs, targets = micro_batch.data
        assert torch.equal(inputs, targets.float())
        inputs.zero_()
    assert torch.equal(stored, torch.arange(23.0))


def test_sparse_data_is_read_in_order_too() -> None:
    stored = torch.diag(torch.arange(1, 24.0))
    batches = Batches(TensorSource(stored.to_sparse(), torch.arange(23)), batch_size=5)
    inputs = [micro_batch.data[0].to_dense() for micro_batch in batches.one_pass()]
    assert torch.equal(torch.cat(inputs), stored)


def test_augmentation_does_not_depend_on_the_batch() -> None:
    small, large = (Batches(numbers(), batch_size=size, seed=1) for size in (2, 23))
    assert torch.equal(torch.cat([inputs for inputs, _ in passes(small, 1)]), passes(large, 1)[0][0])


def test_another_seed_gives_another_order_and_another_augmentation() -> None:
    one, two = (passes(Batches(numbers(), batch_size=23, order=Shuffled(23, seed), seed=seed), 1)[0] for seed in (0, 1))
    assert not torch.equal(one[1], two[1])
    assert not torch.equal(one[0][one[1].argsort()], two[0][two[1].argsort()])


def test_the_last_batch_is_short() -> None:
    batches = Batches(numbers(), batch_size=5)
    assert [len(targets) for _, targets in passes(batches, 1)] == [5, 5, 5, 5, 3]
    assert batches.after(BatchRange(0, 20, 23)) == Position(1, 0)


@pytest.mark.parametrize(("split", "held_out"), [(0.1, 5), (0.01, 1), (7, 7), (49, 49)])
def test_validation_is_a_part_of_the_training_data(split: float, held_out: int) -> None:
    loader = RandomTensorLoader(
        batch_size=8, num_samples=50, input_shape=[2], num_classes=3, validation_split=split, num_test_samples=9
    )
    training, validation = loader.training(seed=5), loader.validation()
    assert validation is not None
    assert (training.num_samples, validation.num_samples, loader.test().num_samples) == (50 - held_out, held_out, 9)
    assert isinstance(training.indices, Tensor)
    assert isinstance(validation.indices, Tensor)
    assert sorted([*training.indices.tolist(), *validation.indices.tolist()]) == list(range(50))
    for indices in (training.indices, validation.indices):
        assert (indices.diff() > 0).all(), "not in the order of the file"
    other = loader.training(seed=6)
    assert isinstance(other.indices, Tensor)
    assert torch.equal(training.indices, other.indices), "the split must not depend on the run"


@pytest.mark.parametrize("split", [50, 60])
def test_a_split_that_leaves_nothing_is_refused(split: int) -> None:
    loader = RandomTensorLoader(batch_size=8, num_samples=50, input_shape=[2], num_classes=3, validation_split=split)
    with pytest.raises(DataError, match="validation_split"):
        loader.training(seed=0)


def test_random_targets() -> None:
    def draw(**what: Any) -> tuple[Tensor, Tensor]:
        loader = RandomTensorLoader(batch_size=4, num_samples=100, input_shape=[3], **what)
        batches = Batches(loader.training_data(augment=True), batch_size=100)
        return tuple(next(batches.one_pass()).data)

    _, classes = draw(num_classes=4)
    assert classes.dtype == torch.int64
    assert set(classes.tolist()) == {0, 1, 2, 3}
    _, normal = draw(target_shape=[2, 5])
    assert normal.shape == (100, 2, 5)
    inputs, linear = draw(linear=[3, 1, -2])
    torch.testing.assert_close(linear[:, 0], 3 * inputs[:, 0] + inputs[:, 1] - 2 * inputs[:, 2])
    for wrong in ({}, {"num_classes": 4, "linear": [1, 2, 3]}):
        with pytest.raises(ValueError, match="exactly one"):
            draw(**wrong)
    with pytest.raises(ValueError, match=r'"linear" has 2 coefficients for inputs of shape \[3\]'):
        draw(linear=[1, 2])


def test_cifar10_is_scaled_and_only_training_images_are_augmented(own_cifar10: Path) -> None:
    loader = CIFAR10Loader(batch_size=20, data_dir=str(own_cifar10), crop=4, flip=True, validation_split=20)
    stored, labels = loader.read(train=True)
    assert isinstance(stored, Tensor)
    assert stored.dtype == torch.uint8
    assert stored.shape == (100, 32, 32, 3)
    training, validation = loader.training(seed=0), loader.validation()
    assert validation is not None
    assert isinstance(validation.indices, Tensor)
    images, targets = next(validation.load([BatchRange(0, 0, 20)])).data
    torch.testing.assert_close(images, stored[validation.indices].permute(0, 3, 1, 2).float() / 127.5 - 1)
    assert torch.equal(targets, labels[validation.indices])
    assert images.is_contiguous(memory_format=torch.channels_last)
    augmented, _ = next(training.load([BatchRange(0, 0, 20)])).data
    assert not torch.equal(augmented, loader.normalize(stored[training.sample_indices(BatchRange(0, 0, 20))]))
    assert -1 <= augmented.min() < augmented.max() <= 1


def test_cifar10_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    loader = CIFAR10Loader(batch_size=20, data_dir=str(tmp_path), download=False)
    with pytest.raises(DataError, match="data_dir"):
        loader.training(seed=0)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize(("samples", "batch_size"), [(1000, 4), (20_001, 500), (40_000, 20_000)])
def test_numbers_drawn_for_several_batches_are_those_that_each_would_draw(
    samples: int, batch_size: int, world_size: int, shuffle: bool
) -> None:
    drawn: list[SampleRandom] = []

    def augment(inputs: Tensor, sample_random: SampleRandom) -> Tensor:
        drawn.append(sample_random)
        return inputs

    source = TensorSource(torch.zeros(samples), torch.zeros(samples), augment=augment)
    batches = Batches(source, batch_size=batch_size, order=Shuffled(samples, 7) if shuffle else None, seed=7)
    batches.divide(world_size - 1, world_size)
    for batch_range in itertools.islice(batches.ranges(), 5, len(batches) + 3):
        next(batches.load([batch_range]))
    for sample_random in drawn[::-1]:  # in any order
        alone = SampleRandom(sample_random.indices, sample_random.key)
        assert torch.equal(alone.uniform(2), sample_random.uniform(2).clone())
        assert torch.equal(alone.integers(0, 9), sample_random.integers(0, 9))


def test_numbers_that_were_changed_in_place_do_not_come_again() -> None:
    def augment(inputs: Tensor, sample_random: SampleRandom) -> Tensor:
        return inputs + sample_random.uniform()[0].mul_(2)

    batches = Batches(TensorSource(torch.zeros(8), torch.zeros(8), augment=augment), batch_size=4)
    first, again = passes(batches, 1), passes(batches, 1)
    assert equal(first, again)


def test_numbers_for_a_device_without_float64_stay_below_1(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = torch.tensor([[1 - 2.0**-53]], dtype=torch.float64)
    random = SampleRandom(torch.arange(1), (0, "sample", 0), lambda call, draws: largest)
    random.device = torch.device("mps")
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_, **__: self)  # it is not there
    numbers = random.uniform()
    assert numbers.dtype == torch.float32
    assert float(numbers) < 1
    assert int(random.integers(0, 5)) == 4


def test_crop_shifts_and_flip_mirrors() -> None:
    images = torch.arange(1, 1 + 2 * 3 * 6 * 6, dtype=torch.uint8).reshape(2, 6, 6, 3)
    draws = SampleRandom(torch.tensor([4, 7]), (0, "sample", 0))
    cropped = random_crop(images, 2, draws)
    padded = torch.nn.functional.pad(images, (0, 0, 2, 2, 2, 2))
    places = [
        [(i, j) for i in range(5) for j in range(5) if torch.equal(padded[n, i : i + 6, j : j + 6], cropped[n])]
        for n in range(2)
    ]
    assert all(places), "a cropped image is not a part of the padded one"
    many = SampleRandom(torch.arange(1000), (0, "sample", 0))
    pairs = torch.tensor([0, 1], dtype=torch.uint8).view(1, 1, 2, 1).repeat(1000, 1, 1, 1)
    mirrored = random_flip(pairs, many)
    assert 0.4 < mirrored[:, 0, 0, 0].float().mean() < 0.6


def test_random_numbers_are_even() -> None:
    draws = SampleRandom(torch.arange(20_000), (0, "sample", 0))
    first, second = draws.uniform(), draws.uniform(2)
    for numbers_drawn in (first[0], second[0], second[1]):
        counts = torch.histc(numbers_drawn, bins=10, min=0, max=1)
        assert (counts - 2000).abs().max() < 250
    correlation = torch.corrcoef(torch.stack([first[0], second[0], second[1]]))
    assert (correlation - torch.eye(3)).abs().max() < 0.03
    assert torch.bincount(draws.integers(0, 9)[0], minlength=9).min() > 2000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Got pickle error")
@pytest.mark.parametrize(
    ("transform", "says"), [(lambda inputs: inputs + 1, "lambda"), (partial(divmod, threading.Lock()), "lock")]
)
def test_what_cannot_be_sent_to_a_worker_process_is_told(transform: Any, says: str) -> None:
    before = torch.multiprocessing.get_start_method()
    torch.multiprocessing.set_start_method("spawn", force=True)
    try:
        source = TensorSource(torch.zeros(8), torch.zeros(8), transform=transform)
        with pytest.raises(DataError, match=rf'{says}.*\n.*"spawn".*define it at the top level of its file'):
            next(Batches(source, batch_size=4, num_workers=1).one_pass())
    finally:
        torch.multiprocessing.set_start_method(before, force=True)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked by default")
@pytest.mark.parametrize(
    ("start", "error"),
    [
        ("os.fork", BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")),
        ("threading.Thread.start", RuntimeError("can't start new thread")),
    ],
)
def test_a_worker_that_cannot_be_started_is_told(monkeypatch: pytest.MonkeyPatch, start: str, error: Exception) -> None:
    monkeypatch.setattr(start, Mock(side_effect=error))
    samples: Any = [1, 2]
    for loaded in (
        Batches(SampleSource(samples), batch_size=2, num_workers=1).one_pass(),
        read_once(str, samples, 1, 1),
    ):
        with pytest.raises(UserError, match=f"cannot be started: {error.args[-1]}; set .*num_workers"):
            next(loaded)


def test_other_errors_are_not_taken_for_those_of_worker_processes() -> None:
    for explained in (naming_dead_worker, starting_workers):
        for error in (RuntimeError("other"), OSError("of the user's code")):
            with pytest.raises(type(error), match=str(error)), explained():
                raise error


@pytest.mark.slow
def test_an_error_in_the_order_of_samples_is_not_taken_for_one_of_sending() -> None:
    def requests() -> Iterator[Any]:
        raise TypeError("other")
        yield

    with pytest.raises(TypeError, match="other"):
        Workers(as_source([1, 2]), 1, 0, repeats=False).load(requests())  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked by default")
@pytest.mark.parametrize(
    ("methods", "chosen", "expected"),
    [
        (["forkserver", "spawn", "fork"], None, "fork"),  # Python 3.14
        (["forkserver", "spawn", "fork"], "forkserver", "fork"),  # as if asked for, once a lock was made
        (["forkserver", "spawn", "fork"], "spawn", None),
        (["fork", "spawn", "forkserver"], None, "fork"),  # before
        (["fork", "spawn", "forkserver"], "forkserver", None),
    ],
)
def test_workers_are_forked_unless_the_program_has_another_way(
    monkeypatch: pytest.MonkeyPatch, methods: list[str], chosen: str | None, expected: str | None
) -> None:
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: methods)
    monkeypatch.setattr("multiprocessing.get_start_method", lambda allow_none=False: chosen)
    assert start_method(2) == expected
    assert start_method(0) is None  # else DataLoader raises ValueError


def test_a_batch_of_arrays_is_the_same_with_workers() -> None:
    source = SampleSource(Arrays(), stacked)
    here, there = (passes(Batches(source, batch_size=4, num_workers=count), 1) for count in (0, 1))
    for one, other in zip(here, there, strict=True):
        assert isinstance(one, np.ndarray)
        assert isinstance(other, np.ndarray)
        assert (one == other).all()


def test_batches_of_data_in_memory_are_views_only_where_they_are_aligned() -> None:
    """The last bits of a matrix product depend on the address, and a worker process sends an aligned copy."""
    for width, viewed in ((16, True), (37, False)):
        source = TensorSource(torch.randn(12, width), torch.zeros(12, dtype=torch.int64))
        for start in (4, 8):
            inputs, _ = source.batch(slice(start, start + 4), SampleRandom(torch.arange(4), (0, "sample", 0)))
            assert inputs.data_ptr() % 64 == 0
            assert inputs.equal(cast("Tensor", source.inputs)[start : start + 4])
            shared = inputs.data_ptr() == cast("Tensor", source.inputs)[start:].data_ptr()
            assert shared is viewed
