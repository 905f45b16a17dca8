"""``train.py --check`` shows the learning rates of the whole run, and finds a schedule that ends before it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from extras.check import preflight, schedule_checks
from tests.base.training.test_schedulers import Table
from tests.configs import sound
from tests.helpers import temporarily
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


def test_a_warm_up_from_0_is_left_out_of_the_steps_that_are_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    schedule = {"type": "Table", "args": {"rates": [0.0, 1.0, 1.0]}}
    settings = {"save_dir": str(tmp_path), "epochs": 3, "monitor": "min loss"}
    path.write_text(json.dumps({**sound(), "lr_scheduler": schedule, "trainer": settings}))
    with temporarily(SCHEDULERS, Table):
        assert preflight(load_config(path)) == 0
    report = capsys.readouterr().out
    [line] = [line for line in report.splitlines() if line.startswith("optimizer")]
    start, end = line.rpartition("loss ")[2].split(" to ")
    assert start != end
    assert "Table: lr 0 in the first" in report
