"""A data set that is kept on the device gives the batches that it gives otherwise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from base.build import build_experiment, build_training
from base.data.batches import Batches
from base.data.device_cache import DeviceCache
from base.data.sample_random import SampleRandom
from base.data.sample_source import as_source
from base.data.sources import TensorSource
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


class Relabelled(RandomTensorLoader):
    """Changes its targets between epochs, in memory: those it made, or those of the source that it returned."""

    made: TensorSource | None = None

    def training_data(self, *, augment: bool) -> TensorSource:
        self.made = self.made or super().training_data(augment=augment)
        return TensorSource(self.made.inputs, self.made.targets)

    def begin_epoch(self, epoch: int) -> None:
        assert self.made is not None
        cast("torch.Tensor", self.made.targets).fill_(100.0 * (epoch - 1))


class RelabelledSource(Relabelled):
    def training_data(self, *, augment: bool) -> TensorSource:
        self.made = self.made or super().training_data(augment=augment)
        return self.made


class Once(RelabelledSource):
    """In the second epoch alone."""

    def begin_epoch(self, epoch: int) -> None:
        if epoch == 2:
            super().begin_epoch(epoch)


class Replaced(RelabelledSource):
    def begin_epoch(self, epoch: int) -> None:
        assert self.made is not None
        self.made.targets = torch.full((16, 2), 100.0 * (epoch - 1))


class ByNumPy(Relabelled):
    def begin_epoch(self, epoch: int) -> None:
        assert self.made is not None
        cast("torch.Tensor", self.made.targets).numpy()[:] = 100.0 * (epoch - 1)


ARGUMENTS = {"num_samples": 16, "input_shape": [6], "target_shape": [2], "batch_size": 8}
KEYS: dict[str, Any] = {
    "data_loader": {"type": "RandomTensorLoader", "args": ARGUMENTS},
    "model": {"type": "TwoLayerNet", "args": {"in_features": 6, "hidden_features": 5, "out_features": 2}},
    "loss": "mse_loss",
    "metrics": [],
}


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose tensors are copies, without being another one."""
    monkeypatch.setattr(DeviceCache, "_move", lambda self, tensor, device: copied(self, tensor))


@pytest.mark.usefixtures("copies")
@pytest.mark.parametrize("order", [{}, {"shuffle": False, "batch_size": 16}])
@pytest.mark.parametrize("loader", [Relabelled, RelabelledSource, Once, Replaced, ByNumPy])
def test_what_begin_epoch_changes_counts(fit: Fit, loader: type[Relabelled], order: dict[str, Any]) -> None:
    keys = {**KEYS, "data_loader": {"type": loader.__name__, "args": {**ARGUMENTS, **order}}}
    with temporarily(DATA_LOADERS, loader):
        plain, kept = (
            fit("trainer.monitor=null", "trainer.epochs=3", f"data_loader.args.device_cache={cached}", **keys).run_dir
            for cached in ("false", "true")
        )
    losses = [line["loss"] for line in lines(kept)]
    assert losses == [line["loss"] for line in lines(plain)]
    assert losses[1] > 1000


class Warming(Trainer):
    """Changes something else between epochs."""

    def begin_epoch(self, epoch: int) -> None:
        self.weight = 1 / epoch


@pytest.mark.usefixtures("copies")
def test_data_that_stays_is_not_taken_for_changed(fit: Fit) -> None:
    """Views of the data count its changes."""
    with temporarily(TRAINERS, Warming):
        result = fit(
            *("data_loader.args.device_cache=true", "data_loader.args.shuffle=false", "trainer.epochs=3"),
            *("trainer.type=Warming", "trainer.monitor=null"),
            **KEYS,
        )
    assert result.steps == 6


def copied(cache: DeviceCache, tensor: torch.Tensor) -> torch.Tensor:
    key = CPU, id(tensor)
    if key not in cache._copies:
        copy = tensor.clone()
        cache._copies[key] = tensor, copy, copy._version
    return cache._copies[key][1]


def test_what_is_not_in_memory_is_refused() -> None:
    with pytest.raises(DataError, match="only tensors in memory"):
        DeviceCache().keep(as_source([1, 2, 3]), torch.device("cpu"))  # type: ignore[arg-type]


def test_worker_processes_are_refused_with_it(fit: Fit) -> None:
    with pytest.raises(ConfigError, match="device_cache"):
        fit("data_loader.args.device_cache=true", "data_loader.args.num_workers=1")
