"""Orders of the samples in a pass: weighted, balanced, by length; each a function of (seed, pass)."""

import itertools
import shutil
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import train
from base.data import Batches, Position, SampleRandom, Source, TensorSource
from base.data.orders import Bucketed, Order, Shuffled, Weighted, number_repeats, sample_numbers
from base.data.sample_source import as_source
from base.experiment import Experiment
from base.metric import StepResult
from data_loader.random_tensor import RandomTensorLoader
from tests.helpers import Fit, equal, fork, lines, temporarily
from trainer.trainer import Trainer
from utils.distributed.process_group import ProcessGroup, T
from utils.errors import CheckpointError, DataError, UserError
from utils.registry import DATA_LOADERS, TRAINERS
from utils.schema import TrainerConfig


def jitter(inputs: Tensor, draws: SampleRandom) -> Tensor:
    return inputs + draws.uniform()[0].float()[:, None]


class Uneven(RandomTensorLoader):
    """A loader with augmentation and, as ``hook`` says, with weights or lengths."""

    hook = ""
    weights: Any = None

    def training_data(self, *, augment: bool) -> TensorSource:
        source = super().training_data(augment=augment)
        source.augment = jitter if augment else None
        return source

    def sample_weights(self) -> Tensor | None:
        if self.weights is not None:
            return self.weights  # type: ignore[no-any-return]
        return torch.arange(50.0) if self.hook == "weights" else None

    def lengths(self) -> Tensor | None:
        return torch.arange(50) % 7 if self.hook == "lengths" else None


class UnevenWeights(Uneven):
    hook = "weights"


class UnevenLengths(Uneven):
    hook = "lengths"


RESUMED = [("Uneven", {"balanced": True}), ("UnevenWeights", {"drop_last": True}), ("UnevenLengths", {})]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("loader", "args"), RESUMED, ids=[loader for loader, _ in RESUMED])
def test_a_run_resumes_exactly_in_mid_epoch(fit: Fit, loader: str, args: dict[str, Any], workers: int) -> None:
    sizes = {"num_samples": 50, "input_shape": [6], "num_classes": 3, "batch_size": 8, "validation_split": 10}
    with temporarily(DATA_LOADERS, Uneven, UnevenWeights, UnevenLengths):
        data = {"type": loader, "args": {**sizes, **args, "num_workers": workers}}
        whole = fit("trainer.epochs=3", "trainer.save_every_steps=3", "trainer.keep_last=null", data_loader=data)
        half = fork(whole.run_dir, 6)  # in the second epoch
        train.main(["-r", str(half), f"data_loader.args.num_workers={2 - workers}"])
    equal(whole.run_dir, half)


def seen(batches: Batches, passes: int = 1) -> list[int]:
    """The samples of some passes: TensorSource's targets are their indices."""
    ranges = itertools.islice(batches.ranges(), passes * len(batches))
    return torch.cat([micro_batch.data[1] for micro_batch in batches.load(ranges)]).tolist()


def indexed(count: int) -> TensorSource:
    return TensorSource(torch.zeros(count, 1), torch.arange(count), augment=jitter)


def test_samples_are_drawn_in_proportion_to_their_weights() -> None:
    weights = torch.tensor([0.0, 1.0, 2.0, 0.0, 5.0, 0.0]).repeat(100)
    loader = SimpleNamespace(sample_weights=lambda: weights.clone().requires_grad_())
    order = Weighted(lambda: cast("Tensor", sample_numbers(loader, "sample_weights", 600)), seed=1)
    drawn = torch.cat([order(passes) for passes in range(50)])
    counts = torch.bincount(drawn % 6, minlength=6)
    assert counts[weights[:6] == 0].sum() == 0
    torch.testing.assert_close(counts / counts.sum(), weights[:6] / 8, atol=0.01, rtol=0)
    assert torch.equal(order(3), order(3))
    assert not torch.equal(order(3), order(4))
    assert (order(3).diff() < 0).any(), "the samples are in the order of their numbers"


