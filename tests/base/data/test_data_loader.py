"""What a data loader gives beside its batches' order: folds, facts, joint augmentation, batches of any shape."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.datasets import FakeData

import train
from base.base_data_loader import BaseDataLoader
from base.build import build_experiment, build_training, with_facts
from base.data import Batches, SampleRandom, TensorSource
from base.data.sample_source import as_source
from data_loader.cifar10 import CIFAR10Loader
from data_loader.random_tensor import RandomTensorLoader
from tests.conftest import load_script
from tests.helpers import Fit, equal, fork, needs_extra, state, temporarily
from utils.config import load_config
from utils.config.resume import changes_since, saved_config
from utils.errors import DataError, UserError
from utils.registry import DATA_LOADERS, LOSSES, METRICS, MODELS
from utils.tree import describe_batch

ARGS: dict[str, Any] = {"num_samples": 50, "input_shape": [6], "num_classes": 3, "batch_size": 8}
RANDOM = {"type": "RandomTensorLoader", "args": ARGS}
OFTEN = ("trainer.epochs=3", "trainer.save_every_steps=3", "trainer.keep_last=null")

# ------------------------------------------------------------------ folds


def held_out(loader: BaseDataLoader, seed: int = 0) -> set[int]:
    training, validation = loader.training(seed), loader.validation()
    assert validation is not None
    assert isinstance(training.indices, Tensor)
    assert isinstance(validation.indices, Tensor)
    found = set(validation.indices.tolist())
    assert found.isdisjoint(training.indices.tolist())
    assert len(found) + len(training.indices) == 50
    return found


def test_folds_are_disjoint_and_cover_all() -> None:
    folds = [held_out(RandomTensorLoader(**ARGS, folds=4, fold=fold)) for fold in range(4)]
    assert sorted(index for fold in folds for index in fold) == list(range(50))
    assert [len(fold) for fold in folds] == [12, 13, 12, 13]
    assert held_out(RandomTensorLoader(**ARGS, folds=4, fold=1), seed=7) == folds[1], "a fold depends on the run's seed"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"folds": 5}, '"folds" and "fold" go together'),
        ({"fold": 0}, '"folds" and "fold" go together'),
        ({"folds": 5, "fold": 5}, "from 0 to folds - 1"),
        ({"folds": 5, "fold": 0, "validation_split": 0.1}, 'leave "validation_split" out'),
        ({"folds": 1, "fold": 0}, "data_loader.args.folds: should be greater than or equal to 2"),
        ({"folds": 51, "fold": 0}, "data_loader.args.folds: 50 training samples are not enough for 51 folds"),
    ],
)
def test_folds_that_cannot_be_are_refused(fit: Fit, args: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        fit(data_loader={**RANDOM, "args": {**ARGS, **args}})
    assert "config.json:" in str(caught.value)


def test_a_fold_takes_the_place_of_the_default_split(own_cifar10: Path) -> None:
    loader = CIFAR10Loader(batch_size=20, data_dir=str(own_cifar10), folds=4, fold=3)
    assert loader.training(0).num_samples == 75
    assert CIFAR10Loader(batch_size=20, data_dir=str(own_cifar10)).training(0).num_samples == 90


def test_a_run_keeps_its_fold(fit: Fit) -> None:
    whole = fit(*OFTEN, data_loader={**RANDOM, "args": {**ARGS, "folds": 5, "fold": 2}})
    half = fork(whole.run_dir, 6)
    for change in ("fold=3", "folds=10"):
        with pytest.raises(UserError, match="cannot change when a run is resumed"):
            train.main(["-r", str(half), f"data_loader.args.{change}"])
    train.main(["-r", str(half)])
    equal(whole.run_dir, half)


class Split(RandomTensorLoader):
    """With its own split, which ``returns`` gives."""

    returns: Any = None

    def split(self, count: int) -> tuple[Tensor, Tensor]:
        return self.returns  # type: ignore[no-any-return]


def split_loader(returns: Any, **args: Any) -> RandomTensorLoader:
    loader = Split(**ARGS, **args)
    loader.returns = returns
    return loader


EVEN = torch.arange(50) % 2 == 0


def test_a_split_of_ones_own_holds_out_what_it_says() -> None:
    assert held_out(split_loader((~EVEN, EVEN))) == set(range(0, 50, 2))
    loader = split_loader((torch.arange(10, 30), torch.tensor([7, 3])))  # the rest is not used
    training, validation = loader.training(0), loader.validation()
    assert validation is not None
    assert (training.num_samples, validation.num_samples) == (20, 2)
    targets: Any = loader.training_data(augment=False).targets
    assert torch.equal(next(iter(validation.one_pass())).data[1], targets[[7, 3]])
    facts = loader.facts()
    assert facts["class_counts"] == targets[10:30].bincount(minlength=facts["num_classes"]).tolist()
    assert split_loader((torch.arange(50), [])).validation() is None


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.uint64])
def test_a_split_of_ones_own_may_be_integers_of_any_dtype(dtype: torch.dtype) -> None:
    loader = split_loader((torch.arange(40).to(dtype), torch.arange(40, 50).to(dtype)))
    assert held_out(loader) == set(range(40, 50))
    targets: Any = loader.training_data(augment=False).targets
    assert loader.facts()["class_counts"] == targets[:40].bincount(minlength=3).tolist()


def test_validation_data_of_its_own_rules_out_a_split() -> None:
    loader = RandomTensorLoader(**ARGS, validation_split=10)
    loader.validation_data = loader.test_data  # type: ignore[method-assign]
    with pytest.raises(DataError, match="has its own validation data; leave validation_split out"):
        loader.validation()


def test_drop_last_needs_one_whole_batch_of_what_is_left() -> None:
    assert len(split_loader((range(8), [8]), drop_last=True).training(0)) == 1
    with pytest.raises(DataError, match="the 7 training samples do not fill one batch of 8"):
        split_loader((range(7), [8]), drop_last=True).training(0)


def test_a_loader_may_keep_an_argument_as_its_split() -> None:
    loader = RandomTensorLoader(**ARGS, validation_split=10)
    loader.split = "train"  # type: ignore[assignment, method-assign]
    assert loader.training(0).num_samples == 40


@pytest.mark.parametrize(
    ("returns", "says"),
    [
        (
            torch.arange(50),
            r"Split.split should return training and validation indices: .*; got \(\) int64",
        ),
        (([0, 1], [1, 2]), "Split.split returned the index 1 more than once"),
        (([0, 1], [50]), r"integers from 0 to 49, or masks of shape \(50,\); got \(1,\) int64"),
        (([-1], [0]), "integers from 0 to 49"),
        ((torch.rand(40), [0]), r"got \(40,\) float32"),
        ((EVEN[:40], [0]), r"got \(40,\) bool"),
        (([], [0, 1]), "leaves no samples to train on"),
    ],
)
def test_a_split_that_cannot_be_is_refused(returns: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        split_loader(returns).training(0)


def test_a_run_keeps_its_split(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    with temporarily(DATA_LOADERS, Split):
        monkeypatch.setattr(Split, "returns", (~EVEN, EVEN))
        whole = fit(*OFTEN, data_loader={"type": "Split", "args": ARGS})
        half = fork(whole.run_dir, 6)
        monkeypatch.setattr(Split, "returns", (EVEN, ~EVEN))
        with pytest.raises(DataError, match="the hash of the samples held out was"):
            train.main(["-r", str(half)])
        monkeypatch.setattr(Split, "returns", (~EVEN, EVEN))
        train.main(["-r", str(half)])
    equal(whole.run_dir, half)


def test_a_run_from_before_an_argument_existed_resumes(fit: Fit) -> None:
    run = fit(*OFTEN, data_loader=RANDOM).run_dir
    saved = state(run)["config"]
    args = saved["data_loader"]["args"]
    assert args.pop("folds", "missing") is None
    assert args.pop("balanced") is False
    assert not changes_since(saved, saved_config(load_config(run / "config.json").config))
    now = load_config(run / "config.json", ["data_loader.args.folds=5", "data_loader.args.fold=0"]).config
    assert {str(change) for change in changes_since(saved, saved_config(now))} == {
        "data_loader.args.folds null -> 5",
        "data_loader.args.fold null -> 0",
    }


def test_the_arguments_reach_the_batches() -> None:
    args: dict[str, Any] = {"shuffle": False, "num_workers": 1, "drop_last": True, "eval_batch_size": 3}
    loader = RandomTensorLoader(**ARGS, **args, validation_split=10)
    training, validation = loader.training(seed=7), loader.validation()
    assert validation is not None
    assert (training.order, training.seed, training.num_workers, training.drop_last) == (None, 7, 1, True)
    assert (validation.order, validation.batch_size, validation.num_workers, validation.drop_last) == (
        None,
        3,
        1,
        False,
    )


# ------------------------------------------------------------------ facts


def test_facts_of_classes() -> None:
    loader = RandomTensorLoader(**ARGS, validation_split=10)
    facts = json.loads(json.dumps(loader.facts()))  # plain values
    assert facts["num_classes"] == 3
    source = loader.training_data(augment=False)
    training = loader.training(0)
    assert isinstance(training.indices, Tensor)
    assert facts["class_counts"] == torch.bincount(source.targets[training.indices]).tolist()  # type: ignore[index]
    assert sum(facts["class_counts"]) == 40
    totals = [count * weight for count, weight in zip(facts["class_counts"], facts["class_weights"], strict=True)]
    assert totals == pytest.approx([40 / 3] * 3)
    loader.class_names = ["a", "b", "c", "d"]
    facts = loader.facts()
    assert facts["num_classes"] == 4
    assert facts["class_counts"][3:] == [0]
    assert facts["class_weights"][3:] == [0.0]
    loader.class_names = ["a", "b"]
    with pytest.raises(DataError, match="class_names has 2 names, but the targets are classes from 0 to 2"):
        loader.facts()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint64])
def test_classes_may_have_any_dtype_of_integers(dtype: torch.dtype) -> None:
    class Compact(RandomTensorLoader):
        def training_data(self, *, augment: bool) -> TensorSource:
            return TensorSource(torch.zeros(4, 6), torch.tensor([0, 2, 100, 2]).to(dtype))

    counts = Compact(**ARGS).facts()["class_counts"]
    assert len(counts) == 101
    assert [counts[each] for each in (0, 2, 100)] == [1, 2, 1]


class Drawn(BaseDataLoader):
    """Draws its data, and which samples to hold out, from the global generator."""

    def split(self, count: int) -> tuple[Tensor, Tensor]:
        order = torch.randperm(count)
        return order[10:], order[:10]

    def training_data(self, *, augment: bool) -> TensorSource:
        return TensorSource(torch.randn(50, 6), torch.randint(0, 3, (50,)))


def test_what_is_held_out_of_drawn_data_is_a_part_of_the_same_data(write_config: Callable[..., Path]) -> None:
    with temporarily(DATA_LOADERS, Drawn):
        loss = {"type": "cross_entropy", "args": {"weight": "${data.class_weights}"}}
        config = write_config(data_loader={"type": "Drawn", "args": {"batch_size": 50}}, loss=loss)
        loaded, data = with_facts(load_config(config))
        training = build_training(loaded, build_experiment(loaded, data))
        batches: Any = training.batches
        validation: Any = training.validation[""]
        assert torch.equal(batches.source.inputs, validation.source.inputs)
        assert sorted([*batches.indices.tolist(), *validation.indices.tolist()]) == list(range(50))
        counts = batches.source.targets[batches.indices].bincount().tolist()
        assert loaded.config.losses[""].args["weight"] == pytest.approx([40 / (3 * count) for count in counts])


def test_classes_are_those_that_a_target_transform_returns() -> None:
    class Halves(RandomTensorLoader):
        def training_data(self, *, augment: bool) -> Any:
            data: Any = FakeData(5, (1, 2, 2), target_transform=lambda digit: digit // 5)
            data.targets = [0, 4, 5, 9, 9]
            return data

    assert Halves(**ARGS).facts()["class_counts"] == [2, 3]


def test_a_target_transform_is_applied_once_to_each_class() -> None:
    """Weights are computed again in each epoch."""
    seen = []

    def renamed(digit: int) -> int:
        seen.append(digit)
        return 9 - digit

    class Renamed(RandomTensorLoader):
        def training_data(self, *, augment: bool) -> Any:
            data: Any = FakeData(6, (1, 2, 2), target_transform=renamed)
            data.targets = [0, 4, 4, 4, 9, 9]
            return data

    counts = Renamed(**ARGS).facts()["class_counts"]
    assert [(index, count) for index, count in enumerate(counts) if count] == [(0, 2), (5, 3), (9, 1)]
    assert seen == [0, 4, 9]


def test_numbers_that_a_target_transform_makes_classes_of_are_not_cut_off() -> None:
    class Binned(RandomTensorLoader):
        def training_data(self, *, augment: bool) -> Any:
            data: Any = FakeData(3, (1, 2, 2), target_transform=lambda number: int(number > 0.5))
            data.targets = [0.2, 0.7, 0.9]
            return data

    assert "class_counts" not in Binned(**ARGS).facts()


def test_a_run_records_what_follows_from_its_data(fit: Callable[..., train.Result]) -> None:
    """For comparisons: it differs between folds."""
    loss = {"type": "cross_entropy", "args": {"weight": "${data.class_weights}"}}
    run = fit("trainer.epochs=1", loss=loss).run_dir
    assert json.loads((run / "environment.json").read_text())["from_data"] == ["loss.args.weight"]
    train.main(["-r", str(run), "trainer.epochs=2"])
    about = json.loads((run / "environment.json").read_text())
    assert about["from_data"] == ["loss.args.weight"]
    assert about["resumed"][0]["from_data"] == []


def test_facts_of_numbers_and_of_a_subclass() -> None:
    class Words(RandomTensorLoader):
        def facts(self) -> dict[str, Any]:
            return {**super().facts(), "vocabulary_size": 7}

    numbers = {**ARGS, "num_classes": None, "target_shape": [2]}
    assert Words(**numbers).facts() == {"vocabulary_size": 7}


def test_the_facts_of_no_data_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = RandomTensorLoader(**ARGS)
    monkeypatch.setattr(loader, "num_samples", 0)
    with pytest.raises(DataError, match="the training data is empty"):
        loader.facts()


# ------------------------------------------------------------------ inputs and targets together


def flip(images: Tensor, masks: Tensor, draws: SampleRandom) -> tuple[Tensor, Tensor]:
    mirrored = (draws.uniform()[0] < 0.5)[:, None, None]
    return torch.where(mirrored, images.flip(2), images), torch.where(mirrored, masks.flip(2), masks)


class Masks(BaseDataLoader):
    """Images whose mask is where they are positive."""

    def training_data(self, *, augment: bool) -> TensorSource:
        images = torch.randn(50, 4, 6, generator=torch.Generator().manual_seed(0))
        return TensorSource(images, (images > 0).float(), augment_pair=flip if augment else None)

    def test_data(self) -> TensorSource:
        return self.training_data(augment=False)


def test_inputs_and_targets_are_augmented_together() -> None:
    source = Masks(batch_size=8).training_data(augment=True)
    images = torch.cat([micro.data[0] for micro in Batches(source, batch_size=8).one_pass()])
    masks = torch.cat([micro.data[1] for micro in Batches(source, batch_size=8).one_pass()])
    assert torch.equal(masks, (images > 0).float())
    assert isinstance(source.inputs, Tensor)
    mirrored = (images != source.inputs).flatten(1).any(1)
    assert 10 < mirrored.sum() < 40
    with pytest.raises(ValueError, match="together"):
        TensorSource(torch.zeros(1), torch.zeros(1), augment=lambda x, _: x, augment_pair=flip)


class PerPixel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Linear(6, 6)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.row(images)
        return outputs


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_joint_augmentation_resumes_exactly(fit: Fit, workers: int) -> None:
    with temporarily(DATA_LOADERS, Masks), temporarily(MODELS, PerPixel):
        data = {"type": "Masks", "args": {"batch_size": 8, "validation_split": 10, "num_workers": workers}}
        whole = fit(*OFTEN, data_loader=data, model={"type": "PerPixel"}, loss="BCEWithLogitsLoss", metrics=[])
        half = fork(whole.run_dir, 6)
        train.main(["-r", str(half)])
    equal(whole.run_dir, half)


# ------------------------------------------------------------------ batches of any shape


class Scene(NamedTuple):
    images: Any
    targets: Any


class Scenes(Dataset[Any]):
    """Images of any size with 0 to 3 boxes."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> Any:
        boxes = torch.rand(index % 4, 4)  # from the generator that is seeded for each sample
        target = {"boxes": boxes, "labels": torch.arange(index % 4), "id": f"image {index}"}
        return torch.rand(3, 4 + index % 3, 5), target


