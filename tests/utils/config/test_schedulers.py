"""Which schedulers follow the monitored value, and which lengths contradict that of the run."""

from typing import Any

import pytest
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, ReduceLROnPlateau

from tests.helpers import temporarily
from utils.config.schedulers import follows_monitor, length_conflict
from utils.registry import SCHEDULERS


class Plateau(ReduceLROnPlateau):
    pass


def constant(optimizer: Optimizer) -> ConstantLR:
    return ConstantLR(optimizer)


def test_a_plateau_or_a_subclass_of_it_follows_the_monitored_value() -> None:
    with temporarily(SCHEDULERS, Plateau, constant):
        names = ("ReduceLROnPlateau", "Plateau", "constant", "StepLR")
        assert [name for name in names if follows_monitor(name)] == ["ReduceLROnPlateau", "Plateau"]


@pytest.mark.parametrize(
    ("name", "args", "key"),
    [
        ("OneCycleLR", {"total_steps": 9}, "total_steps"),
        ("OneCycleLR", {"total_steps": 10}, None),
        ("OneCycleLR", {"epochs": 3, "steps_per_epoch": 3}, "steps_per_epoch"),
        ("OneCycleLR", {}, None),
        ("Own", {"total_steps": 9}, None),
        ("MultiStepLR", {"milestones": [3, 3]}, None),
        ("SequentialLR", {"milestones": [3, 3], "schedulers": ["a", "b", "c"]}, "milestones"),
    ],
)
def test_a_length_that_is_not_that_of_the_run(name: str, args: dict[str, Any], key: str | None) -> None:
    conflict = length_conflict(name, args, ("lr_scheduler", "args"), length=10)
    assert (conflict and conflict.path) == (key and ("lr_scheduler", "args", key))
