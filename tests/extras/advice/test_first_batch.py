"""Warnings about a first batch that runs without an error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import train
from base.base_data_loader import BaseDataLoader
from base.experiment import Experiment
from base.metric import StepResult
from tests.base.test_training import REGRESSION
from tests.base.training.test_evaluated_weights import Frozen
from tests.base.training.test_own_step import StepsForItsProbe
from tests.helpers import Fit, registering, temporarily
from trainer.trainer import Trainer
from utils.registry import DATA_LOADERS, LOSSES, MODELS, TRAINERS
from utils.schema import TrainerConfig

BROADCAST: dict[str, Any] = {
    "data_loader": {
        "type": "RandomTensorLoader",
        "args": {"num_samples": 16, "input_shape": [6], "target_shape": [1], "batch_size": 8},
    },
    "model": {"type": "TwoLayerNet", "args": {"in_features": 6, "hidden_features": 5, "out_features": 1}},
    "loss": None,
    "metrics": [],
}


class Forgetful(Trainer):
    def train_step(self, batch: Any) -> StepResult:
        return self.eval_step(batch)


class Softmaxed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs).softmax(1)  # type: ignore[no-any-return]


class LateTrainer(Trainer):
    """Replaces a layer after the optimizer was made, and has a layer of its own."""

    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        super().__init__(experiment, settings)
        experiment.model.second = nn.Linear(5, 3)
        self.scale = nn.Linear(3, 3)

    def train_step(self, batch: Any) -> StepResult:
        inputs, targets = batch
        outputs = self.scale(self.model(inputs))
        loss = self.criterion(outputs, targets)
        self.backward(loss)
        return StepResult(loss, outputs, targets)


class ListTrainer(LateTrainer):
    """Keeps its layer in a list."""

    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        super().__init__(experiment, settings)
        self.scales = [self.scale]
        del self.scale

    def train_step(self, batch: Any) -> StepResult:
        inputs, targets = batch
        outputs = self.scales[0](self.model(inputs))
        loss = self.criterion(outputs, targets)
        self.backward(loss)
        return StepResult(loss, outputs, targets)


class Weighted(Trainer):
    """Keeps the weight of its loss as an attribute, and inputs with a gradient, which are not weights."""

    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        super().__init__(experiment, settings)
        self.weight = nn.Parameter(torch.zeros(()))

    def train_step(self, batch: Any) -> StepResult:
        inputs, targets = batch
        self.inputs = inputs.clone().requires_grad_()
        outputs = self.model(self.inputs)
        loss = (-self.weight).exp() * self.criterion(outputs, targets) + self.weight
        self.backward(loss)
        return StepResult(loss, outputs, targets)


_registered = registering(
    (TRAINERS, Forgetful, LateTrainer, ListTrainer, StepsForItsProbe, Weighted), (MODELS, Frozen, Softmaxed)
)


def test_a_step_without_gradients_is_told(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit("trainer.type=Forgetful")
    assert (
        "Forgetful.train_step computes no gradients in its first step; unless later ones do, nothing is trained"
        in capsys.readouterr().err
    )


def test_a_monitor_in_the_wrong_direction(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit("trainer.monitor=max val_loss")
    assert 'the epoch with the largest val_loss is the best; did you mean "min val_loss"?' in capsys.readouterr().err
    fit("trainer.monitor=min accuracy", metrics=["accuracy"])
    assert 'the smallest accuracy is the best; did you mean "max accuracy"?' in capsys.readouterr().err
    fit("trainer.monitor=max val_accuracy", metrics=["accuracy"])
    assert "did you mean" not in capsys.readouterr().err


def test_more_workers_than_cpus_are_one_warning(
    fit: Fit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extras.advice.advice.cpu_count", lambda: 1)
    monkeypatch.setattr("torch.utils.data.dataloader.DataLoader.check_worker_number_rationality", pytest.fail)
    fit("data_loader.args.num_workers=2", "trainer.epochs=1")
    assert capsys.readouterr().err.count("data_loader.args.num_workers=2 on 1 CPU: more workers than CPUs") == 1


def test_parameters_that_no_optimizer_has_are_named(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit("trainer.type=LateTrainer", model={"type": "Frozen"})
    expected = (
        "not in any optimizer, so never changed: model.second.weight, model.second.bias, scale.weight, scale.bias."
    )
    assert expected in capsys.readouterr().err
    fit("trainer.type=ListTrainer", model={"type": "Frozen"})
    assert expected.replace("scale", "scales") in capsys.readouterr().err
    fit("trainer.type=Weighted")
    assert "not in any optimizer, so never changed: weight." in capsys.readouterr().err
    fit(model={"type": "Frozen"})
    assert "not in any optimizer" not in capsys.readouterr().err


def test_parameters_that_the_trainer_steps_itself_are_not_named(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit("trainer.type=StepsForItsProbe")
    assert "never change" not in capsys.readouterr().err


def test_class_names_that_are_too_few_are_warned_about(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("data_loader.random_tensor.RandomTensorLoader.class_names", ["cat", "dog"])
    fit()
    assert "the data loader has 2 class_names, but a target is class 2, counted from 0" in capsys.readouterr().err


def test_a_softmax_before_cross_entropy_is_warned_about(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit(model="Softmaxed")
    assert capsys.readouterr().err.count("the model's outputs are probabilities, but cross_entropy applies a") == 1
    fit(model="Softmaxed", loss="MultiMarginLoss")
    fit()
    assert "probabilities" not in capsys.readouterr().err


def test_numbers_under_cross_entropy_are_reported_once(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit(**{**REGRESSION, "metrics": []}, loss="cross_entropy")
    assert capsys.readouterr().err.count("cross_entropy expects class probabilities") == 1


class Nodes(Dataset[Any]):
    """Graphs of 1 to 4 nodes: inputs (N, 6), targets (N, 1)."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        nodes = torch.ones(1 + index % 4, 6)
        return nodes, nodes[:, :1]


