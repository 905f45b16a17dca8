"""Schedulers from a config: what is left out follows from the length of the run."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    LambdaLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
)

import train
from tests.helpers import equal, resumed, state, temporarily
from utils.config.schedulers import length_conflict, make_scheduler
from utils.errors import ConfigError, UserError
from utils.registry import SCHEDULERS
from utils.schema import KeyPath, SchedulerConfig
from utils.text import dotted


def build(path: KeyPath, name: str, args: dict[str, Any]) -> Any:
    return SCHEDULERS[name](**args)


def made(entry: Any, length: int) -> Any:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
    return make_scheduler(entry, optimizer, length, build, ("lr_scheduler",))


def test_a_plateau_follows_the_monitor(fit: Callable[..., train.Result]) -> None:
    """Every epoch's accuracy is an improvement under "max", and none is under "min"."""
    plateau = {"type": "ReduceLROnPlateau", "args": {"patience": 0, "threshold": -0.9, "factor": 0.5}}
    up = fit("trainer.monitor=max val_accuracy", "trainer.epochs=4", lr_scheduler=plateau)
    assert up.last["lr"] == 0.1
    down = fit(
        "trainer.monitor=min val_accuracy",
        "trainer.epochs=4",
        "lr_scheduler.args.threshold=0.99",
        lr_scheduler=plateau,
    )
    assert down.last["lr"] == pytest.approx(0.1 / 4)


def test_a_plateau_cannot_contradict_the_monitor(fit: Callable[..., train.Result]) -> None:
    plateau = {"type": "ReduceLROnPlateau", "args": {"mode": "min"}}
    with pytest.raises(ConfigError, match=r'lr_scheduler.args.mode: contradicts trainer.monitor.*"max val_accuracy"'):
        fit("trainer.monitor=max val_accuracy", lr_scheduler=plateau)
    fit("trainer.monitor=min val_loss", "trainer.epochs=1", lr_scheduler=plateau)


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
    scheduler = SchedulerConfig(type="OneCycleLR", args={"max_lr": 1.0, **args})
    problem = length_conflict(scheduler.type, scheduler.args, ("lr_scheduler", "args"), 8)
    assert (problem and problem.path[-1]) == key


@pytest.mark.parametrize(
    ("args", "milestones", "says"),
    [
        ({}, [3], ""),
        ({"total_steps": 5}, [3], ""),
        (
            {"total_steps": 4},
            [3],
            "1.args.total_steps: OneCycleLR is set to 4 steps, but its part of the run has 5",
        ),
        ({}, [3, 3], "milestones: should increase"),
        ({}, [0], "milestones: should increase from 1 on"),
    ],
)
def test_the_length_of_a_part_that_is_not_its_own(args: dict[str, Any], milestones: list[int], says: str) -> None:
    parts = ["ConstantLR", {"type": "OneCycleLR", "args": {"max_lr": 1.0, **args}}]
    scheduler = SchedulerConfig(type="SequentialLR", args={"schedulers": parts, "milestones": milestones})
    problem = length_conflict(scheduler.type, scheduler.args, ("lr_scheduler", "args"), 8)
    assert says in (f"{dotted(problem.path)}: {problem.message}" if problem else "")
    assert bool(says) == bool(problem)


class Chain(SequentialLR):
    """Switches after the first epoch, unlike torch's with its own arguments."""

    def __init__(self, optimizer: Optimizer, *, schedulers: list[LRScheduler]) -> None:
        super().__init__(optimizer, schedulers, milestones=[1])


def test_a_scheduler_of_ones_own_may_be_made_of_others(fit: Callable[..., Any]) -> None:
    parts = [{"type": "ConstantLR", "args": {"factor": 0.5}}, {"type": "StepLR", "args": {"step_size": 1}}]
    chain = {"type": "Chain", "args": {"schedulers": parts}}
    with temporarily(SCHEDULERS, Chain):
        assert fit("trainer.epochs=3", lr_scheduler=chain).last["lr"] == pytest.approx(0.01)
        with pytest.raises(ConfigError, match=r'lr_scheduler\.args\.schedulers\.0: unknown scheduler "StepLr"'):
            fit('lr_scheduler.args.schedulers=["StepLr"]', lr_scheduler=chain)


def test_a_length_that_is_not_the_runs_is_located(fit: Callable[..., Any]) -> None:
    cycle = {"type": "OneCycleLR", "args": {"max_lr": 0.05, "total_steps": 100}, "interval": "step"}
    says = r"config.json:\d+:\d+: lr_scheduler.args.total_steps: OneCycleLR is set to 100 steps, but the run has 8 with"
    with pytest.raises(ConfigError, match=says):
        fit("trainer.epochs=2", "trainer.steps_per_epoch=4", lr_scheduler=cycle)


