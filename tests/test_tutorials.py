"""The systems of the tutorials give the numbers that the tutorials print."""

import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

import train
from base.base_trainer import BaseTrainer
from base.build import build_experiment, build_trainer, build_training
from base.data.sources import TensorSource
from model.lenet import LeNet
from tests.helpers import ROOT, lines, state
from utils.config import load_config

Array = npt.NDArray[np.float64]


def run(name: str, save_dir: Path, *overrides: str) -> train.Result:
    config = ROOT / "configs" / f"{name}.json"
    return train.main(["-c", str(config), f"trainer.save_dir={save_dir}", "runtime.device=cpu", *overrides])


def numpy_losses(x: Array, y: Array, w1: Array, w2: Array, *, rate: float, steps: int) -> list[float]:
    """Gradient descent on the sum of squared errors of y = relu(x w1) w2, gradients derived by hand."""
    losses = []
    for _ in range(steps):
        h = x @ w1  # (64, 100)
        h_relu = np.maximum(h, 0)
        predicted = h_relu @ w2  # (64, 10)
        losses.append(float(((predicted - y) ** 2).sum()))
        grad = 2 * (predicted - y)
        grad_w2 = h_relu.T @ grad
        grad_h = grad @ w2.T
        grad_h[h < 0] = 0
        grad_w1 = x.T @ grad_h
        w1, w2 = w1 - rate * grad_w1, w2 - rate * grad_w2
    return losses


def two_layer_net(dtype: torch.dtype) -> tuple[BaseTrainer, TensorSource]:
    """The two-layer net of the config."""
    loaded = load_config(ROOT / "configs/two_layer_net.json", ["runtime.device=cpu"])
    experiment = build_experiment(loaded)
    experiment.model.to(dtype)
    trainer = build_trainer(loaded, experiment)
    trainer.training = build_training(loaded, experiment)
    trainer.training.batches.checked = True  # no run that would save what the first batch looks like
    source = trainer.training.batches.source
    assert isinstance(source, TensorSource)
    assert isinstance(source.inputs, torch.Tensor)
    assert isinstance(source.targets, torch.Tensor)
    source.inputs, source.targets = source.inputs.to(dtype), source.targets.to(dtype)
    return trainer, source


def five_epochs(trainer: BaseTrainer) -> list[float]:
    """The loss of each of 5 x 100 steps."""
    losses = []
    for _ in range(5):
        steps = trainer.training.batches.load_steps(trainer.remaining_steps())
        losses += [float(trainer.optimizer_step(step)) for step in steps]
        trainer.progress.epoch_steps, trainer.progress.trained = 0, False
    return losses


@pytest.mark.slow
def test_two_layer_net_follows_the_hand_derived_gradients() -> None:
    trainer, source = two_layer_net(torch.float64)
    w1, w2 = (parameter.detach().numpy().T.copy() for parameter in trainer.model.parameters())
    losses = five_epochs(trainer)
    assert isinstance(source.inputs, torch.Tensor)
    assert isinstance(source.targets, torch.Tensor)
    expected = numpy_losses(source.inputs.numpy(), source.targets.numpy(), w1, w2, rate=1e-6, steps=500)
    assert len(losses) == 500
    np.testing.assert_allclose(losses, expected, rtol=1e-7)


@pytest.mark.slow
def test_two_layer_net_falls_as_published(tmp_path: Path) -> None:
    """The published run's losses after 100, 200 ... 500 steps, to a factor of three: the random numbers are others."""
    trainer, _ = two_layer_net(torch.float32)
    losses = five_epochs(trainer)
    assert losses[0] == pytest.approx(2.7e7, rel=0.1)
    for step, published in {100: 239, 200: 0.456, 300: 2.1e-3, 400: 9.3e-5, 500: 2.4e-5}.items():
        assert published / 3 < losses[step - 1] < published * 3, step
    result = run("two_layer_net", tmp_path)
    fallen = [record["loss"] for record in lines(result.run_dir)]
    assert all(later < earlier / 5 for earlier, later in itertools.pairwise(fallen[:4]))
    assert fallen[-1] < 1e-2


@pytest.mark.slow
def test_linear_regression_finds_the_coefficients(tmp_path: Path) -> None:
    result = run("linear_regression", tmp_path)
    weights = state(result.run_dir)["model"]["linear.weight"]
    assert weights.flatten().tolist() == pytest.approx([3, 1, -2], abs=1e-2)


@pytest.mark.slow
def test_lenet_overfits_random_targets(tmp_path: Path) -> None:
    result = run("lenet_random", tmp_path)
    assert result.last["loss"] < 1e-4


@pytest.mark.parametrize(
    ("channels", "kernel", "parameters", "first", "features"),
    [(1, 3, 81_194, (6, 1, 3, 3), 16 * 6 * 6), (3, 5, 62_006, (6, 3, 5, 5), 16 * 5 * 5)],
)
def test_lenet_has_the_tutorials_parameters(
    channels: int, kernel: int, parameters: int, first: tuple[int, ...], features: int
) -> None:
    model = LeNet(in_channels=channels, kernel_size=kernel)  # type: ignore[arg-type]
    assert model.num_parameters() == parameters
    assert len(list(model.parameters())) == 10
    assert next(model.parameters()).shape == first
    assert model.fc1.in_features == features
    assert model(torch.randn(2, channels, 32, 32)).shape == (2, 10)


@pytest.mark.slow
def test_the_tutorials_recipe_learns_small_cifar10(own_cifar10: Path, tmp_path: Path) -> None:
    """Classes that differ in brightness are learnt; at a larger rate, since there are so few steps."""
    overrides = [f"data_loader.args.data_dir={own_cifar10}", "trainer.epochs=30", "--lr=0.01", "trainer.verbosity=0"]
    result = run("cifar10_tutorial", tmp_path, *overrides)
    assert max(record["accuracy"] for record in lines(result.run_dir)) > 0.5