class NodeLoader(BaseDataLoader):
    def training_data(self, *, augment: bool) -> Dataset[Any]:
        return Nodes()

    def test_data(self) -> Dataset[Any]:
        return Nodes()

    def collate(self, samples: list[Any]) -> Any:
        return tuple(map(torch.cat, zip(*samples, strict=True)))


class CountedMSE(nn.MSELoss):
    def count(self, outputs: Tensor, targets: Tensor) -> int:
        return len(targets)


SUM_OF_SQUARES = {"type": "mse_loss", "args": {"reduction": "sum"}}


@pytest.mark.parametrize(("loss", "warns"), [("mse_loss", True), ("CountedMSE", False), (SUM_OF_SQUARES, False)])
def test_a_mean_over_rows_that_are_not_samples_is_warned_about(
    fit: Fit, write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str], loss: Any, warns: bool
) -> None:
    data = {"type": "NodeLoader", "args": {"batch_size": 4, "shuffle": False}}  # 10 rows
    config = {**BROADCAST, "data_loader": data, "loss": loss}
    with temporarily(DATA_LOADERS, NodeLoader), temporarily(LOSSES, CountedMSE):
        fit("trainer.epochs=1", "trainer.monitor=null", **config)
        assert ("outputs and targets have 10 rows for 4 samples" in capsys.readouterr().err) is warns
        train.main(["--check", "-c", str(write_config(**config, trainer={"epochs": 1}))])
        assert ("10 rows for 4 samples" in " ".join(capsys.readouterr().out.split())) is warns


def test_an_accuracy_of_ignored_targets_is_warned_about(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Trainer.train_step

    def ignoring(self: Trainer, batch: Any) -> StepResult:
        targets = batch[1].clone()
        targets[0] = -100
        return step(self, (batch[0], targets))

    monkeypatch.setattr(Trainer, "train_step", ignoring)
    fit("trainer.epochs=1", "trainer.monitor=null", metrics=["accuracy"])
    assert "accuracy counts ignored targets (below 0) as mistakes" in capsys.readouterr().err


class Flat(Trainer):
    """Computes its own loss, of targets of shape (B,)."""

    def train_step(self, batch: Any) -> StepResult:
        inputs, targets = batch
        outputs = self.model(inputs)
        loss = (outputs - targets[:, 0]).square().mean()
        self.backward(loss)
        return StepResult(loss, outputs, targets[:, 0])

    eval_step = train_step


class Matching(Trainer):
    def train_step(self, batch: Any) -> StepResult:
        inputs, targets = batch
        outputs = self.model(inputs)
        loss = (outputs - targets).square().mean()
        self.backward(loss)
        return StepResult(loss, outputs, targets)


@pytest.mark.parametrize("kind", [Flat, Matching])
def test_outputs_and_targets_that_a_loss_of_ones_own_would_broadcast(
    fit: Fit, capsys: pytest.CaptureFixture[str], kind: type[Trainer]
) -> None:
    with temporarily(TRAINERS, kind):
        fit("trainer.epochs=1", "trainer.monitor=null", f"trainer.type={kind.__name__}", **BROADCAST)
    says = "outputs have shape (8, 1) and targets (8,): a loss that subtracts them compares each with every other"
    assert (says in capsys.readouterr().err) is (kind is Flat)
