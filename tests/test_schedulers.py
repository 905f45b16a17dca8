"""Schedulers from a config: what is left out follows from the length of the run."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, OneCycleLR, SequentialLR

from utils.schedulers import contradiction, make_scheduler


def made(entry: Any, length: int) -> Any:
    def build(path: Any, name: str, make: Callable[[], Any]) -> Any:
        return make()

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
    return make_scheduler(entry, optimizer, length, build, ("lr_scheduler",))


def test_the_length_of_the_run_is_filled_in() -> None:
    assert made("CosineAnnealingLR", 12).T_max == 12
    assert made({"type": "CosineAnnealingLR", "args": {"T_max": 5}}, 12).T_max == 5
    cycle = made({"type": "OneCycleLR", "args": {"max_lr": 1.0, "epochs": None}}, 12)
    assert isinstance(cycle, OneCycleLR)
    assert cycle.total_steps == 12
    assert (
        made({"type": "OneCycleLR", "args": {"max_lr": 1.0, "epochs": 3, "steps_per_epoch": 4}}, 12).total_steps == 12
    )


def test_the_parts_of_a_sequence_last_until_the_next_milestone() -> None:
    entry = {
        "type": "SequentialLR",
        "args": {"schedulers": ["ConstantLR", "CosineAnnealingLR", "CosineAnnealingLR"], "milestones": [2, 9]},
    }
    sequence = made(entry, 12)
    assert isinstance(sequence, SequentialLR)
    lengths = [part.T_max for part in sequence._schedulers if isinstance(part, CosineAnnealingLR)]
    assert lengths == [7, 3]
    chain = made({"type": "ChainedScheduler", "args": {"schedulers": ["CosineAnnealingLR", "ConstantLR"]}}, 12)
    assert isinstance(chain, ChainedScheduler)


@pytest.mark.parametrize(
    ("args", "key"),
    [
        ({}, None),
        ({"total_steps": 8}, None),
        ({"total_steps": None, "epochs": None}, None),
        ({"epochs": 2, "steps_per_epoch": 4}, None),
        ({"total_steps": 9}, "total_steps"),
        ({"epochs": 2, "steps_per_epoch": 5}, "steps_per_epoch"),
    ],
)
def test_a_length_that_is_not_the_runs(args: dict[str, Any], key: str | None) -> None:
    problem = contradiction({"type": "OneCycleLR", "args": {"max_lr": 1.0, **args}}, 8)
    assert (problem and problem.path[-1]) == key
