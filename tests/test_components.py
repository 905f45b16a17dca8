"""Tests that run over everything registered and over every config: a new component is tested by existing."""

from pathlib import Path
from typing import Any

import pytest
import torch

import train
from base.base_trainer import BaseTrainer
from base.build import build_experiment, build_trainer, build_training
from tests.conftest import CONFIGS
from tests.helpers import ROOT, lines
from utils.config import load_config
from utils.registry import DATA_LOADERS, LOSSES, METRICS, MODELS, REGISTRIES, TRAINERS
from utils.user_code import where

NAMES = [str(path.relative_to(ROOT)) for path in CONFIGS]


def prepare(path: Path, data: Path) -> BaseTrainer:
    """Everything of a config, built, with small data in place of the real ones."""
    raw = load_config(path).config
    overrides = ["runtime.device=cpu"]
    if "data_dir" in DATA_LOADERS.parameters(raw.data_loader.type):
        overrides.append(f"data_loader.args.data_dir={data}")
    loaded = load_config(path, overrides)
    experiment = build_experiment(loaded)
    trainer = build_trainer(loaded, experiment)
    trainer.training = build_training(loaded, experiment)
    return trainer


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_one_batch_gives_every_parameter_a_gradient(path: Path, own_cifar10: Path) -> None:
    trainer = prepare(path, own_cifar10)
    micro_batch = next(iter(trainer.training.batches.one_pass()))
    result = trainer.train_step(micro_batch.data, 1.0)
    assert result.loss.shape == ()
    assert torch.isfinite(result.loss)
    assert len(result.outputs) == len(result.targets) == micro_batch.range.size
    for name, parameter in trainer.model.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), f"the gradient of {name} is zero everywhere"


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_each_output_depends_on_its_own_sample_only(path: Path, own_cifar10: Path) -> None:
    trainer = prepare(path, own_cifar10)
    inputs, _ = next(iter(trainer.training.batches.one_pass())).data
    trainer.model.eval()
    inputs = inputs.clone().requires_grad_()
    trainer.model(inputs)[0].sum().backward()
    assert inputs.grad[0].any()
    assert not inputs.grad[1:].any()


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_every_config_trains_for_some_steps(path: Path, own_cifar10: Path, tmp_path: Path) -> None:
    raw = load_config(path).config
    overrides = [f"trainer.save_dir={tmp_path}", "trainer.epochs=2", "trainer.steps_per_epoch=3", "runtime.device=cpu"]
    if "data_dir" in DATA_LOADERS.parameters(raw.data_loader.type):
        overrides.append(f"data_loader.args.data_dir={own_cifar10}")
    result = train.main(["-c", str(path), *overrides])
    assert result.steps == 6
    assert [record["step"] for record in lines(result.run_dir)] == [3, 6]


@pytest.mark.parametrize("kind", list(REGISTRIES))
def test_what_we_register_says_what_it_is(kind: str) -> None:
    for name, component in REGISTRIES[kind].own().items():
        assert component.__doc__, f"{where(component)}: {name} has no docstring"


def test_each_kind_has_what_the_tutorials_need() -> None:
    expected: dict[str, Any] = {
        "data loaders": (DATA_LOADERS, {"RandomTensorLoader", "CIFAR10Loader", "ImageFolderLoader"}),
        "models": (MODELS, {"TwoLayerNet", "LeNet", "LinearRegression"}),
        "losses": (LOSSES, {"cross_entropy", "mse_loss"}),
        "metrics": (METRICS, {"accuracy", "top_k_accuracy", "mean_squared_error"}),
        "trainers": (TRAINERS, {"Trainer"}),
    }
    for kind, (registry, names) in expected.items():
        assert names <= registry.own().keys(), kind
