"""Streams: data that can only be read on, with a state of their own or without one."""

import gc
import itertools
import multiprocessing
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

import train
from base.base_data_loader import BaseDataLoader
from base.data import Source, StreamSource
from base.data.stream import StreamBatches
from tests.conftest import load_script
from tests.helpers import Fit, equal, fork, needs_extra, state, temporarily
from trainer.trainer import Trainer
from utils.errors import CheckpointError, DataError, UserError
from utils.random import SEEDERS, generator_states, seed_generators
from utils.registry import DATA_LOADERS, TRAINERS
from utils.tree import same

pytestmark = pytest.mark.slow

OFTEN = ("trainer.epochs=3", "trainer.steps_per_epoch=5", "trainer.save_every_steps=3", "trainer.keep_last=null")


class Lines:
    """37 samples, with noise from the global generators, in another order in each pass."""

    def __init__(self) -> None:
        self.epoch = 0
        self.read = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        return self.lines(0)

    def lines(self, start: int) -> Iterator[Any]:
        for index in range(start, 37):
            self.read += 1
            number = (index * 5 + self.epoch) % 37
            self.index = index + 1
            yield torch.full((6,), number / 37) + torch.rand(6), number % 3


class ResumableLines(Lines):
    """The same with a state, which tells the position of the last iterator."""

    start = index = 0

    def __iter__(self) -> Iterator[Any]:
        self.index = self.start
        return self.lines(self.start)

    def state_dict(self) -> dict[str, Any]:
        return {"index": self.index}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = self.index = state["index"]


