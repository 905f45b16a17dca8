"""A data set that is kept on the device gives the batches that it gives otherwise."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from base.array_file import ArrayFile
from base.build import build_experiment, build_training
from base.data.batches import Batches
from base.data.device_cache import DeviceCache
from base.data.orders import Shuffled, Weighted
from base.data.sample_random import SampleRandom
from base.data.sample_source import as_source
from base.data.sources import TensorSource
from base.metric import StepResult
from data_loader.cifar10 import CIFAR10Loader
from data_loader.random_tensor import RandomTensorLoader
from tests.helpers import Fit, lines, same, state, temporarily
from trainer.trainer import Trainer
from utils.config import load_config
from utils.errors import ConfigError, DataError
from utils.registry import DATA_LOADERS, TRAINERS

CPU, META = torch.device("cpu"), torch.device("meta")


def images(folder: Path, device: str | None) -> Batches:
    loader = CIFAR10Loader(
        data_dir=str(folder), batch_size=8, crop=4, flip=True, download=False, device_cache=device is not None
    )
    loader.device = torch.device(device or "cpu")
    return loader.training(seed=0)


def test_a_run_ends_with_the_same_bits(fit: Fit, own_cifar10: Path) -> None:
    args = {"data_dir": str(own_cifar10), "batch_size": 16, "crop": 4, "flip": True, "validation_split": 20}
    model = {"type": "LeNet", "args": {"in_channels": 3, "kernel_size": 5}}
    runs = [
        fit(data_loader={"type": "CIFAR10Loader", "args": {**args, "device_cache": cached}}, model=model).run_dir
        for cached in (False, True)
    ]
    one, other = map(state, runs)
    assert same(one["model"], other["model"])
    assert lines(runs[0]) == lines(runs[1])


def test_batches_are_cut_and_augmented_on_the_device(own_cifar10: Path) -> None:
    here, there = images(own_cifar10, None), images(own_cifar10, "meta")
    for one, other in zip(here.one_pass(), there.one_pass(), strict=True):
        for kept, moved in zip(one.data, other.data, strict=True):
            assert moved.device.type == "meta"
            assert (moved.shape, moved.dtype, moved.stride()) == (kept.shape, kept.dtype, kept.stride())


@pytest.mark.parametrize("validation_split", [0, 20])
def test_the_indices_are_copied_to_the_device_once_a_pass(own_cifar10: Path, validation_split: int) -> None:
    copied: list[torch.Size] = []

    class Copies(TorchFunctionMode):
        def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if function is torch.Tensor.to and (args[0].device, result.device) == (CPU, META):
                copied.append(result.shape)
            return result

    loader = CIFAR10Loader(
        data_dir=str(own_cifar10), batch_size=8, validation_split=validation_split, download=False, device_cache=True
    )
    loader.device = META
    batches = loader.training(seed=0)
    with Copies():
        for _ in itertools.islice(batches.load(batches.ranges()), 2 * len(batches)):
            pass
    assert copied.count(torch.Size([batches.num_samples])) == 2
    assert len(copied) == 2 + 2, "and once what normalizes the pixels"


class OnTheCPU(TensorSource):
    """Takes indices as on a device."""

    index_device = CPU


@pytest.mark.parametrize("weights", [None, torch.rand(50) + 0.1])
@pytest.mark.parametrize("rank", [0, 1])
def test_batches_are_the_same_from_indices_on_the_device(rank: int, weights: Tensor | None) -> None:
    inputs, targets = torch.arange(50), -torch.arange(50)
    made = []
    for kind in (TensorSource, OnTheCPU):
        order = Shuffled(50, 3) if weights is None else Weighted(weights.clone, 3)
        batches = Batches(kind(inputs, targets), batch_size=8, order=order)
        batches.divide(rank, 2)
        made.append([each.data for each in itertools.islice(batches.load(batches.ranges()), 20)])
    for (one, _), (other, _) in zip(*made, strict=True):
        assert torch.equal(one, other)


def test_training_and_validation_share_their_tensors(own_cifar10: Path) -> None:
    loader = CIFAR10Loader(
        data_dir=str(own_cifar10), batch_size=8, download=False, validation_split=20, device_cache=True
    )
    loader.device = torch.device("meta")
    validation: Any = loader.validation()
    training: Any = loader.training(seed=0)
    assert training.source.inputs is validation.source.inputs


def test_validation_data_of_another_loader_are_kept_there_too(
    write_config: Callable[..., Path], own_cifar10: Path
) -> None:
    args = {"data_dir": str(own_cifar10), "batch_size": 8, "validation_split": 0, "device_cache": True}
    loader = {"type": "CIFAR10Loader", "args": args}
    loaded = load_config(
        write_config(
            data_loader=loader,
            validation=loader,
            model={"type": "LeNet", "args": {"in_channels": 3, "kernel_size": 5}},
            loss="cross_entropy",
        )
    )
    experiment = build_experiment(loaded)
    experiment.data.device = torch.device("meta")
    training: Any = build_training(loaded, experiment)
    assert [each.source.inputs.is_meta for each in (training.batches, training.validation[""])] == [True, True]


class OwnAugment(CIFAR10Loader):
    def augment(self, images: torch.Tensor, random: SampleRandom) -> torch.Tensor:
        return torch.from_numpy(images.numpy()[:, ::-1].copy())


class Relabelling(CIFAR10Loader):
    def begin_epoch(self, epoch: int) -> None:
        """May change the targets."""


@pytest.mark.parametrize(
    ("loader", "arguments", "device", "small", "kept"),
    [
        (CIFAR10Loader, {}, META, True, True),
        (CIFAR10Loader, {"crop": 4, "flip": True}, META, True, True),
        (CIFAR10Loader, {"device_cache": False}, META, True, False),
        (CIFAR10Loader, {"num_workers": 1}, META, True, False),
        (CIFAR10Loader, {}, META, False, False),
        (CIFAR10Loader, {"device_cache": True}, META, False, True),
        (CIFAR10Loader, {"in_memory": False}, META, True, False),
        (OwnAugment, {}, META, True, False),
        (Relabelling, {}, META, True, False),
        (CIFAR10Loader, {}, CPU, True, False),
    ],
)
def test_small_data_is_kept_on_an_accelerator_unasked(
    own_cifar10: Path,
    monkeypatch: pytest.MonkeyPatch,
    loader: type[CIFAR10Loader],
    arguments: dict[str, Any],
    device: torch.device,
    small: bool,
    kept: bool,
) -> None:
    monkeypatch.setattr("base.data.device_cache.SMALL", 2**29 if small else 999)
    made = loader(data_dir=str(own_cifar10), batch_size=8, download=False, **arguments)
    made.device = device
    source: Any = made.training(seed=0).source
    assert bool(getattr(source.inputs, "is_meta", False)) is kept


def test_functions_of_ones_own_keep_it_on_the_cpu_unless_they_run_anywhere() -> None:
    def halve(inputs: torch.Tensor) -> torch.Tensor:
        return inputs / 2

    for any_device in (False, True):
        source = TensorSource(torch.zeros(4, 2), torch.zeros(4), transform=halve, any_device=any_device)
        kept: Any = DeviceCache(if_suitable=True).keep(source, META)
        assert kept.inputs.is_meta is any_device


class OwnSource(TensorSource):
    def batch(self, indices: Any, random: SampleRandom) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError


def test_a_source_of_ones_own_stays_on_the_cpu_unless_asked() -> None:
    source: Any = DeviceCache(if_suitable=True).keep(OwnSource(torch.zeros(4, 2), torch.zeros(4)), META)
    assert source.inputs.is_cpu


def test_what_is_not_in_memory_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "targets.npy", np.arange(4))
    half_on_disk = TensorSource(torch.zeros(4, 2), ArrayFile.open(tmp_path / "targets.npy"))
    for source in (as_source([1, 2, 3]), half_on_disk):  # type: ignore[arg-type]
        with pytest.raises(DataError, match="only tensors in memory"):
            DeviceCache().keep(source, CPU)


def test_plain_tensors_are_kept_on_the_device() -> None:
    source: Any = DeviceCache(if_suitable=True).keep(TensorSource(torch.zeros(4, 2), torch.zeros(4)), META)
    assert source.inputs.is_meta


class OwnLabels(RandomTensorLoader):
    def training_data(self, *, augment: bool) -> TensorSource:
        self.device = torch.device("cpu", 0)  # torch takes it for another device, to which it copies
        source = super().training_data(augment=augment)
        self.labels = source.targets
        return source


class PseudoLabels(Trainer):
    seen: ClassVar[set[tuple[int, ...]]] = set()

    def begin_epoch(self, epoch: int) -> None:
        data: Any = self.experiment.data
        data.labels.fill_(epoch)

    def train_step(self, batch: Any) -> StepResult:
        self.seen.add((self.progress.epochs + 1, *batch[1].unique().tolist()))
        return super().train_step(batch)


def test_data_that_a_trainer_changes_is_copied_again(fit: Fit) -> None:
    args = {"num_samples": 16, "input_shape": [4], "num_classes": 4, "batch_size": 8, "device_cache": True}
    model = {"type": "TwoLayerNet", "args": {"in_features": 4, "hidden_features": 3, "out_features": 4}}
    keys: dict[str, Any] = {"data_loader": {"type": "OwnLabels", "args": args}, "model": model, "metrics": []}
    with temporarily(DATA_LOADERS, OwnLabels), temporarily(TRAINERS, PseudoLabels):
        fit("trainer.type=PseudoLabels", "trainer.epochs=2", loss="cross_entropy", **keys)
    assert PseudoLabels.seen == {(1, 1), (2, 2)}


def test_worker_processes_are_refused_with_it(fit: Fit) -> None:
    with pytest.raises(ConfigError, match="device_cache"):
        fit("data_loader.args.device_cache=true", "data_loader.args.num_workers=1")


def test_data_that_begin_epoch_may_change_is_refused(fit: Fit) -> None:
    with (
        temporarily(DATA_LOADERS, Relabelling),
        pytest.raises(ConfigError, match=r"Relabelling\.begin_epoch may change"),
    ):
        fit("data_loader.args.device_cache=true", data_loader={"type": "Relabelling", "args": {"batch_size": 8}})