def test_balanced_draws_each_class_equally_often() -> None:
    loader = Uneven(batch_size=10, num_samples=4000, input_shape=[1], num_classes=4, balanced=True, validation_split=99)
    source = loader.training_data(augment=True)
    targets = (torch.arange(4000) % 100 < 3).long() + (torch.arange(4000) % 100 < 1).long()  # 97, 2 and 1 %
    source.targets = targets
    loader.training_data = lambda **_: source  # type: ignore[method-assign]
    batches = loader.training(seed=0)
    drawn = torch.tensor(list(itertools.chain(*(micro.data[1].tolist() for micro in batches.one_pass()))))
    assert len(drawn) == 3901
    assert (torch.bincount(drawn) / len(drawn) - 1 / 3).abs().max() < 0.03


class Jittered(Dataset[Any]):
    """As ``indexed``, sample by sample."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(1), index


@pytest.mark.parametrize("source", [indexed(6), as_source(Jittered())], ids=["batches", "samples"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_is_drawn_twice_is_augmented_in_two_ways(source: Source, workers: int) -> None:
    order = Weighted(lambda: torch.tensor([1.0, 0, 0, 0, 0, 1], dtype=torch.float64), seed=0)
    batches = Batches(source, batch_size=4, order=order, num_workers=workers)
    batches_of_pass = list(batches.one_pass())
    inputs = torch.cat([micro_batch.data[0][:, 0] for micro_batch in batches_of_pass])
    assert len(set(inputs.tolist())) == 6, "the same augmentation twice in a pass"
    assert set(seen(batches)) == {0, 5}
    plain = Batches(source, batch_size=6)
    first = batches_of_pass[0].data
    assert first[0][0] in next(plain.one_pass()).data[0], "the first draw has the numbers of the sample's index"


@pytest.mark.parametrize(
    "change",
    [{"epoch": 3}, {"epoch": torch.ones(6)}, {"epoch": torch.ones(5).double()}],
)
def test_a_state_that_is_not_of_these_weights_is_refused(change: dict[str, Any]) -> None:
    order = Weighted(torch.arange(6.0).double, seed=0)
    order.load_state_dict(order.state_dict() | {"epoch": torch.ones(6).double()})
    assert len({*order(0).tolist()}) > 1
    with pytest.raises(CheckpointError, match="no valid weights of samples"):
        order.load_state_dict(order.state_dict() | change)


class TwoProcesses(ProcessGroup):
    """This one, and another one with what the last call to ``all_gather`` had."""

    world_size = 2
    other: Any = None

    def all_gather(self, value: T) -> list[T]:
        values = [value, self.other or value]
        self.other = value
        return values


def test_processes_with_different_weights_are_refused() -> None:
    weights = torch.arange(6.0).double()
    batches = Batches(indexed(6), batch_size=2, order=Weighted(weights.clone, seed=0))
    processes = TwoProcesses()
    for _ in range(2):
        batches.begin_epoch(processes)
    weights[0] = 1
    with pytest.raises(
        UserError,
        match=r"process 0 and process 1 differ in their sample_weights\(\); compute them from the samples",
    ):
        batches.begin_epoch(processes)


@pytest.mark.parametrize("index_device", [None, torch.device("cpu")], ids=["in each step", "for the pass at once"])
def test_an_epoch_that_begins_in_the_middle_of_a_pass_draws_the_rest_by_its_own_weights(
    index_device: torch.device | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TensorSource, "index_device", index_device)
    weights = torch.tensor([1.0, 0, 0, 0, 0, 0]).double()
    batches = Batches(indexed(6), batch_size=2, order=Weighted(weights.clone, seed=0))
    first, second = batches.ranges(), batches.ranges(Position(0, 2))
    assert next(batches.load(first)).data[1].tolist() == [0, 0]
    weights[:2] = torch.tensor([0.0, 1.0])
    assert next(batches.load(second)).data[1].tolist() == [0, 0], "the weights are asked for once an epoch"
    batches.begin_epoch(ProcessGroup())
    assert next(batches.load(batches.ranges(Position(0, 4)))).data[1].tolist() == [1, 1]


def test_other_weights_do_not_augment_by_the_numbers_of_the_samples_before() -> None:
    weights = torch.tensor([1.0, 0, 0, 0, 0, 0]).double()
    batches, resumed = (Batches(indexed(6), batch_size=2, order=Weighted(weights.clone, seed=0)) for _ in range(2))
    next(batches.load(batches.ranges()))
    weights[:2] = torch.tensor([0.0, 1.0])
    for each in (batches, resumed):
        each.begin_epoch(ProcessGroup())
    one, other = (next(each.load(each.ranges(Position(0, 2)))).data for each in (batches, resumed))
    assert one[1].tolist() == [1, 1]
    assert torch.equal(one[0], other[0])


def test_draws_are_numbered() -> None:
    assert number_repeats(torch.tensor([3, 0, 3, 3, 1, 0]), 10).tolist() == [3, 0, 13, 23, 1, 10]


@pytest.mark.parametrize(
    "order", [Weighted(torch.arange(23.0).double, 3), Bucketed(Shuffled(23, 3), torch.arange(23) % 5, 4, 3)]
)
def test_each_process_takes_its_part_of_the_same_order(order: Order) -> None:
    alone = Batches(indexed(23), batch_size=4, order=order, seed=3)
    parts = [Batches(indexed(23), batch_size=4, order=order, seed=3) for _ in range(2)]
    for rank, part in enumerate(parts):
        part.divide(rank, 2)
    for whole, one, two in zip(alone.one_pass(), parts[0].one_pass(), parts[1].one_pass(), strict=True):
        for index in (0, 1):
            assert torch.equal(whole.data[index], torch.cat([one.data[index], two.data[index]]))


@pytest.mark.parametrize(("count", "batch_size"), [(1000, 8), (1003, 8), (40, 8), (5, 8), (8, 8), (1, 1)])
def test_batches_hold_samples_of_similar_length(count: int, batch_size: int) -> None:
    lengths = torch.randint(1, 500, (count,), generator=torch.Generator().manual_seed(0))
    order = Bucketed(Shuffled(count, 3), lengths, batch_size, seed=3)
    batches = Batches(indexed(count), batch_size=batch_size, order=order, seed=3)
    first, second = seen(batches), seen(batches, 2)[count:]
    assert sorted(first) == sorted(second) == list(range(count)), "every sample once a pass"
    assert first != second or count <= 8
    if count < 1000:
        return
    chunks = [lengths[torch.tensor(first[at : at + batch_size])] for at in range(0, count, batch_size)]
    spread = [int(chunk.max() - chunk.min()) for chunk in chunks]
    assert sum(spread) / len(spread) < 40, "a batch of any samples spreads over 400"
    means = torch.tensor([float(chunk.float().mean()) for chunk in chunks])
    assert (means.diff() > 0).any()
    assert (means.diff() < 0).any(), "the batches are in the order of their length"


def test_every_length_may_be_left_out_by_drop_last() -> None:
    order = Bucketed(Shuffled(20, 0), torch.arange(20), 8, seed=0)
    left_out = {int(index) for passes in range(60) for index in order(passes)[16:]}
    assert min(left_out) < 4
    assert max(left_out) > 15


WRONG: dict[str, tuple[Any, str]] = {
    "negative": ([-1.0, *[1.0] * 49], r"Uneven.sample_weights\(\) returned -1.0 for sample 0"),
    "nan": ([*[1.0] * 49, float("nan")], r"returned nan for sample 49"),
    "infinite": ([*[1.0] * 49, float("inf")], r"returned inf for sample 49; expected a finite number >= 0"),
    "zero": ([0.0] * 50, "adds up to 0 in training: none can be drawn"),
    "too large": (torch.full((50,), 1e308, dtype=torch.float64), "adds up to inf in training"),
    "text": ("hard", r"sample_weights\(\) returned type str; expected one number per training sample"),
    "ragged": ([[1.0], [1.0, 1.0]], "returned type list; expected one number per training sample"),
    "objects": ([print] * 50, "returned type list; expected one number per training sample"),
    "length": ([1.0] * 40, r"returned shape \(40,\) for 50 training samples; expected \(50,\)"),
}


@pytest.mark.parametrize(
    ("lengths", "says"),
    [
        ([*[1.0] * 49, float("nan")], r"Uneven.lengths\(\) returned nan for sample 49; expected a number"),
        ([1j] * 50, r"lengths\(\) returned complex numbers"),
        ([1.0] * 40, r"lengths\(\) returned shape \(40,\) for 50 training samples"),
    ],
)
def test_lengths_that_cannot_be_are_refused(
    fit: Fit, lengths: list[Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Uneven, "hook", "lengths")
    monkeypatch.setattr(Uneven, "lengths", lambda _: lengths)
    with temporarily(DATA_LOADERS, Uneven), pytest.raises(UserError, match=says):
        fit(data_loader={"type": "Uneven"} | SIZES)


@pytest.mark.parametrize("case", WRONG)
def test_weights_that_cannot_be_are_refused(fit: Fit, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Uneven, "weights", WRONG[case][0])
    with temporarily(DATA_LOADERS, Uneven), pytest.raises(UserError, match=WRONG[case][1]) as caught:
        fit(data_loader={"type": "Uneven"} | SIZES)
    assert "config.json:" in str(caught.value)


class Failing(RandomTensorLoader):
    """Raises from some call of ``sample_weights`` on."""

    calls = 0
    fails_at = 1

    def sample_weights(self) -> Tensor | None:
        self.calls += 1
        return [None][self.calls // self.fails_at]


@pytest.mark.parametrize(("fails_at", "place"), [(1, r"config.json:.*data_loader.args: "), (5, "^")])
def test_weights_that_raise_are_reported_with_their_line(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, fails_at: int, place: str
) -> None:
    monkeypatch.setattr(Failing, "fails_at", fails_at)
    says = rf"{place}Failing.sample_weights\(\) failed: IndexError: list index out of range\n  tests/.*: return \[None"
    with temporarily(DATA_LOADERS, Failing), pytest.raises(DataError, match=says):
        fit(data_loader={"type": "Failing"} | SIZES, trainer={"epochs": 5})


SIZES: dict[str, Any] = {
    "args": {"num_samples": 50, "input_shape": [6], "num_classes": 3, "batch_size": 8, "validation_split": 10}
}


@pytest.mark.parametrize(
    ("loader", "overrides", "says"),
    [
        ("RandomTensorLoader", ["data_loader.args.shuffle=false", "data_loader.args.balanced=true"], "shuffle cannot"),
        ("UnevenWeights", ["data_loader.args.shuffle=false"], "shuffle cannot be false"),
        ("UnevenLengths", ["data_loader.args.shuffle=false"], "shuffle cannot be false"),
        ("UnevenWeights", ["data_loader.args.balanced=true"], "leave balanced out"),
    ],
)
def test_what_contradicts_an_order_is_refused(fit: Fit, loader: str, overrides: list[str], says: str) -> None:
    with temporarily(DATA_LOADERS, UnevenWeights, UnevenLengths), pytest.raises(UserError, match=says) as caught:
        fit(*overrides, data_loader={"type": loader} | SIZES)
    assert str(caught.value).startswith(f"override {overrides[0]}: ") or "config.json:" in str(caught.value)


def test_balanced_needs_classes(fit: Fit) -> None:
    args = {"num_samples": 50, "input_shape": [6], "target_shape": [2], "batch_size": 8, "balanced": True}
    with pytest.raises(DataError, match="needs a class for each sample: integer targets"):
        fit(data_loader={"type": "RandomTensorLoader", "args": args})


def test_large_integers_are_not_classes() -> None:
    loader = Uneven(batch_size=1, num_samples=2, input_shape=[1], num_classes=2, balanced=True)
    source = loader.training_data(augment=True)
    source.targets = torch.tensor([0, 10**13])
    loader.training_data = lambda **_: source  # type: ignore[method-assign]
    assert loader.facts() == {}
    with pytest.raises(DataError, match=r"integer targets from 0 to 99,999, of shape \(N,\)"):
        loader.training(seed=0)


class Mined(RandomTensorLoader):
    """Draws the samples of one class alone, another one in each epoch."""

    only = 0
    dtype = torch.float32

    def __init__(self, **args: Any) -> None:
        super().__init__(**args)
        self.weights = torch.ones(self.num_samples, dtype=self.dtype)

    def training_data(self, *, augment: bool) -> TensorSource:
        self.source = super().training_data(augment=augment)
        return self.source

    def begin_epoch(self, epoch: int) -> None:
        self.weights[:] = self.source.targets == self.only + epoch - 1

    def sample_weights(self) -> Tensor:
        return self.weights


class MinedInFloat64(Mined):
    dtype = torch.float64


class Growing(Mined):
    """All samples equally often in the first epoch; then hard ones more often, by the losses of the trainer so far."""

    hard: Tensor | None = None

    def begin_epoch(self, epoch: int) -> None:
        pass

    def sample_weights(self) -> Tensor | None:  # type: ignore[override]
        return self.hard


class WeightedLate(Growing):
    def begin_epoch(self, epoch: int) -> None:
        self.hard = self.weights if epoch > 1 else None


def test_weights_that_come_later_are_not_ignored(fit: Fit) -> None:
    with temporarily(DATA_LOADERS, WeightedLate):
        fit(data_loader={"type": "WeightedLate"} | SIZES)
        with pytest.raises(DataError, match="shuffle cannot be false"):
            fit("data_loader.args.shuffle=false", data_loader={"type": "WeightedLate"} | SIZES)


class Edited(Mined):
    """Weights that never change, unless somebody edits them."""

    tilt = 1.0

    def begin_epoch(self, epoch: int) -> None:
        pass

    def sample_weights(self) -> Tensor:
        return torch.linspace(1, self.tilt, self.num_samples)


class Recording(Trainer):
    """Logs the mean class of its targets."""

    logs = ("drawn",)

    def train_step(self, batch: Any) -> StepResult:
        result = super().train_step(batch)
        return result._replace(log={"drawn": batch[1].float().mean()})


ARGS = {"num_samples": 60, "input_shape": [6], "num_classes": 3, "batch_size": 8, "validation_split": 10}
OFTEN = ("trainer.type=Recording", "trainer.epochs=3", "trainer.save_every_steps=2", "trainer.keep_last=null")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["Mined", "MinedInFloat64"])
def test_weights_may_change_with_the_epoch_and_resume_exactly(fit: Fit, kind: str, workers: int) -> None:
    data = {"type": kind, "args": {**ARGS, "num_workers": workers}}
    with temporarily(DATA_LOADERS, Mined, MinedInFloat64), temporarily(TRAINERS, Recording):
        whole = fit(*OFTEN, data_loader=data, metrics=[]).run_dir
        assert [line["drawn"] for line in lines(whole)] == [0, 1, 2]
        half = fork(whole, 10)  # in mid-epoch
        train.main(["-r", str(half)])
    equal(whole, half)


class Mining(Recording):
    """Keeps the loss of each class."""

    losses: Any

    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        super().__init__(experiment, settings)
        self.losses = nn.Module()
        self.losses.register_buffer("of_class", torch.ones(3))

    def stateful(self) -> dict[str, Any]:
        return {**super().stateful(), "losses": self.losses}

    def begin_epoch(self, epoch: int) -> None:
        data: Any = self.experiment.data
        data.hard = self.losses.of_class[data.source.targets] if epoch > 1 else None

    def train_step(self, batch: Any) -> StepResult:
        result = super().train_step(batch)
        self.losses.of_class[batch[1][0]] = result.loss.detach()
        return result


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("epoch", ["null", "5", "11"])
def test_an_epoch_resumes_with_the_weights_that_it_began_with(fit: Fit, epoch: str, workers: int) -> None:
    """They were computed from losses that have changed since; it may begin in the middle of a pass."""
    data = {"type": "Growing", "args": {**ARGS, "num_workers": workers}}
    often = (*OFTEN[1:], "trainer.type=Mining", f"trainer.steps_per_epoch={epoch}")
    with temporarily(DATA_LOADERS, Growing), temporarily(TRAINERS, Mining):
        whole = fit(*often, data_loader=data, metrics=[]).run_dir
        for step in (8, 10, 14):
            half = fork(whole, step)
            train.main(["-r", str(half)])
            equal(whole, half)
            shutil.rmtree(half)


def test_without_weights_every_sample_is_drawn_once(fit: Fit) -> None:
    with temporarily(DATA_LOADERS, Growing):
        once = fit(data_loader={"type": "Growing", "args": ARGS}).run_dir
    assert lines(once) == lines(fit(data_loader={"type": "RandomTensorLoader", "args": ARGS}).run_dir)


def test_edited_weights_count_from_the_next_epoch_on(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    with temporarily(DATA_LOADERS, Edited), temporarily(TRAINERS, Recording):
        run = fit(*OFTEN, data_loader={"type": "Edited", "args": ARGS}, metrics=[]).run_dir
        half = fork(run, 10)
        monkeypatch.setattr(Edited, "tilt", 20.0)
        train.main(["-r", str(half)])
    whole, resumed = ([line["loss"] for line in lines(each)] for each in (run, half))
    assert resumed[:2] == whole[:2]
    assert resumed[2] != whole[2]
