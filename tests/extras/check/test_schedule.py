"""``train.py --check`` shows the learning rates of the whole run, and finds a schedule that ends before it."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn
from torch.optim import SGD, Adam, Muon
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from base.training.schedule import Schedule, ScheduledOptimizer
from extras.check import preflight, schedule_checks
from tests.base.training.test_schedulers import Table
from tests.configs import sound
from tests.helpers import same, temporarily
from utils.config import load_config
from utils.registry import SCHEDULERS

Check = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """Status of a check of a run of 11 epochs of 5 steps, and its lines about schedules."""

    def run(schedule: Any, **keys: Any) -> tuple[int, list[str]]:
        path = tmp_path / "config.json"
        settings = {"save_dir": str(tmp_path), "epochs": 11, "steps_per_epoch": 5, "monitor": "min loss"}
        path.write_text(json.dumps({**sound(), "lr_scheduler": schedule, "trainer": settings, **keys}))
        status = preflight(load_config(path))
        lines = capsys.readouterr().out.splitlines()
        return status, [line.removeprefix("schedule      ") for line in lines if line.startswith("schedule")]

    return run


@pytest.mark.parametrize(
    ("schedule", "line"),
    [
        (None, ""),
        ("ReduceLROnPlateau", ""),
        ("CosineAnnealingLR", "ok    CosineAnnealingLR: lr 0.1 in the first epoch, 0.002025 in the last of 11"),
        (
            {"type": "CosineAnnealingLR", "args": {"T_max": 5}},
            "ok    CosineAnnealingLR: lr 0.1 in the first epoch, 0 in epoch 6, 0.1 in the last of 11",
        ),
        (
            {"type": "OneCycleLR", "args": {"max_lr": 0.5}, "interval": "step"},
            "ok    OneCycleLR: lr 0.02 in the first step, 0.4998 in step 17, 2e-06 in the last of 55",
        ),
        (
            {"type": "Table", "args": {"rates": [1.0, 0.5, 0.25]}},
            "FAIL  Table failed after epoch 3 of 11. Does it count on fewer epochs than the run has?",
        ),
    ],
)
def test_the_rates_of_a_run_are_shown(check: Check, schedule: Any, line: str) -> None:
    optimizer = {"type": "SGD", "args": {"lr": 0.1, "momentum": 0.9}}
    with temporarily(SCHEDULERS, Table):
        status, lines = check(schedule, optimizer=optimizer)
    assert lines == [line] * bool(line)
    assert status == ("FAIL" in line)


def test_of_several_groups_that_with_the_highest_rate_is_shown(check: Check) -> None:
    optimizer = {"type": "SGD", "args": {"lr": 0.1}, "groups": [{"params": ["*.bias"], "args": {"lr": 0.3}}]}
    _, [line] = check("LinearLR", optimizer=optimizer)
    assert line == "ok    LinearLR: lr of bias 0.1 in the first epoch, 0.3 in the last of 11"


def test_a_long_schedule_is_not_computed(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule_checks, "MOST_STEPS", 10)
    assert check("CosineAnnealingLR", optimizer={"type": "SGD", "args": {"lr": 0.1}}) == (0, [])


@pytest.mark.parametrize("kind", [SGD, Muon, Adam])
def test_optimizer_and_schedule_stay_as_they_were(kind: Any) -> None:
    weights = nn.Linear(2, 1, bias=False)
    optimizer = kind(weights.parameters(), lr=0.1)
    schedule = Schedule(
        optimizer,
        lambda each: OneCycleLR(each, 0.5, total_steps=9, cycle_momentum=False),
        per_step=True,
        steps_per_epoch=9,
        length=9,
    )
    scheduled = ScheduledOptimizer(optimizer, schedule, list(weights.parameters()))
    training: Any = SimpleNamespace(optimizers={"": scheduled})
    before = copy.deepcopy((optimizer.param_groups, optimizer.defaults, vars(schedule.scheduler)["last_epoch"]))
    assert len(list(schedule_checks.check_schedules(training))) == 1
    assert same((optimizer.param_groups, optimizer.defaults, vars(schedule.scheduler)["last_epoch"]), before)
    assert schedule.scheduler_steps == 0


class Wrapping(SGD):
    """Has the groups of another optimizer, as Lookahead does."""

    inner: SGD | None = None

    @property
    def param_groups(self) -> Any:
        return self.inner.param_groups if self.inner else vars(self)["param_groups"]

    @param_groups.setter
    def param_groups(self, groups: Any) -> None:
        vars(self)["param_groups"] = groups


def test_an_optimizer_that_wraps_another_is_left_alone() -> None:
    weights = nn.Linear(2, 1)
    optimizer = Wrapping(weights.parameters(), 0.1)
    optimizer.inner = SGD(weights.parameters(), 0.1)
    schedule = Schedule(optimizer, lambda each: StepLR(each, 1), per_step=True, steps_per_epoch=9, length=9)
    training: Any = SimpleNamespace(optimizers={"": ScheduledOptimizer(optimizer, schedule, [])})
    assert list(schedule_checks.check_schedules(training)) == []
    assert schedule.rates() == [0.1]
