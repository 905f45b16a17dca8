"""``train.py --check`` tries what begins the second epoch, which would otherwise fail after the first."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_loader.random_tensor import RandomTensorLoader
from extras.check import preflight
from tests.helpers import temporarily
from trainer.trainer import Trainer
from utils.config import load_config
from utils.registry import DATA_LOADERS, TRAINERS


class Late(Trainer):
    """Uses a name that does not exist, from the second epoch on."""

    def begin_epoch(self, epoch: int) -> None:
        if epoch > 1:
            self.weight = self.missing_name  # type: ignore[attr-defined]


class Sound(Trainer):
    def begin_epoch(self, epoch: int) -> None:
        self.weight = 1 / epoch


class TooFew(RandomTensorLoader):
    """Weights of the wrong shape, from the second epoch on."""

    epoch = 1

    def begin_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def sample_weights(self) -> Tensor:
        return torch.ones(self.num_samples if self.epoch == 1 else 3)


SHORT = "FAIL  TooFew.sample_weights() returned shape (3,) for 50 training samples; expected (50,)"


@pytest.mark.parametrize(
    ("trainer", "loader", "problem"),
    [
        ("Late", "RandomTensorLoader", "note  AttributeError: 'Late' object has no attribute 'missing_name'"),
        (
            "Sound",
            "TooFew",
            SHORT,
        ),
        ("Sound", "RandomTensorLoader", ""),
    ],
)
def test_a_second_epoch_is_begun(
    write_config: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    trainer: str,
    loader: str,
    problem: str,
) -> None:
    args: dict[str, Any] = {"num_samples": 50, "input_shape": [6], "num_classes": 3, "batch_size": 8}
    with temporarily(TRAINERS, Late, Sound), temporarily(DATA_LOADERS, TooFew):
        path = write_config(data_loader={"type": loader, "args": args}, trainer={"type": trainer})
        status = preflight(load_config(path))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("second epoch")]
    assert lines == [f"second epoch  {problem}"] * bool(problem)
    assert status == ("FAIL" in problem)
