"""``--check`` notes what a trainer remembers or draws from, unless its checkpoints have it."""

import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from base.experiment import Experiment
from base.metric import StepResult
from extras.check import preflight
from tests.helpers import temporarily
from trainer.trainer import Trainer
from utils.config import load_config
from utils.errors import UserError
from utils.registry import TRAINERS
from utils.schema import TrainerConfig


class Recalling(Trainer):
    """Fills buffers and draws from generators of its own.

    saved: what stateful() returns: nothing of it, all of it, or a part without load_state_dict().
    """

    def __init__(self, experiment: Experiment, settings: TrainerConfig, *, saved: str) -> None:
        super().__init__(experiment, settings)
        self.saved = saved
        self.recent = deque[Tensor](maxlen=20)
        self.counts = np.zeros(3)
        self.number = 0
        self.python, self.numpy = random.Random(0), np.random.default_rng(0)
        self.torch = torch.Generator().manual_seed(0)
        self.unused, self.kind = random.Random(0), nn.Linear

    def train_step(self, batch: Any) -> StepResult:
        self.recent.extend(batch[0])
        self.number += self.python.randrange(1, 3)
        self.counts += self.numpy.random() + float(torch.rand((), generator=self.torch))
        return super().train_step(batch)

    def stateful(self) -> dict[str, Any]:
        own: dict[str, dict[str, Any]] = {"nothing": {}, "all": {"own": _Own(self)}, "a deque": {"recent": self.recent}}
        return {**super().stateful(), **own[self.saved]}


class _Own:
    def __init__(self, trainer: Recalling) -> None:
        self.trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        trainer = self.trainer
        numpy: dict[str, Any] = dict(trainer.numpy.bit_generator.state)
        return {
            "recent": list(trainer.recent),
            "counts": trainer.counts,
            "number": trainer.number,
            "python": trainer.python.getstate(),
            "numpy": {**numpy, "state": {name: str(number) for name, number in numpy["state"].items()}},
            "torch": trainer.torch.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


@pytest.fixture
def check(write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    def run(saved: str) -> str:
        config = write_config(trainer={"type": "Recalling", "args": {"saved": saved}})
        with temporarily(TRAINERS, Recalling):
            preflight(load_config(config))
        return capsys.readouterr().out

    return run


def test_buffers_and_generators_in_no_checkpoint_are_noted(check: Callable[[str], str]) -> None:
    assert "but are in no checkpoint: recent, counts, number, python, numpy, torch\n" in check("nothing")


def test_buffers_and_generators_in_checkpoints_are_not_noted(check: Callable[[str], str]) -> None:
    assert "exactness" not in check("all")


def test_a_part_that_cannot_be_loaded_is_refused_as_in_training(check: Callable[[str], str]) -> None:
    with pytest.raises(UserError, match=r"recent has no load_state_dict\(\)"):
        check("a deque")