class Detection(BaseDataLoader):
    """A list of images and a list of dicts, as torchvision's detectors take them. named: a named tuple of these."""

    def __init__(self, *, named: bool = False, **batches: Any) -> None:
        super().__init__(**batches)
        self.named = named

    def training_data(self, *, augment: bool) -> Dataset[Any]:
        return Scenes()

    def test_data(self) -> Dataset[Any]:
        return Scenes()

    def collate(self, samples: list[Any]) -> Any:
        images, targets = map(list, zip(*samples, strict=True))
        return Scene(images, targets) if self.named else (images, targets)


class CountBoxes(nn.Module):
    """A list of images (3, H, W) to {"count": (B,)}."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, images: list[Tensor]) -> dict[str, Tensor]:
        return {"count": torch.cat([self.linear(image.mean((1, 2))) for image in images])}


def count_loss(outputs: Any, targets: Any) -> Tensor:
    """Squared error of the number of boxes."""
    return counted(outputs, targets).mean()


def count_error(outputs: Any, targets: Any) -> Tensor:
    """Squared error of the number of boxes, shape (B,)."""
    return counted(outputs, targets).detach()


def counted(outputs: Any, targets: Any) -> Tensor:
    counts = torch.tensor([float(len(target["boxes"])) for target in targets])
    squares: Tensor = (outputs["count"] - counts) ** 2
    return squares


@pytest.fixture
def detection() -> Any:
    with (
        temporarily(DATA_LOADERS, Detection),
        temporarily(MODELS, CountBoxes),
        temporarily(LOSSES, count_loss),
        temporarily(METRICS, count_error),
    ):
        yield {"model": {"type": "CountBoxes"}, "loss": "count_loss", "metrics": ["count_error"]}


def detected(**args: Any) -> dict[str, Any]:
    return {"type": "Detection", "args": {"batch_size": 8, "validation_split": 10, **args}}


@pytest.mark.slow
@pytest.mark.parametrize(("named", "workers"), [(False, 0), (True, 2)])
def test_lists_of_dicts_train_and_resume_exactly(
    fit: Fit, detection: dict[str, Any], named: bool, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    data = detected(named=named, num_workers=workers)
    whole = fit(*OFTEN, "trainer.tensorboard=true", "trainer.pictures_every=1", data_loader=data, **detection)
    half = fork(whole.run_dir, 6)
    train.main(["-r", str(half)])
    equal(whole.run_dir, half)
    load_script("test").main(["-r", str(whole.run_dir)])
    assert "warning" not in capsys.readouterr().err


@needs_extra("check")
def test_lists_of_dicts_pass_the_check(
    write_config: Callable[..., Path], detection: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(data_loader=detected(), **detection)
    status = train.main(["--check", "-c", str(path)])
    printed = capsys.readouterr().out
    assert status == 0, printed
    print(printed)
    assert "targets.3.boxes (3, 4) float32" in printed
    assert "targets.4.boxes" not in printed
    assert "and 12 more tensors in lists" in printed


@needs_extra("tensorboard")
@pytest.mark.usefixtures("tensorboard")
def test_the_graph_of_a_model_that_takes_lists(fit: Fit, detection: dict[str, Any]) -> None:
    run = fit("trainer.epochs=1", data_loader=detected(), **detection).run_dir
    events = EventAccumulator(str(run))
    events.Reload()
    assert {"inputs_2", "linear/linear"} <= {node.name for node in events.Graph().node}


def test_a_long_batch_is_described_in_short() -> None:
    assert describe_batch([torch.zeros(2)] * 9).count("(2,)") == 9
    assert describe_batch([torch.zeros(2)] * 64).endswith("(2,) float32, and 56 more tensors")


# ------------------------------------------------------------------ any data set


class MapStyle:
    """As Hugging Face's datasets have it: not a torch Dataset, and with a ``batch`` of another meaning."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((2,), float(index)), index

    def batch(self, batch_size: int) -> None:
        raise AssertionError


@pytest.mark.parametrize("data", [MapStyle(), [(torch.full((2,), float(index)), index) for index in range(10)]])
def test_whatever_has_items_and_a_length_is_a_data_set(data: Any) -> None:
    batches = Batches(as_source(data), batch_size=4)
    loaded = [micro_batch.data for micro_batch in batches.one_pass()]
    assert [len(inputs) for inputs, _ in loaded] == [4, 4, 2]
    assert torch.cat([targets for _, targets in loaded]).tolist() == list(range(10))
    assert torch.cat([inputs for inputs, _ in loaded])[:, 1].tolist() == list(range(10))


@pytest.mark.parametrize("data", [iter([1, 2]), None])
def test_what_is_not_a_data_set(data: Any) -> None:
    with pytest.raises(DataError, match=rf"the data is of type {type(data).__name__}; expected a TensorSource"):
        as_source(data)