class EpochLines(ResumableLines):
    """The same with a state that also holds the number of the pass, which begins with ``set_epoch``."""

    def set_epoch(self, epoch: int) -> None:
        self.epoch, self.start = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        return {"index": self.index, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.epoch = state["epoch"]


class LateLines(ResumableLines):
    """The same with a state that, like Hugging Face's, is that of the last sample read until it is iterated again."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = state["index"]


def noisy(sample: Any) -> Any:
    return sample[0] + torch.rand(6) / 10, sample[1]


class Stream(BaseDataLoader):
    """A stream for training, and for validation one of 12 samples."""

    made: Any = Lines

    def training_data(self, *, augment: bool) -> Source | Dataset[Any]:
        self.lines = type(self).made()
        return StreamSource(self.lines, transform=noisy if augment else None)

    def validation_data(self) -> Source:
        return StreamSource(Lines(), length=12)

    def test_data(self) -> Source:
        return StreamSource(Lines(), length=12)


class ResumableStream(Stream):
    made = ResumableLines


def data(kind: str, **args: Any) -> dict[str, Any]:
    return {"type": kind, "args": {"batch_size": 8, **args}}


@pytest.mark.parametrize(("workers", "resumed_with"), [(0, 0), (1, 0), (2, 2), (0, 2)])
@pytest.mark.parametrize("kind", ["Stream", "ResumableStream"])
def test_a_run_resumes_exactly(
    fit: Fit, kind: str, workers: int, resumed_with: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with temporarily(DATA_LOADERS, Stream, ResumableStream):
        whole = fit(*OFTEN, data_loader=data(kind, num_workers=workers))
        half = fork(whole.run_dir, 9)  # in the second pass over the samples, and in mid-epoch
        capsys.readouterr()
        train.main(["-r", str(half), f"data_loader.args.num_workers={resumed_with}"])
    equal(whole.run_dir, half)
    reported = "72 samples of the stream again" in capsys.readouterr().out
    assert reported == (kind == "Stream"), "the cost of reading forward is reported where there is one"
    assert state(half, "step-00000009.pth")["data"]["stream"] == (
        None if kind == "Stream" else {"position": 72, "passes": 1, "state": {"index": 35}}
    )


def batches_of(samples: Any, rank: int = 0, world_size: int = 1, **args: Any) -> StreamBatches:
    made = StreamBatches(StreamSource(samples, transform=noisy), batch_size=8, seed=3, **args)
    made.divide(rank, world_size)
    return made


def take(batches: StreamBatches, start: int, stop: int) -> list[Any]:
    """The data of some batches, as training takes them."""
    ranges = list(itertools.islice(batches.ranges(), start, stop))
    steps = batches.load_steps([[batch_range] for batch_range in ranges])
    return [micro_batch.data for step in steps for micro_batch in step.micro_batches]


def test_a_state_saves_reading_again() -> None:
    first = batches_of(ResumableLines())
    expected = take(first, 0, 10)
    for rank, world_size in ((0, 1), (0, 2), (1, 2)):
        lines = ResumableLines()
        resumed = batches_of(lines, rank, world_size)
        part = batches_of(ResumableLines(), 0, 2)
        take(part, 0, 6)
        assert part.state_dict() == {"position": 44, "passes": 1, "state": {"index": 7}}, "the first half of the batch"
        resumed.load_state_dict(part.state_dict())
        found = take(resumed, 6, 10)
        twice = 2  # the first sample, to see which generators it is drawn from
        assert lines.read - twice == 36 - (4 if (rank, world_size) == (0, 2) else 0), "from sample 44 to the end"
        for whole, own in zip(expected[6:], found, strict=True):
            size = 8 // world_size
            assert torch.equal(whole[0][rank * size : (rank + 1) * size], own[0])
            assert torch.equal(whole[1][rank * size : (rank + 1) * size], own[1])


def test_a_stream_that_lost_its_state_reads_up_to_its_position_again() -> None:
    """As with an older version of the library that it comes from."""
    whole, resumed = batches_of(ResumableLines()), batches_of(Lines())
    take(whole, 0, 6)
    resumed.load_state_dict(whole.state_dict())
    assert resumed.state_dict() is None
    for one, other in zip(take(whole, 6, 10), take(resumed, 6, 10), strict=True):
        assert torch.equal(one[0], other[0])


@pytest.mark.parametrize("steps", [2, 4, 6, 10])
def test_a_state_may_hold_the_number_of_the_pass(steps: int) -> None:
    expected = take(batches_of(Lines()), 0, 14)  # three passes, each in its own order
    whole, resumed = batches_of(EpochLines()), batches_of(EpochLines())
    found = take(whole, 0, steps)
    resumed.load_state_dict(whole.state_dict())
    found += take(resumed, steps, 14)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_state_is_that_of_the_step_however_far_workers_read(workers: int) -> None:
    batches = batches_of(ResumableLines(), num_workers=workers)
    next(batches.load(itertools.islice(batches.ranges(), 4)))  # looking at the first batch is not training
    assert batches.state_dict() is None
    steps = batches.load_steps([[batch_range] for batch_range in itertools.islice(batches.ranges(), 9)])
    for number, step in enumerate(steps, start=1):
        list(step.micro_batches)
        saved = batches.state_dict()
        assert saved is not None
        assert saved["position"] == 8 * number
    batches.close()


def test_an_iterable_data_set_of_torch_is_a_stream() -> None:
    class Numbers(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Tensor]:
            return map(torch.tensor, range(10))

    class Loader(Stream):
        def training_data(self, *, augment: bool) -> Dataset[Any]:
            return Numbers()

    batches = Loader(batch_size=4).training(seed=0)
    loaded = [micro_batch.data.tolist() for micro_batch in itertools.islice(batches.one_pass(), 3)]
    assert loaded == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]
    with pytest.raises(DataError, match=r"Numbers is an IterableDataset, .* set num_workers to 1 or 0"):
        Loader(batch_size=4, num_workers=2).training(seed=0)


@needs_extra("check")
def test_check_and_test_take_a_stream(
    fit: Fit, write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with temporarily(DATA_LOADERS, Stream):
        run = fit(*OFTEN, "trainer.tensorboard=true", "trainer.pictures_every=1", data_loader=data("Stream")).run_dir
        assert "data      Stream, a stream for training, 12 for validation" in capsys.readouterr().out
        load_script("test").main(["-r", str(run)])
        assert "on 12 test samples" in capsys.readouterr().out
        path = write_config(data_loader=data("Stream"))
        status = train.main(["--check", "-c", str(path), "trainer.steps_per_epoch=5", "model.args.hidden_features=50"])
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert "exactness" not in printed, "read again, the samples are the same"


class PartlySaved(ResumableLines):
    """Its state lacks the samples in its buffer."""

    def __iter__(self) -> Iterator[Any]:
        buffer, lines = list[Any](), super().__iter__()
        for line in lines:
            buffer.append(line)
            if len(buffer) == 5:
                yield buffer.pop(random.randrange(5))
        yield from buffer


class PartlySavedStream(Stream):
    made = PartlySaved


class ShuffledByTime(Lines):
    """In another order each time that it is read."""

    reads = itertools.count()

    def __iter__(self) -> Iterator[Any]:
        lines = list(super().__iter__())
        yield from random.Random(next(self.reads)).sample(lines, len(lines))


class ShuffledByTimeStream(Stream):
    made = ShuffledByTime


LACKING = "a stream continues from its state with other samples"
DIFFERS = "the same samples, loaded twice with the same seed, differ"


@needs_extra("check")
@pytest.mark.parametrize(
    ("kind", "noted"),
    [(PartlySavedStream, LACKING), (ShuffledByTimeStream, DIFFERS), (ResumableStream, ""), (Stream, "")],
)
def test_check_finds_a_stream_that_cannot_be_resumed_exactly(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str], kind: type[Stream], noted: str
) -> None:
    with temporarily(DATA_LOADERS, kind):
        train.main(["--check", "-c", str(write_config(data_loader=data(kind.__name__))), "trainer.steps_per_epoch=5"])
    printed = capsys.readouterr().out
    assert "".join(note for note in (LACKING, DIFFERS) if note in printed) == noted


def test_an_epoch_needs_a_length(fit: Fit) -> None:
    with temporarily(DATA_LOADERS, Stream), pytest.raises(UserError) as caught:
        fit(data_loader=data("Stream"))
    assert "trainer.steps_per_epoch: a stream of unknown length needs trainer.steps_per_epoch" in str(caught.value)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"validation_split": 5}, "is a stream, .* leave validation_split out.* define validation_data"),
        ({"folds": 5, "fold": 0, "balanced": True}, "is a stream, which has no indices; leave folds, balanced out"),
    ],
)
def test_what_needs_an_index_is_refused(fit: Fit, args: dict[str, Any], says: str) -> None:
    with temporarily(DATA_LOADERS, Stream), pytest.raises(UserError, match=says):
        fit(*OFTEN, data_loader=data("Stream", **args))
    assert Stream(batch_size=8, **args).facts() == {}


class Collating(Stream):
    def collate(self, samples: list[Any]) -> Any:
        return len(samples)


def test_the_arguments_reach_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Collating(batch_size=4, eval_batch_size=3, num_workers=1)
    training, validation = loader.training(seed=7), loader.validation()
    assert isinstance(training, StreamBatches)
    assert isinstance(validation, StreamBatches)
    assert (training.seed, training.num_workers, training.source.collate) == (7, 1, loader.collate)
    assert (validation.batch_size, validation.num_workers) == (3, 1)
    monkeypatch.setattr(loader, "training_data", lambda augment: StreamSource(Lines(), collate=scaled))
    assert loader.training(seed=7).source.collate is scaled  # type: ignore[attr-defined]


class WeightedStream(Stream):
    def sample_weights(self) -> Tensor | None:
        return None  # in the first epoch


def test_weights_are_refused_before_a_later_epoch_has_them(fit: Fit) -> None:
    with temporarily(DATA_LOADERS, WeightedStream), pytest.raises(UserError, match=r"leave sample_weights\(\) out"):
        fit(*OFTEN, data_loader=data("WeightedStream"))


@pytest.mark.parametrize(("there", "says"), [(0, "0 samples"), (1, "1 sample"), (3, "3 samples")])
def test_no_sample_of_a_validation_is_read_twice(there: int, says: str) -> None:
    """A stream that has fewer samples than its stated length would begin again."""
    batches = StreamBatches(StreamSource([torch.zeros(2)] * there, length=4), batch_size=2)
    for _ in range(2):
        with pytest.raises(DataError, match=rf"^StreamSource: list ended after {says}; length is 4"):
            list(batches.one_pass())
    whole = StreamBatches(StreamSource([torch.zeros(2)] * 4, length=4), batch_size=2)
    assert [len(list(whole.one_pass())) for _ in range(2)] == [2, 2]


class NoValidation(Stream):
    """Its validation stream has fewer samples than its length says."""

    there = 0

    def validation_data(self) -> StreamSource:
        return StreamSource([(torch.zeros(6), 0)] * self.there, length=20)


class Short(NoValidation):
    there = 3


@pytest.mark.parametrize("workers", [0, 1])
def test_a_validation_stream_without_samples_is_found_before_the_first_step(
    fit: Fit, tmp_path: Path, workers: int
) -> None:
    with (
        temporarily(DATA_LOADERS, NoValidation),
        pytest.raises(DataError, match="StreamSource: list ended after 0 samples; length is 20"),
    ):
        fit(*OFTEN, data_loader=data("NoValidation", num_workers=workers))
    assert not list(tmp_path.rglob("*.pth"))


def test_an_epoch_is_saved_before_a_validation_stream_ends_too_early(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with temporarily(DATA_LOADERS, Short), pytest.raises(DataError, match="ended after 3 samples; length is 20"):
        fit(*OFTEN, data_loader=data("Short"))
    assert "step 5 is saved; -r starts with the validation after it" in capsys.readouterr().err
    assert list(tmp_path.rglob("step-00000005.pth"))


@pytest.mark.parametrize("kind", [Lines, ResumableLines, EpochLines, LateLines])
def test_the_first_sample_of_a_validation_can_be_looked_at(kind: type[Lines]) -> None:
    looked_at, as_it_is = (StreamSource(kind(), length=20) for _ in range(2))
    as_it_is._checked = True
    before = torch.get_rng_state()
    looked_at.check_first_sample((0, "sample", 0))
    assert torch.get_rng_state().equal(before)
    one, two = (list(StreamBatches(source, batch_size=8).one_pass()) for source in (looked_at, as_it_is))
    assert all(same(each.data, other.data) for each, other in zip(one, two, strict=True))


class Drawing:
    """37 samples that draw as a function says. opened: how often it was iterated."""

    def __init__(self, draw: Callable[[int], float], order: Callable[[], list[int]] = lambda: list(range(37))) -> None:
        self.draw, self.order = draw, order
        self.opened = 0

    def __iter__(self) -> Iterator[Tensor]:
        self.opened += 1
        order = self.order()  # drawn before the first sample is asked for
        return (torch.tensor([index, self.draw(index)], dtype=torch.float64) for index in order)


def now_and_then(index: int) -> float:
    draws: dict[int, Callable[[], float]] = {3: random.random, 9: np.random.rand, 21: lambda: float(torch.rand(()))}
    return draws.get(index, float)()


class DrawnEpoch(Drawing):
    """Its ``set_epoch`` draws the order of the pass."""

    def set_epoch(self, _: int) -> None:
        order = torch.randperm(37).tolist()
        self.order = lambda: order


def scaled(samples: list[Tensor]) -> Tensor:
    return torch.stack(samples) * random.random()


STREAMS: dict[str, tuple[Callable[[], StreamSource], set[str]]] = {
    "nothing": (lambda: StreamSource(Drawing(float)), set()),
    "one generator": (lambda: StreamSource(Drawing(lambda _: np.random.rand())), {"numpy"}),
    "now and then": (lambda: StreamSource(Drawing(now_and_then)), {"python", "numpy", "torch"}),
    "an order, at once": (lambda: StreamSource(Drawing(float, lambda: torch.randperm(37).tolist())), {"torch"}),
    "an order in set_epoch": (lambda: StreamSource(DrawnEpoch(float)), {"torch"}),
    "the collate function": (lambda: StreamSource(Drawing(float), collate=scaled), {"python"}),
    "the transform": (lambda: StreamSource(Drawing(float), transform=lambda row: row * torch.rand(())), {"torch"}),
}


def seeded(source: StreamSource) -> StreamSource:
    """All generators are seeded, whichever it draws from."""
    source.generators.names = [*SEEDERS]
    return source


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", STREAMS)
def test_whatever_a_stream_draws_from_it_resumes_exactly(kind: str, workers: int) -> None:
    """Though only what it draws from is seeded, and whatever the state of the generators is then."""
    make, drawn = STREAMS[kind]
    all_seeded = seeded(make())
    expected = take(StreamBatches(all_seeded, batch_size=8, seed=3), 0, 14)
    for start in (0, 6):
        seed_generators("other", start)
        source = make()
        batches = StreamBatches(source, batch_size=8, seed=3, num_workers=workers)
        found = take(batches, start, 14)
        batches.close()
        assert same(found, expected[start:])
        if not workers:
            assert set(source.generators.names) == drawn


def test_drawing_leaves_the_generators_of_the_model_alone() -> None:
    states = generator_states()
    take(StreamBatches(STREAMS["now and then"][0](), batch_size=8, seed=3), 0, 9)
    assert same(generator_states(), states)


class ClosedLines(Lines):
    """Keeps its position, which is the start again as soon as an iterator is closed."""

    index = 0

    def __iter__(self) -> Iterator[Any]:
        try:
            for index in range(self.index, 37):
                self.index = index + 1
                yield torch.full((6,), now_and_then(index)), index
        finally:
            self.index = 0

    def state_dict(self) -> dict[str, Any]:
        return {"index": self.index}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.index = state["index"]


def test_an_iterator_is_closed_before_the_next_is_opened() -> None:
    """When a generator is first drawn from, in the third batch, the stream is read again from where it was resumed."""
    whole, resumed = batches_of(ClosedLines()), batches_of(ClosedLines())
    take(whole, 0, 1)
    resumed.load_state_dict(whole.state_dict())
    rows = torch.cat([targets for _, targets in take(resumed, 1, 9)])
    assert rows.tolist() == [index % 37 for index in range(8, 72)]


class WithoutPosition(ResumableLines):
    def state_dict(self) -> Any:
        return None

    def load_state_dict(self, state: Any) -> None:
        pass


def test_a_state_that_is_none_is_not_taken_for_a_position() -> None:
    with pytest.raises(DataError, match=r"WithoutPosition.state_dict\(\) returned None; expected its position"):
        take(batches_of(WithoutPosition()), 0, 1)


@pytest.mark.parametrize("state", [5, {"position": 8}, {"position": 8.0, "passes": 0}])
def test_a_state_that_is_not_a_position_is_refused(state: Any) -> None:
    with pytest.raises(CheckpointError, match="no valid stream position"):
        batches_of(ResumableLines()).load_state_dict(state)


class Buffered(Drawing):
    """Shuffles in a buffer, which its state lacks."""

    index = start = 0

    def __iter__(self) -> Iterator[Tensor]:
        order, buffer = random.Random(0), list[int]()
        self.index = self.start
        while self.index < 37:
            buffer.append(self.index)
            self.index += 1
            if len(buffer) == 6:
                yield self.row(buffer.pop(order.randrange(6)))
        yield from map(self.row, buffer)

    def row(self, index: int) -> Tensor:
        return torch.tensor([index, self.draw(index)], dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        return {"index": self.index}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = self.index = state["index"]


def test_a_late_draw_loses_no_sample_of_a_buffer() -> None:
    sources = (StreamSource(Buffered(now_and_then)), seeded(StreamSource(Buffered(now_and_then))))
    found, expected = (take(StreamBatches(source, batch_size=4, seed=3), 0, 9) for source in sources)
    assert same(found, expected)


class WithGenerator(ResumableLines):
    """Its state also holds that of the generator from which it draws."""

    def state_dict(self) -> dict[str, Any]:
        return {"index": self.index, "generator": torch.get_rng_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        torch.set_rng_state(state["generator"])


def test_a_state_that_holds_a_generator_leaves_that_of_the_model_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    batches = batches_of(WithGenerator())
    take(batches, 0, 6)
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(2)
    others = batches_of(WithGenerator())
    take(others, 0, 6)
    assert same(batches.state_dict(), others.state_dict()), "nor does it depend on that of the model"


def unlucky(seed: int) -> Callable[[Tensor], Tensor]:
    """A transform that fails for sample 9 if the number that it then draws is small."""

    def transform(row: Tensor) -> Tensor:
        if row[0] == 9 and random.Random(seed + random.getrandbits(32)).random() < 0.5:
            raise ValueError("unlucky")
        return row

    return transform


def test_whether_a_sample_fails_does_not_depend_on_the_state_of_the_generators() -> None:
    """Though nothing is drawn for the samples before it, and the iterator has ended when it is noticed."""

    def read(seed: int, start: int, *, all_seeded: bool = False) -> str:
        source = StreamSource(Drawing(float), transform=unlucky(seed))
        source = seeded(source) if all_seeded else source
        random.seed(start)
        try:
            rows = torch.cat(take(StreamBatches(source, batch_size=8, seed=3), 0, 4))
        except DataError as error:
            return str(error).splitlines()[0]
        return str(rows[:, 0].tolist())

    for seed in range(4):
        expected = read(seed, 0, all_seeded=True)
        assert {read(seed, start) for start in range(6)} == {expected}


def test_samples_of_different_shapes_are_named() -> None:
    batches = StreamBatches(StreamSource([torch.zeros(1), torch.zeros(2)]), batch_size=2)
    with pytest.raises(DataError, match="list: samples 0, 1 cannot be made into a batch"):
        next(batches.one_pass())


def test_an_error_names_the_sample_whose_transform_fails() -> None:
    def fail(row: Tensor) -> Tensor:
        if row[0] == 9:
            raise ValueError("broken")
        return row

    with pytest.raises(DataError, match="sample 9 cannot be read: ValueError: broken"):
        take(StreamBatches(StreamSource(Drawing(float), transform=fail), batch_size=8), 0, 2)


def test_a_first_sample_that_cannot_be_read_any_more_does_not_matter_to_a_resumed_run() -> None:
    def draw(index: int) -> float:
        if broken and index == 0:
            raise OSError("gone")
        return float(torch.rand(()))

    broken = False
    lines = Drawing(draw)
    lines.state_dict = lambda: {"opened": 1}  # type: ignore[attr-defined]
    lines.load_state_dict = lambda state: None  # type: ignore[attr-defined]
    whole = StreamBatches(StreamSource(lines), batch_size=8, seed=3)
    expected = take(whole, 0, 3)
    broken = True
    lines.order = lambda: list(range(16, 37))
    resumed = StreamBatches(StreamSource(lines), batch_size=8, seed=3)
    resumed.load_state_dict({"position": 16, "passes": 0, "state": {"opened": 1}})
    assert same(take(resumed, 2, 3), expected[2:])
    lines.order = lambda: list(range(37))
    with pytest.raises(DataError, match="sample 0 cannot be read: OSError: gone"):
        take(StreamBatches(StreamSource(lines), batch_size=8), 0, 1)


class Scheduled(Trainer):
    def begin_epoch(self, epoch: int) -> None:
        self.weight = epoch


@pytest.mark.parametrize("trainer", ["Trainer", "Scheduled"])
def test_a_trainer_with_begin_epoch_reads_a_stream_once(fit: Fit, tmp_path: Path, trainer: str) -> None:
    class Counted(Lines):
        def lines(self, start: int) -> Iterator[Any]:
            for sample in super().lines(start):
                with (tmp_path / "read").open("a") as file:
                    file.write("1")
                yield sample

    class CountedStream(Stream):
        made = Counted

    options = (f"trainer.type={trainer}", "trainer.epochs=3", "trainer.steps_per_epoch=2")
    with temporarily(DATA_LOADERS, CountedStream), temporarily(TRAINERS, Scheduled):
        fit(*options, data_loader=data("CountedStream", num_workers=1))
    assert len((tmp_path / "read").read_text()) < 48 + 3 * 8 + 2 * 4, "six batches, those read ahead, and the trial"


def test_with_workers_the_main_process_reads_no_sample(fit: Fit, tmp_path: Path) -> None:
    """A file that it opened, workers would share, and each would move the others' position."""

    class Noted(Lines):
        def lines(self, start: int) -> Iterator[Any]:
            with (tmp_path / "read").open("a") as file:
                file.write(f"{os.getpid()}\n")
            yield from super().lines(start)

    class NotedStream(Stream):
        made = Noted

        def validation_data(self) -> Source:
            return StreamSource(Noted(), length=12)

    with temporarily(DATA_LOADERS, NotedStream):
        fit("trainer.epochs=1", "trainer.steps_per_epoch=2", data_loader=data("NotedStream", num_workers=2))
    assert str(os.getpid()) not in (tmp_path / "read").read_text().split()


def test_how_often_a_stream_is_opened() -> None:
    opened = []
    for draw in (float, lambda _: random.random()):
        lines = Drawing(draw)
        take(StreamBatches(StreamSource(lines), batch_size=8), 0, 4)
        opened.append(lines.opened)
    assert opened == [2, 3]


class Noise:
    """Keeps a generator as an attribute of some name."""

    def __init__(self, name: str) -> None:
        self.name = name
        setattr(self, name, random.Random())

    def __call__(self, sample: int) -> Tensor:
        return Tensor([sample + getattr(self, self.name).random()])


@pytest.mark.parametrize("workers", [0, 1])
def test_generators_of_a_transform_that_an_epoch_replaces_are_found(workers: int) -> None:
    whole, resumed = (
        StreamBatches(StreamSource(range(37), transform=Noise(name)), batch_size=8, seed=4, num_workers=workers)
        for name in ("first", "second")
    )
    take(whole, 0, 3)
    whole.source.transform = Noise("second")
    whole.close()
    assert same(take(whole, 3, 6), take(resumed, 3, 6))
    whole.close()
    resumed.close()


def test_streams_that_cannot_be_are_refused() -> None:
    before = {*multiprocessing.active_children()}  # other tests may have left some
    with pytest.raises(DataError, match="a generator can be read only once"):
        StreamSource(number for number in range(3))
    for workers in (0, 1):  # and no traceback of a worker in the message
        with pytest.raises(DataError, match=r"^StreamSource: list has no samples$"):
            take(StreamBatches(StreamSource([]), batch_size=2, num_workers=workers), 0, 1)

    gc.collect()
    assert {*multiprocessing.active_children()} <= before, "a worker waits for requests that never come"

    class Endless(Stream):
        def validation_data(self) -> Source:
            return StreamSource(Lines())

        def training_data(self, *, augment: bool) -> Source:
            return StreamSource(Lines(), length=3)

    with pytest.raises(DataError, match="needs a length: the number of samples"):
        Endless(batch_size=4).validation()
    with pytest.raises(DataError, match="a stream for training must not have a length"):
        Endless(batch_size=4).training(0)