class Poly(LambdaLR):
    """(1 - step / length)^power, which is complex beyond its length, or negative with a power of 1."""

    def __init__(self, optimizer: Optimizer, *, length: int, power: float) -> None:
        super().__init__(optimizer, lambda step: (1 - step / length) ** power)


@pytest.mark.parametrize(("power", "rate"), [(0.5, "0.0577350"), (1.0, "-0.0333333")])
@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_schedule_beyond_its_end_is_named(fit: Callable[..., Any], power: float, rate: str, interval: str) -> None:
    schedule = {"type": "Poly", "args": {"length": 3, "power": power}, "interval": interval}
    says = f"Poly gives the learning rate .*{re.escape(rate)}.* after {interval} 4 of .*Expected a finite number >= 0"
    with temporarily(SCHEDULERS, Poly):
        with pytest.raises(ConfigError, match=says):
            fit("trainer.epochs=6", lr_scheduler=schedule)
        to_its_end = schedule | {"args": {"length": 4, "power": power}}  # what it gives after that is not used
        fit(f"trainer.epochs={5 if interval == 'epoch' else 1}", lr_scheduler=to_its_end)


class SinglePrecision(LambdaLR):
    """NumPy's float32, whose quotient with a float is rounded to float32 too."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer, lambda step: np.float32(1 / (step + 3)))  # type: ignore[arg-type, return-value]


def test_a_rate_may_be_a_number_of_numpy(fit: Callable[..., Any], tmp_path: Path) -> None:
    optimizer = {"type": "Adam", "args": {"lr": 0.1, "foreach": False}}
    with temporarily(SCHEDULERS, SinglePrecision):
        schedule = {"type": "SinglePrecision", "interval": "step"}
        run = fit("trainer.save_every_steps=2", "trainer.keep_last=null", optimizer=optimizer, lr_scheduler=schedule)
        equal(run.run_dir, resumed(run.run_dir, tmp_path, 4))
    assert type(state(run.run_dir)["optimizer"]["param_groups"][0]["lr"]) is float


class Setting(LRScheduler):
    """Sets the rates itself, from some step on to something else."""

    def __init__(self, optimizer: Optimizer, *, first: Any = 0.1, later: Any = 0.1) -> None:
        self.first, self.later = first, later
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        return [self.later if self.last_epoch else self.first]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"later": None}, "None after epoch 1 of 2. Does it count"),
        ({"later": "0.1"}, "'0.1' after epoch 1 of 2. Does"),
        ({"first": "0.1"}, "'0.1' after epoch 0 of 2. Expected a finite number"),
    ],
)
def test_a_rate_that_is_no_number_is_named(fit: Callable[..., Any], args: Any, says: str) -> None:
    with temporarily(SCHEDULERS, Setting), pytest.raises(ConfigError, match=f"Setting gives the learning rate {says}"):
        fit("trainer.epochs=2", lr_scheduler={"type": "Setting", "args": args})


class Table(LambdaLR):
    """A rate for each step, and none after the last."""

    def __init__(self, optimizer: Optimizer, *, rates: list[float]) -> None:
        super().__init__(optimizer, lambda step: rates[step])


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_schedule_may_end_with_the_run_and_not_before(fit: Callable[..., Any], interval: str) -> None:
    schedule = {"type": "Table", "args": {"rates": [1.0, 0.5, 0.25, 0.2, 0.1]}, "interval": interval}
    length = "trainer.steps_per_epoch=5" if interval == "step" else "trainer.epochs=5"
    with temporarily(SCHEDULERS, Table):
        assert fit("trainer.epochs=1", length, lr_scheduler=schedule).last["lr"] == pytest.approx(0.01)
        says = (
            f"Table failed after {interval} 5 of .*fewer {interval}s than the run has.\nIndexError: list index out of"
        )
        with pytest.raises(ConfigError, match=says):
            fit("trainer.epochs=2", length.replace("5", "6"), lr_scheduler=schedule)


class BuiltinTable(LambdaLR):
    """The same by a builtin function, whose state torch cannot save."""

    def __init__(self, optimizer: Optimizer, *, rates: list[float]) -> None:
        super().__init__(optimizer, rates.__getitem__)


def test_a_schedule_that_cannot_be_saved_is_named(fit: Callable[..., Any]) -> None:
    says = r"schedule cannot be saved: AttributeError: .* object has no attribute '__dict__'"
    with temporarily(SCHEDULERS, BuiltinTable), pytest.raises(UserError, match=says):
        fit("trainer.epochs=1", lr_scheduler={"type": "BuiltinTable", "args": {"rates": [1.0, 0.5]}})
