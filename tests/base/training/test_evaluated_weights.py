"""What is validated is what is tested, and what trains is what the optimizer has."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import train
from base.base_model import BaseModel
from base.metric import StepResult
from tests.averaged import AveragedTrainer
from tests.conftest import load_script
from tests.helpers import Fit, lines, registering, state
from trainer.trainer import Trainer
from utils.registry import MODELS, TRAINERS


class Thawing(Trainer):
    """Trains the first layer from the second epoch on, which is frozen in the model's constructor."""

    def train_step(self, batch: Any) -> StepResult:
        self.model.get_submodule("first").requires_grad_(self.progress.epochs >= 1)
        return super().train_step(batch)


class Frozen(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5).requires_grad_(False), nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Any:
        return self.second(self.first(inputs))


_registered = registering((TRAINERS, AveragedTrainer, Thawing), (MODELS, Frozen))


@pytest.mark.slow
def test_what_is_validated_is_what_is_tested(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test data are made those of the validation: test.py gives the very number that chose the best checkpoint."""
    result = fit("trainer.type=AveragedTrainer", "trainer.monitor=min val_loss", "--lr", "0.5", "trainer.epochs=3")
    monkeypatch.setattr("data_loader.random_tensor.RandomTensorLoader.test", lambda self: self.validation())
    tested = load_script("test").main(["-r", str(result.run_dir)])
    assert tested["loss"] == result.best
    best = state(result.run_dir, "best.pth")
    assert not torch.equal(best["ema"]["module.fc1.weight"], best["model"]["fc1.weight"])


def test_averaged_weights_resume_exactly(fit: Fit) -> None:
    whole = fit("trainer.type=AveragedTrainer", "trainer.epochs=3")
    short = fit("trainer.type=AveragedTrainer", "trainer.epochs=1")
    train.main(["-r", str(short.run_dir), "trainer.epochs=3"])
    assert lines(short.run_dir) == lines(whole.run_dir)
    one, other = (state(run.run_dir)["ema"] for run in (whole, short))
    assert all(torch.equal(one[name], other[name]) for name in one)


def weights(run: Path) -> Tensor:
    found: Tensor = state(run)["model"]["first.weight"]
    return found


def test_a_layer_that_is_thawed_later_trains(fit: Fit) -> None:
    keys = {"model": {"type": "Frozen"}}
    frozen, thawed = (fit("trainer.type=Thawing", f"trainer.epochs={epochs}", **keys).run_dir for epochs in (1, 2))
    initial = fit("trainer.epochs=1", **keys).run_dir
    assert torch.equal(weights(frozen), weights(initial))
    assert not torch.equal(weights(thawed), weights(initial))
