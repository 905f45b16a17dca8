"""Keys without effect: a warning for one in a file, an error for one on the command line."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from tests.helpers import needs_extra, temporarily
from trainer.trainer import Trainer
from utils.config import load_config
from utils.config.schedulers import make_scheduler
from utils.errors import ConfigError
from utils.registry import METRICS, SCHEDULERS, TRAINERS

WriteConfig = Callable[..., Path]
SGD = {"type": "SGD", "args": {"lr": 0.1, "momentum": 0.9}}
BIASES = {"type": "SGD", "groups": [{"params": ["*.bias"], "args": {"lr": 0.3}}]}
CYCLIC = {"base_lr": 0.1, "max_lr": 0.2, "max_momentum": 0.9}
OFF = {"epochs": 1, "tensorboard": False}
LOADER: Any = {
    "type": "RandomTensorLoader",
    "args": {"num_samples": 30, "input_shape": [6], "num_classes": 3, "batch_size": 8},
}


def one_cycle(**args: Any) -> dict[str, Any]:
    return {"type": "OneCycleLR", "args": {"max_lr": 0.1, **args}, "interval": "step"}


def sgd(**args: Any) -> dict[str, Any]:
    return {"type": "SGD", "args": {"lr": 0.1, **args}}


def f1_score(task: str, **args: Any) -> dict[str, Any]:
    return {"type": "F1Score", "args": {"task": task, **args}}


def with_args(**args: Any) -> dict[str, Any]:
    return {**LOADER, "args": {**LOADER["args"], **args}}


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            {"optimizer": {"type": "SGD", "args": {"momentum": 0.9}}, "lr_scheduler": one_cycle()},
            ["optimizer.args.momentum: 0.9 has no effect: OneCycleLR sets the momentum itself"],
        ),
        ({"optimizer": {"type": "SGD", "args": {"momentum": 0.95}}, "lr_scheduler": one_cycle()}, []),
        (
            {"optimizer": {"type": "SGD", "args": {"momentum": 0.9}}, "lr_scheduler": one_cycle(cycle_momentum=False)},
            [],
        ),
        ({"optimizer": {"type": "SGD", "args": {"momentum": 0.9}}, "lr_scheduler": one_cycle(max_momentum=0.9)}, []),
        (
            {
                "optimizer": {**SGD, "groups": [{"params": ["*.bias"], "args": {"momentum": 0.8}}]},
                "lr_scheduler": one_cycle(cycle_momentum=True, max_momentum=[0.9, 0.9]),
            },
            ["optimizer.args.lr", "optimizer.groups.0.args.momentum: 0.8 has no effect"],
        ),
        (
            {"optimizer": {"type": "Adam", "args": {"betas": [0.8, 0.9]}}, "lr_scheduler": one_cycle()},
            ["optimizer.args.betas: 0.8 has no effect"],
        ),
        ({"optimizer": SGD, "lr_scheduler": {"type": "ExponentialLR", "args": {"gamma": 0.9}}}, []),
        ({"optimizer": sgd(dampening=0.5)}, ["optimizer.args.dampening: has no effect without momentum"]),
        ({"optimizer": sgd(dampening=0.5, momentum=0.9)}, []),
        ({"optimizer": sgd(dampening=0.5), "lr_scheduler": one_cycle()}, ["optimizer.args.lr"]),
        ({"optimizer": {**sgd(dampening=0.5), "groups": [{"params": ["*.bias"], "args": {"momentum": 0.9}}]}}, []),
        (
            {"optimizer": {**sgd(), "groups": [{"params": ["*.bias"], "args": {"dampening": 0.9}}]}},
            ["optimizer.groups.0.args.dampening: has no effect without momentum"],
        ),
        (
            {"optimizer": {"type": "Adam", "args": {"decoupled_weight_decay": True}}},
            ["optimizer.args.decoupled_weight_decay: has no effect without weight_decay"],
        ),
        ({"optimizer": {"type": "AdamW"}}, []),
        *(
            (
                {"optimizer": BIASES, "lr_scheduler": one_cycle(max_lr=most)},
                ["optimizer.groups.0.args.lr: has no effect: OneCycleLR sets the learning rate"],
            )
            for most in (0.05, [0.05, 0.5])
        ),
        ({"optimizer": SGD, "lr_scheduler": {"type": "CyclicLR", "args": CYCLIC}}, ["optimizer.args.lr"]),
        (
            {
                "optimizer": {"type": "SGD", "args": {"momentum": 0.9}},
                "lr_scheduler": {
                    "type": "CyclicLR",
                    "args": {**CYCLIC, "max_momentum": 0.8, "cycle_momentum": False, "gamma": 0.9},
                },
            },
            ["args.max_momentum: has no effect without cycle_momentum", "args.gamma: has no effect without"],
        ),
        (
            {"optimizer": {"type": "SGD"}, "lr_scheduler": one_cycle(steps_per_epoch=3, cycle_momentum=False)},
            ["args.steps_per_epoch: has no effect beside total_steps"],
        ),
        (
            {
                "optimizer": {name: {"type": "SGD", "params": [f"{name}.*"]} for name in ("fc1", "fc2")},
                "lr_scheduler": one_cycle(steps_per_epoch=3, cycle_momentum=False),
            },
            ["lr_scheduler.args.steps_per_epoch: has no effect beside total_steps"],
        ),
        (
            {"optimizer": {"type": "SGD"}, "lr_scheduler": one_cycle(total_steps=500, epochs=3, cycle_momentum=False)},
            ["args.epochs: has no effect beside total_steps"],
        ),
        (
            {
                "optimizer": {"type": "SGD"},
                "lr_scheduler": one_cycle(epochs=5, steps_per_epoch=100, cycle_momentum=False),
            },
            [],
        ),
        ({"metrics": [f1_score("binary", average="macro")]}, ['args.average: has no effect with "task": "binary"']),
        ({"metrics": [f1_score("multiclass", average="macro", num_classes=3)]}, []),
        (
            {"metrics": [f1_score("multiclass", threshold=0.9, num_classes=3)]},
            ["metrics.0.args.threshold: has no effect"],
        ),
        ({"optimizer": {**SGD, "clip_grad_norm": 1.0}, "trainer": {"clip_grad_norm": 2.0}}, ["trainer.clip_grad_norm"]),
        ({"optimizer": {**SGD, "clip_grad_norm": 1.0}, "trainer": {"clip_grad_value": 2.0}}, []),
        ({"trainer": {**OFF, "pictures_every": 2}}, ["trainer.pictures_every: has no effect without TensorBoard"]),
        ({"trainer": {**OFF, "pictures_every": 0}}, []),
        ({"trainer": {**OFF, "validate_every_steps": 2}}, ["trainer.validate_every_steps: has no effect: no writer"]),
        pytest.param(
            {"trainer": {**OFF, "validate_every_steps": 2, "writers": ["csv"]}}, [], marks=needs_extra("writers")
        ),
        (
            {"data_loader": with_args(validation_split=0), "validation": with_args(drop_last=True, balanced=True)},
            ["validation.args.drop_last: has no effect", "validation.args.balanced: has no effect"],
        ),
        (
            {
                "data_loader": with_args(),
                "validation": {"day": with_args(balanced=True), "night": with_args(shuffle=True)},
            },
            ["validation.day.args.balanced: has no effect", "validation.night.args.shuffle: has no effect"],
        ),
    ],
)
def test_warnings_for_a_file(write_config: WriteConfig, keys: dict[str, Any], says: list[str]) -> None:
    warnings = load_config(write_config(**keys), dry_run=False).warnings()
    assert len(warnings) == len(says)
    assert all(text in warning for text, warning in zip(says, warnings, strict=True))


def test_each_metric_with_a_task_has_a_class_for_it() -> None:
    """By whose name the arguments without effect are found."""
    for name in METRICS.names():
        if "task" in METRICS.parameters(name) and name not in METRICS.own():
            assert hasattr(sys.modules[METRICS[name].__module__], f"Multiclass{name}"), name


def test_an_override_without_effect_is_an_error(write_config: WriteConfig) -> None:
    path = write_config(optimizer=SGD, lr_scheduler=one_cycle())
    with pytest.raises(ConfigError, match=r"override optimizer.args.momentum=0.5: .* 0.5 has no effect"):
        load_config(path, ["optimizer.args.momentum=0.5"])
    with pytest.raises(ConfigError, match=r"trainer.clip_grad_norm: has no effect: optimizer.clip_grad_norm replaces"):
        load_config(write_config(optimizer={**SGD, "clip_grad_norm": 1.0}), ["trainer.clip_grad_norm=0.1"])


@pytest.mark.parametrize("whole", ["alone", "SequentialLR", "ChainedScheduler"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("name", "args"), [("OneCycleLR", {"max_lr": 0.5}), ("CyclicLR", {"base_lr": 0.1, "max_lr": 0.5})]
)
def test_what_is_reported_is_what_those_schedulers_replace(
    write_config: WriteConfig, name: str, args: dict[str, float], first: bool, whole: str
) -> None:
    """Alone, or before or after another one."""

    def build(_: Any, name: str, args: dict[str, Any]) -> Any:
        return SCHEDULERS[name](**args)

    def settings(lr: float, momentum: float) -> list[tuple[float, float]]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=lr, momentum=momentum)
        made = make_scheduler(scheduler, optimizer, 10, build, ())
        found = []
        for _ in range(9):
            found.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
            optimizer.step()
            made.step()
        return found

    own = {"type": name, "args": args}
    other = {"type": "LinearLR", "args": {"total_iters": 3}}
    inside: dict[str, Any] = {"schedulers": [own, other] if first else [other, own]}
    milestones = {"milestones": [3]} if whole == "SequentialLR" else {}
    scheduler = own if whole == "alone" else {"type": whole, "args": inside | milestones}
    sgd = {"type": "SGD", "args": {"lr": 0.1, "momentum": 0.3}}
    path = write_config(optimizer=sgd, lr_scheduler={**scheduler, "interval": "step"})
    reported = [warning.split(": ")[1] for warning in load_config(path, dry_run=False).warnings()]
    assert ("optimizer.args.lr" in reported) == (settings(0.1, 0.3) == settings(0.2, 0.3))
    assert ("optimizer.args.momentum" in reported) == (settings(0.1, 0.3) == settings(0.1, 0.4))


def test_a_rate_that_the_scheduler_overrules_is_reported(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """In a file it is common; on the command line something is expected of it."""
    scheduler = {"type": "OneCycleLR", "args": {"max_lr": 0.05}, "interval": "step"}
    path = write_config(lr_scheduler=scheduler)
    says = "optimizer.args.lr: has no effect: OneCycleLR sets the learning rate itself, from lr_scheduler.args.max_lr"
    train.main(["-c", str(path)])
    assert f"{says}\n" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=f"override optimizer.args.lr=0.3: {says}"):
        train.main(["-c", str(path), "--lr=0.3"])
    train.main(["-c", str(path), "--lr=0.3", "lr_scheduler=null"])
    train.main(["-c", str(write_config(lr_scheduler=scheduler, optimizer={"type": "SGD"}))])
    train.main(["-c", str(write_config(lr_scheduler="CosineAnnealingLR")), "--lr=0.3"])
    assert capsys.readouterr().err == ""


def test_validation_within_an_epoch_needs_data(fit: Callable[..., train.Result]) -> None:
    options = ("data_loader.args.validation_split=0", "trainer.validate_every_steps=2", "trainer.tensorboard=true")
    with pytest.raises(ConfigError, match=r"trainer.validate_every_steps: needs validation data, but there is none"):
        fit(*options)

    class OwnValidation(Trainer):
        def validate(self) -> dict[str, float]:
            return {"sharpness": 1.0}

    with temporarily(TRAINERS, OwnValidation):
        assert fit(*options, "trainer.type=OwnValidation").last["val_sharpness"] == 1.0


def test_an_argument_that_every_group_replaces(write_config: WriteConfig, capsys: pytest.CaptureFixture[str]) -> None:
    groups = [{"params": ["fc1.*"], "args": {"lr": 0.1}}, {"params": ["*"], "args": {"lr": 0.2, "momentum": 0.5}}]
    path = write_config(optimizer={"type": "SGD", "args": {"lr": 0.3, "momentum": 0.9}, "groups": groups})
    train.main(["-c", str(path), "trainer.epochs=1"])
    assert capsys.readouterr().err.count("optimizer.args.lr: has no effect: the groups have all") == 1
    with pytest.raises(ConfigError, match=r"override optimizer.args.lr=0.5: optimizer.args.lr: has no effect"):
        train.main(["-c", str(path), "--lr=0.5"])
    rest = [{"params": ["fc1.*"], "args": {"lr": 0.1}}]
    train.main(["-c", str(write_config(optimizer={**SGD, "groups": rest})), "trainer.epochs=1"])
    assert capsys.readouterr().err == ""
