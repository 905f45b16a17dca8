"""The trained model of another run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import train
from base.load_run import load_run
from tests.helpers import state
from utils.errors import CheckpointError

Fit = Callable[..., train.Result]


def test_it_has_the_weights_that_a_test_evaluates(fit: Fit) -> None:
    run = fit('trainer.ema={"decay": 0.8}', "trainer.monitor=min val_loss").run_dir
    before = torch.get_rng_state()
    model = load_run(run).model
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for name, value in state(run, "best.pth")["averaged_weights"].items():
        assert torch.equal(model.state_dict()[name], value)


def test_a_run_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such run folder or checkpoint"):
        load_run(tmp_path / "nothing")


def test_a_model_that_has_changed_since_is_told(fit: Fit) -> None:
    run = fit().run_dir
    config = run / "config.json"
    config.write_text(config.read_text().replace('"hidden_features": 5', '"hidden_features": 4'))
    with pytest.raises(CheckpointError, match="do not fit this model"):
        load_run(run)
