"""The configs of the template train, with small data in place of images. tests/project has the tests of any project."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from base.base_trainer import BaseTrainer
from base.build import build_experiment, build_trainer, build_training, with_facts
from base.experiment import Outputs
from base.training.observer import Observer
from logger.writers import Writers
from tests.configs import BUNDLED, sound, with_small_data
from tests.helpers import lines
from utils.checkpoint.checkpointer import Checkpointer
from utils.config import load_config
from utils.registry import DATA_LOADERS, LOSSES, METRICS, MODELS, REGISTRIES, TRAINERS


def prepare(path: Path, data: Path) -> BaseTrainer:
    """Everything of a config, built, with small data in place of the real ones."""
    loaded = load_config(path, ["runtime.device=cpu", *with_small_data(path, data)])
    loaded, loader = with_facts(loaded)
    experiment = build_experiment(loaded, loader)
    trainer = build_trainer(loaded, experiment)
    training = build_training(loaded, experiment)
    nowhere = Checkpointer(Path(os.devnull), keep_last=None, warn=experiment.console.warn, main=False)
    trainer.begin(training, Outputs(Writers({}), nowhere, Observer()))
    return trainer


@pytest.mark.parametrize("kind", list(REGISTRIES))
def test_every_component_says_what_it_is(kind: str) -> None:
    own = REGISTRIES[kind].own()
    without = [f"{component.__module__}: {name}" for name, component in own.items() if not component.__doc__]
    assert not without, "these have no docstring, which train.py --list shows:\n" + "\n".join(without)


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.stem)
def test_one_batch_gives_every_parameter_a_gradient(path: Path, own_cifar10: Path) -> None:
    trainer = prepare(path, own_cifar10)
    batch = next(iter(trainer.training.batches.one_pass()))
    result = trainer.train_step(batch.data)
    assert result.loss.shape == ()
    assert torch.isfinite(result.loss)
    assert len(result.outputs) == len(result.targets) == batch.range.size
    for name, parameter in trainer.model.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), f"the gradient of {name} is zero everywhere"


def test_a_config_that_refers_to_facts_of_its_data_is_prepared(tmp_path: Path) -> None:
    config = sound()
    config["model"]["args"]["out_features"] = "${data.num_classes}"
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert prepare(path, tmp_path).experiment.data.facts()["num_classes"] == 3


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.stem)
def test_each_output_depends_on_its_own_sample_only(path: Path, own_cifar10: Path) -> None:
    trainer = prepare(path, own_cifar10)
    inputs, _ = next(iter(trainer.training.batches.one_pass())).data
    trainer.model.eval()
    inputs = inputs.clone().requires_grad_()
    trainer.model(inputs)[0].sum().backward()
    assert inputs.grad[0].any()
    assert not inputs.grad[1:].any()


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.stem)
def test_every_config_trains_for_some_steps(path: Path, own_cifar10: Path, tmp_path: Path) -> None:
    overrides = [f"trainer.save_dir={tmp_path}", "trainer.epochs=2", "trainer.steps_per_epoch=3", "runtime.device=cpu"]
    result = train.main(["-c", str(path), *overrides, *with_small_data(path, own_cifar10)])
    assert result.steps == 6
    assert [record["step"] for record in lines(result.run_dir)] == [3, 6]


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
