"""A run that is resumed with another config: each key takes effect, or is refused and the folder stays as it is."""

import copy
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import train
from base.base_data_loader import BaseDataLoader
from base.training.schedule import Schedule
from base.training.schedule_state import ScheduleState
from data_loader.random_tensor import RandomTensorLoader
from tests.conftest import small_config
from tests.helpers import Fit, copy_run, lines, needs_extra, same, state, temporarily
from utils import arguments
from utils.config import load_config
from utils.config.resume import changes_since, rule_of, saved_config
from utils.config.schedulers import make_scheduler
from utils.errors import UserError
from utils.optimizers import INITIAL_ONLY, adapt_state, start_state
from utils.registry import DATA_LOADERS, MODELS, OPTIMIZERS, SCHEDULERS
from utils.schema import Config, OnResume
from utils.schema_fields import keys_of, section_at

RULES = OnResume

# another value of every key
OTHER: dict[str, Any] = {
    "$schema": None,
    "variables": {"EPOCHS": 3},
    "name": "another",
    "seed": 1,
    "data_loader": {"args": {"num_samples": 60}},
    "model": {"args": {"bias": False}},
    "validation": {
        "type": "RandomTensorLoader",
        "args": {"num_samples": 8, "batch_size": 8, "input_shape": [6], "num_classes": 3},
    },
    "loss": {"args": {"label_smoothing": 0.1}},
    "metrics": ["accuracy", {"type": "top_k_accuracy", "args": {"k": 2}}],
    "optimizer.type": "RMSprop",
    "optimizer.args": {"lr": 0.5},
    "optimizer.params": ["*"],
    "optimizer.groups": [{"params": ["*.bias"]}],
    "optimizer.clip_grad_norm": 0.01,
    "optimizer.clip_grad_value": 0.01,
    "lr_scheduler": {"type": "StepLR", "args": {"step_size": 1}},
    "trainer.type": "AnotherTrainer",
    "trainer.args": {"factor": 2.0},
    "trainer.epochs": 3,
    "trainer.steps_per_epoch": 3,
    "trainer.accumulate_steps": 2,
    "trainer.clip_grad_norm": 0.01,
    "trainer.clip_grad_value": 0.01,
    "trainer.freeze": [{"params": ["*.bias"], "epochs": 2}],
    "trainer.ema": {"decay": 0.9},
    "trainer.validate_every_steps": 3,
    "trainer.monitor": "max val_accuracy",
    "trainer.early_stop": 1,
    "trainer.save_dir": "another",
    "trainer.save_period": 2,
    "trainer.save_every_steps": 3,
    "trainer.keep_last": 1,
    "trainer.checkpoint": "sharded",
    "trainer.log_every_steps": 3,
    "trainer.writers": ["tensorboard", "csv"],
    "trainer.tensorboard": False,
    "trainer.pictures_every": 3,
    "trainer.profile_steps": [9, 9],
    "trainer.verbosity": 2,
    "runtime.device": "auto",
    "runtime.precision": "bf16",
    "runtime.compile": True,
    "runtime.deterministic": False,
    "runtime.strategy": "fsdp",
    "runtime.unused_parameters": True,
    "runtime.timeout": 60.0,
}


def keys() -> list[str]:
    """Every key that has a rule of its own."""
    found = []
    for key in keys_of(Config):
        section = section_at((key,))
        rules = [rule_of((key, name)) for name in keys_of(section)] if section else []
        inner = keys_of(section) if section and len({rule_of((key,)), *rules}) > 1 and key != "metrics" else {}
        found += [f"{key}.{name}" for name in inner] or [key]
    return found


def test_every_key_has_a_rule_and_is_tried_here() -> None:
    assert keys() == list(OTHER)
    assert all(rule_of(tuple(key.split("."))) for key in keys())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_config(tmp_path_factory.mktemp("trained"), trainer={"tensorboard": True})
    often = ("trainer.monitor=min val_loss", "trainer.save_every_steps=4", "trainer.keep_last=null")
    return train.main(["-c", str(config), *often]).run_dir


@pytest.fixture
def killed(trained: Path, tmp_path: Path) -> Path:
    """A run of two epochs as it was at step 8 of 10, in the second."""
    run = copy_run(trained, tmp_path)
    for path in (run / "checkpoints").iterdir():
        if path.name in ("last.pth", "best.pth") or int(path.stem.removeprefix("step-")) > 8:
            path.unlink()
    return run


def files(folder: Path) -> dict[str, bytes]:
    # .lock and the last line of the log may be written
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".lock", "train.log")
    }


def resume(run: Path, key: str, value: Any) -> str | None:
    """Resume with another value. The error's message, if it is refused; the folder is then as it was."""
    before = files(run)
    overrides = [f"{key}={json.dumps(value)}"]
    if isinstance(value, dict) and "type" not in value:
        overrides = [f"{key}.{'.'.join(path)}={json.dumps(leaf)}" for path, leaf in leaves(value)]
    try:
        train.main(["-r", str(run), *overrides])
    except UserError as error:
        assert files(run) == before
        return str(error)
    return None


def leaves(value: dict[str, Any]) -> list[tuple[list[str], Any]]:
    found = []
    for key, inner in value.items():
        found += [([key, *path], leaf) for path, leaf in leaves(inner)] if isinstance(inner, dict) else [([key], inner)]
    return found


# a variable changes what refers to it: tests/utils/config/test_references.py
SETTLED_ELSEWHERE = {
    "$schema",
    "variables",
    "trainer.args",
    "trainer.type",
    "runtime.device",
    "runtime.compile",
    "runtime.strategy",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "key",
    [
        pytest.param(key, marks=needs_extra("writers")) if key == "trainer.writers" else key
        for key in OTHER
        if key not in SETTLED_ELSEWHERE
    ],
)
def test_a_changed_key_takes_effect_or_is_refused(killed: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = resume(killed, key, OTHER[key])
    rule = rule_of(tuple(key.split(".")))
    if rule is RULES.TAKES_EFFECT:
        assert error is None
        assert f"resumed with {key}" in capsys.readouterr().out
        written = json.loads((killed / "config.json").read_text())
        for part in key.split("."):
            written = written[part]
        if not isinstance(OTHER[key], (dict, list)):
            assert written == OTHER[key]
        assert len(lines(killed)) == (3 if key == "trainer.epochs" else 2)
    elif rule is RULES.BETWEEN_EPOCHS:
        assert error
        assert "in the middle of an epoch: this run has" in error
    else:
        assert error
        assert "cannot change when a run is resumed: this run has" in error
        assert "--init-from" in error


@pytest.mark.parametrize(("key", "value"), [("trainer.steps_per_epoch", 3), ("trainer.accumulate_steps", 2)])
def test_the_length_of_an_epoch_changes_between_epochs(fit: Fit, key: str, value: int) -> None:
    run = fit("trainer.epochs=1").run_dir
    train.main(["-r", str(run), "trainer.epochs=2", f"{key}={value}"])
    assert [line["step"] for line in lines(run)] == [5, 8]


@pytest.mark.parametrize("steps", [2, None])
def test_drop_last_may_be_set_where_too_few_samples_of_a_pass_are_left(fit: Fit, steps: int | None) -> None:
    sizes = ("data_loader.args.num_samples=10", "data_loader.args.validation_split=0", "data_loader.args.batch_size=4")
    run = fit(*sizes, "trainer.epochs=1", "trainer.steps_per_epoch=2").run_dir
    changed = ("data_loader.args.drop_last=true", f"trainer.steps_per_epoch={json.dumps(steps)}")
    train.main(["-r", str(run), "trainer.epochs=3", *changed])
    assert [line["step"] for line in lines(run)] == [2, 4, 6]
    assert (state(run)["progress"]["passes"], state(run)["progress"]["samples"]) == (3, 0)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("batch_size", 4), ("eval_batch_size", 3), ("num_workers", 1), ("shuffle", False), ("validation_split", 5)],
)
def test_arguments_of_a_data_loader(killed: Path, argument: str, value: Any) -> None:
    error = resume(killed, "data_loader", {"args": {argument: value}})
    assert bool(error) == (argument not in ("num_workers", "eval_batch_size"))
    assert set(inspect.signature(BaseDataLoader.__init__).parameters) - {"self"} >= {argument}


class Lengths(RandomTensorLoader):
    def lengths(self) -> torch.Tensor:
        return torch.arange(len(self.training_data(augment=False))) % 7


@pytest.mark.parametrize(
    ("change", "warns"),
    [
        ({"shuffle": False}, "data_loader.args.shuffle"),
        ({"balanced": True, "drop_last": True}, "data_loader.args.balanced"),
        ({"batch_size": 4}, ""),  # the next samples of the same order
        ({"type": "Lengths", "batch_size": 4}, "data_loader.args.batch_size"),  # which the order depends on
    ],
)
def test_another_order_within_a_pass_is_told(
    fit: Fit, change: dict[str, Any], warns: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """After an epoch that is shorter than a pass, samples of the pass may come again."""
    kind = f"data_loader.type={change.pop('type', 'RandomTensorLoader')}"
    overrides = [f"data_loader.args.{name}={json.dumps(value)}" for name, value in change.items()]
    with temporarily(DATA_LOADERS, Lengths):
        for steps in (2, 5):  # of 5 in a pass
            run = fit(kind, "trainer.epochs=1", f"trainer.steps_per_epoch={steps}").run_dir
            train.main(["-r", str(run), "trainer.epochs=2", *overrides])
            warned = capsys.readouterr().err
            assert ("changed within a pass over the data" in warned) == (bool(warns) and steps == 2)
            assert warned.partition(" changed within")[0].removeprefix("warning: ") == (warns if steps == 2 else "")


def test_a_finished_run_has_no_rest_of_a_pass(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit("trainer.epochs=1", "trainer.steps_per_epoch=2").run_dir
    train.main(["-r", str(run), "data_loader.args.shuffle=false"])
    warned = capsys.readouterr().err
    assert "no effect, since the run is finished" in warned
    assert "within a pass" not in warned


def test_a_hand_edited_config_is_held_to_the_same_law(killed: Path) -> None:
    config = json.loads((killed / "config.json").read_text())
    config["optimizer"] = {"type": "AdamW", "args": {"lr": 0.001}}
    (killed / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r'optimizer.type: cannot change .* this run has "SGD", got "AdamW"'):
        train.main(["-r", str(killed)])


def test_a_key_that_only_earlier_code_had_is_refused(killed: Path) -> None:
    config = saved_config(load_config(killed / "config.json").config)
    earlier = {**config, "trainer": {**config["trainer"], "log_images": 4}, "data": {"folder": "data"}}
    refused = [change.refusal(epoch_steps=0) for change in changes_since(earlier, config)]
    message = "cannot change when a run is resumed: this run has"
    assert [(problem.path, problem.message) for problem in refused if problem] == [
        (("trainer", "log_images"), f"{message} 4, got nothing"),
        (("data",), f'{message} {{"folder": "data"}}, got nothing'),
    ]


def test_a_refused_change_leaves_a_run_that_can_be_resumed(killed: Path) -> None:
    assert resume(killed, "optimizer", {"type": "AdamW", "args": {"lr": 0.001}})
    train.main(["-r", str(killed)])
    assert len(lines(killed)) == 2


RESTARTING = {"type": "CosineAnnealingWarmRestarts", "args": {"T_0": 1}}
"""Each epoch begins with the first rate, which the schedule keeps."""


@pytest.mark.parametrize("schedule", [None, RESTARTING])
def test_a_changed_rate_is_that_of_the_next_step(fit: Fit, schedule: Any) -> None:
    run = fit("trainer.epochs=1", lr_scheduler=schedule).run_dir
    train.main(["-r", str(run), "trainer.epochs=2", "--lr", "0.5"])
    other = fit("trainer.epochs=1", lr_scheduler=schedule).run_dir
    train.main(["-r", str(other), "trainer.epochs=2"])
    assert [line["lr"] for line in lines(run)] == [0.1, 0.5]
    assert lines(run)[1]["loss"] != lines(other)[1]["loss"]


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("optimizer", "args", {"lr": 0.5}, "optimizer.args.lr 0.1 -> 0.5"),
        ("trainer", "clip_grad_norm", 1.0, "trainer.clip_grad_norm null -> 1.0"),
        ("trainer", "keep_last", 7, "trainer.keep_last 3 -> 7"),
    ],
)
def test_what_was_edited_in_the_runs_own_config_is_printed(
    fit: Fit, capsys: pytest.CaptureFixture[str], section: str, key: str, value: Any, expected: str
) -> None:
    run = fit("trainer.epochs=1").run_dir
    config = json.loads((run / "config.json").read_text())
    config[section][key] = value
    (run / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    train.main(["-r", str(run), "trainer.epochs=2"])
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("resumed with")]
    assert sorted(shown) == sorted(["resumed with trainer.epochs 1 -> 2", f"resumed with {expected}"])


def test_no_step_taken_leaves_the_config_as_it_was(fit: Fit) -> None:
    run = fit().run_dir
    before = (run / "config.json").read_text()
    train.main(["-r", str(run), "--lr", "0.5"])
    assert (run / "config.json").read_text() == before


# ------------------------------------------------------------------ what is monitored


def test_another_monitor_judges_the_finished_epochs_again(fit: Fit) -> None:
    run = fit("trainer.monitor=min val_loss", "trainer.epochs=4", "--lr", "0.5", "trainer.keep_last=null").run_dir
    result = train.main(["-r", str(run), "trainer.epochs=5", "trainer.monitor=min val_accuracy"])
    accuracies = [line["val_accuracy"] for line in lines(run)]
    assert result.best == min(accuracies)
    best = state(run, "best.pth")["progress"]
    assert best["epochs"] == accuracies.index(min(accuracies)) + 1


def test_a_best_checkpoint_that_was_not_kept_is_reported(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit("trainer.monitor=max loss", "trainer.epochs=4", "trainer.keep_last=1").run_dir
    losses = [line["loss"] for line in lines(run)]
    assert losses[1] != min(losses)
    capsys.readouterr()
    train.main(["-r", str(run), "trainer.epochs=5", "trainer.monitor=max val_loss", "--lr", "1e-9"])
    best = max(lines(run), key=lambda line: line["val_loss"])
    if best["step"] not in (5, 20):
        assert "the best checkpoint so far" in capsys.readouterr().err


def test_without_a_monitor_there_is_no_best_checkpoint(killed: Path) -> None:
    shutil.copy(killed / "checkpoints" / "step-00000005.pth", killed / "checkpoints" / "best.pth")
    train.main(["-r", str(killed), "trainer.monitor=null"])
    assert not (killed / "checkpoints" / "best.pth").exists()
    assert (killed / "checkpoints" / "set-aside" / "best.pth").exists()


# ------------------------------------------------------------------ every argument of torch's optimizers

NEW_ARGUMENTS: dict[str, Any] = {
    "betas": (0.5, 0.6),
    "momentum": 0.5,
    "etas": (0.4, 1.3),
    "step_sizes": (1e-3, 2e-3),
    "nesterov": True,
    "t0": 1.0,
    "eps": 0.3,
    "alpha": 0.3,
    "rho": 0.3,
    "lambd": 0.3,
    "tolerance_grad": 1e3,
    "tolerance_change": 1e3,
    "max_iter": 1,
    "max_eval": 1,
    "history_size": 1,
    "line_search_fn": "strong_wolfe",
    "ns_coefficients": (3.0, -4.0, 2.0),
    "ns_steps": 1,
    "adjust_lr_fn": "match_rms_adamw",
    "d": 4.0,
    "beta2_decay": -0.3,
    "initial_accumulator_value": 3.0,
    "max_exp_avg_sq": True,
}
OLD_ARGUMENTS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9},
    "RMSprop": {"momentum": 0.9},
    "LBFGS": {"max_iter": 4, "history_size": 3},
    **{name: {"weight_decay": 0.1} for name in ("Adam", "NAdam", "RAdam")},
}
KERNELS = {"foreach", "fused", "capturable", "differentiable"}
"""How the same numbers are computed."""
ADAFACTOR_EPS = (0.5, 0.5)
# Muon makes a matrix of 2x2 orthogonal either way; Adafactor's updates are not as large as this threshold
TOO_SMALL_TO_SEE = {("Muon", "nesterov"), ("Muon", "eps"), ("Adafactor", "d")}


def optimizer_arguments() -> list[tuple[str, str]]:
    names = [name for name in OPTIMIZERS.names() if name not in OPTIMIZERS.own()]
    return [(name, key) for name in names for key in OPTIMIZERS.parameters(name) if key not in KERNELS]


def new_value(name: str, key: str) -> Any:
    if (name, key) == ("Adafactor", "eps"):
        return ADAFACTOR_EPS
    if key in NEW_ARGUMENTS:
        return NEW_ARGUMENTS[key]
    default = OPTIMIZERS.parameters(name)[key].default
    return not default if isinstance(default, bool) else default * 0.5 + 0.07


def steps(optimizer: Optimizer, parameter: nn.Parameter, count: int) -> torch.Tensor:
    target = torch.linspace(-2, 2, 4, dtype=parameter.dtype).reshape(2, 2)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = ((parameter - target) ** 4).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        if isinstance(optimizer, torch.optim.SparseAdam):
            parameter.grad = parameter.grad.to_sparse() if parameter.grad is not None else None
        return loss

    for _ in range(count):
        closure()
        optimizer.step(closure)  # type: ignore[arg-type]
    return parameter.detach().clone()


def made(name: str, args: dict[str, Any]) -> tuple[Optimizer, nn.Parameter]:
    parameter = nn.Parameter(torch.tensor([[0.3, -0.2], [0.1, 0.4]]))
    optimizer = OPTIMIZERS[name]([parameter], **args)
    optimizer.register_load_state_dict_pre_hook(adapt_state)
    return optimizer, parameter


def test_a_state_with_another_number_of_groups_gets_torchs_message() -> None:
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": [each]} for each in two.parameters()])
    optimizer.register_load_state_dict_pre_hook(adapt_state)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(torch.optim.SGD(one.parameters()).state_dict())


@pytest.mark.parametrize(("name", "key"), optimizer_arguments())
def test_an_optimizer_goes_on_with_another_argument_or_it_is_refused(name: str, key: str) -> None:
    """It takes effect as if the value had been written into the optimizer's parameter groups."""
    args: dict[str, Any] = {"lr": 0.01, **OLD_ARGUMENTS.get(name, {})}
    value = new_value(name, key)
    if key == "momentum_decay":
        value = 0.4
    before, old_parameter = made(name, args)
    schedule = ScheduleState(Schedule(before, None, per_step=False, steps_per_epoch=1, length=1))
    steps(before, old_parameter, 3)
    saved = copy.deepcopy((before.state_dict(), schedule.state_dict()))
    weights = old_parameter.detach().clone()

    def resumed(args: dict[str, Any]) -> tuple[torch.Tensor, Any, Any]:
        after, parameter = made(name, args)
        parameter.data.copy_(weights)
        schedule = ScheduleState(Schedule(after, None, per_step=False, steps_per_epoch=1, length=1))
        after.load_state_dict(copy.deepcopy(saved[0]))
        schedule.load_state_dict(saved[1])
        if schedule.changed:
            schedule.lay_out(1, 0, [])
        start_state(after)
        return steps(after, parameter, 3), after.state_dict()["state"], after.param_groups[0][key]

    unchanged = resumed(args)
    if key not in INITIAL_ONLY.get(name, ()):
        changed = resumed(args | {key: value})
        assert changed[2] == value
        assert (name, key) in TOO_SMALL_TO_SEE or not same(unchanged[:2], changed[:2])
    assert torch.equal(unchanged[0], steps(before, old_parameter, 3))


def test_an_argument_that_needs_a_state_of_its_own_takes_effect_in_a_run(fit: Fit) -> None:
    run = fit("trainer.epochs=1", optimizer={"type": "Adam", "args": {"lr": 0.01}}).run_dir
    copied = run.parent / "unchanged"
    shutil.copytree(run, copied)
    for folder, override in ((run, "optimizer.args.amsgrad=true"), (copied, "optimizer.args.lr=0.01")):
        train.main(["-r", str(folder), "trainer.epochs=4", override])
    assert lines(run)[-1]["loss"] != lines(copied)[-1]["loss"]


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, args in INITIAL_ONLY.items() for key in args])
def test_an_argument_that_counts_only_at_the_start_is_refused(fit: Fit, name: str, key: str) -> None:
    groups = [] if name == "LBFGS" else [{"params": ["fc1.*"], "args": {key: 0.2}}, {"params": ["fc2.weight"]}]
    run = fit("trainer.epochs=1", optimizer={"type": name, "args": {"lr": 0.01}, "groups": groups}).run_dir
    for path in ("optimizer.args", *(f"optimizer.groups.{number}.args" for number in range(len(groups)))):
        error = resume(run, path, {key: 3 if key == "history_size" else 0.5})
        assert error
        assert f"{path}.{key}: cannot change when a run is resumed" in error


# ------------------------------------------------------------------ every argument of torch's schedulers

SCHEDULES: dict[str, dict[str, Any]] = {
    "StepLR": {"step_size": 3, "gamma": 0.5},
    "MultiStepLR": {"milestones": [2, 5], "gamma": 0.5},
    "ConstantLR": {"factor": 0.5, "total_iters": 4},
    "LinearLR": {"start_factor": 0.5, "end_factor": 0.9, "total_iters": 6},
    "ExponentialLR": {"gamma": 0.9},
    "CosineAnnealingLR": {"T_max": 12, "eta_min": 0.001},
    "CosineAnnealingWarmRestarts": {"T_0": 4, "T_mult": 1, "eta_min": 0.001},
    "PolynomialLR": {"total_iters": 12, "power": 1.0},
    "CyclicLR": {
        "base_lr": 0.01,
        "max_lr": 0.1,
        "step_size_up": 3,
        "step_size_down": 4,
        "mode": "exp_range",
        "gamma": 0.9,
    },
    "OneCycleLR": {"max_lr": 0.1, "pct_start": 0.25, "div_factor": 10.0, "final_div_factor": 100.0},
    "ReduceLROnPlateau": {"factor": 0.5, "patience": 1, "threshold": 0.0, "cooldown": 0, "min_lr": 0.0, "eps": 1e-8},
    "WarmupCosine": {},
}
NEW_SCHEDULES: dict[str, Any] = {
    "milestones": [1, 3],
    "gamma": 0.8,
    "factor": 0.7,
    "T_mult": 2,
    "mode": {"CyclicLR": "triangular2", "ReduceLROnPlateau": "max"},
    "threshold": 0.9,
    "threshold_mode": "abs",
    "cooldown": 3,
    "min_lr": 0.09,
    "eps": 0.9,
    "anneal_strategy": "linear",
    "scale_mode": "iterations",
    "base_momentum": 0.5,
    "max_momentum": 0.99,
    "cycle_momentum": False,
    "three_phase": True,
    "step_size_down": 6,
}
# without effect here: the two modes of scaling, and a length, which must be the run's
NO_EFFECT = {("CyclicLR", "scale_mode"), ("ReduceLROnPlateau", "threshold_mode")}
LENGTH = {"total_steps", "epochs", "steps_per_epoch"}
MONITORED = [1.0, 0.9, 0.95, 0.97, 0.99, 0.5, 0.6, 0.7]


def scheduler_arguments() -> list[tuple[str, str]]:
    names = [name for name in SCHEDULERS.names() if name in SCHEDULES]
    return [
        (name, key)
        for name in names
        for key in SCHEDULERS.parameters(name)
        if (name, key) not in NO_EFFECT and key not in LENGTH and key not in ("verbose", "scale_fn")
    ]


def schedule_of(name: str, args: dict[str, Any]) -> Schedule:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1, momentum=0.9)

    def build(_: Any, name: str, args: dict[str, Any]) -> LRScheduler:
        scheduler: LRScheduler = SCHEDULERS[name](**args)
        return scheduler

    settings = {"type": name, "args": args}

    def make(optimizer: Optimizer) -> LRScheduler:
        return make_scheduler(settings, optimizer, 12, build, ())

    return Schedule(optimizer, make, per_step=False, steps_per_epoch=1, length=12, settings=settings)


def move(schedule: Schedule, start: int, stop: int) -> list[Any]:
    found = []
    for index in range(start, stop):
        schedule.optimizer.step()
        schedule.after_epoch(MONITORED[index])
        group = schedule.optimizer.param_groups[0]
        found.append((group["lr"], group["momentum"]))
    return found


def test_every_scheduler_of_torch_is_tried_here() -> None:
    from_json = set(SCHEDULERS.names()) - {"SequentialLR", "ChainedScheduler"}
    assert from_json - set(SCHEDULERS.own()) <= set(SCHEDULES)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "key"), scheduler_arguments())
def test_a_changed_schedule_is_laid_out_as_if_it_had_been_so_from_the_start(name: str, key: str) -> None:
    args = SCHEDULES[name]
    value = NEW_SCHEDULES.get(key)
    if isinstance(value, dict):
        value = value[name]
    if value is None:
        default = args.get(key, SCHEDULERS.parameters(name)[key].default)
        value = default + 1 if isinstance(default, int) else default * 0.5
    before = schedule_of(name, args)
    move(before, 0, 5)
    saved, group = ScheduleState(before).state_dict(), dict(before.optimizer.state_dict()["param_groups"][0])

    after = schedule_of(name, args | {key: value})
    after.optimizer.load_state_dict({"state": {}, "param_groups": [group]})
    state = ScheduleState(after)
    state.load_state_dict(saved)
    assert state.changed
    state.lay_out(5, 0, MONITORED[:5])

    whole = schedule_of(name, args | {key: value})
    expected = move(whole, 0, 8)
    assert move(after, 5, 8) == expected[5:]
    assert expected != move(schedule_of(name, args), 0, 8)


@pytest.mark.slow
def test_a_schedule_added_removed_or_replaced(fit: Fit) -> None:
    step_lr = {"type": "StepLR", "args": {"step_size": 1, "gamma": 0.5}}
    plain = fit("trainer.epochs=2").run_dir
    resume(plain, "trainer", {"epochs": 4})
    for first, then in [(None, step_lr), (step_lr, None), (step_lr, {"type": "ExponentialLR", "args": {"gamma": 0.1}})]:
        run = fit("trainer.epochs=2", lr_scheduler=first).run_dir
        train.main(["-r", str(run), "trainer.epochs=4", f"lr_scheduler={json.dumps(then)}"])
        whole = fit("trainer.epochs=4", lr_scheduler=then).run_dir
        assert [line["lr"] for line in lines(run)[2:]] == [line["lr"] for line in lines(whole)[2:]]


class Weakening(LRScheduler):
    """Halves the weight decay with each epoch."""

    def get_lr(self) -> list[Any]:
        for group in self.optimizer.param_groups:
            group["weight_decay"] *= 0.5
        return [group["lr"] for group in self.optimizer.param_groups]


def test_what_a_schedule_has_changed_beside_the_rate_is_undone_with_it(fit: Fit) -> None:
    with temporarily(SCHEDULERS, Weakening):
        optimizer = {"type": "SGD", "args": {"lr": 0.1, "weight_decay": 0.1}}
        run = fit(optimizer=optimizer, lr_scheduler="Weakening").run_dir
        train.main(["-r", str(run), "trainer.epochs=3", "lr_scheduler=null"])
    assert state(run)["optimizer"]["param_groups"][0]["weight_decay"] == 0.1


def test_a_default_of_a_schedule_that_changed_in_its_code_takes_effect(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    class Decay(LRScheduler):
        def __init__(self, optimizer: Optimizer, *, gamma: float = 0.5) -> None:
            self.gamma = gamma
            super().__init__(optimizer)

        def get_lr(self) -> list[float | torch.Tensor]:
            return [rate * self.gamma**self.last_epoch for rate in self.base_lrs]

    class Faster(Decay):
        def __init__(self, optimizer: Optimizer, *, gamma: float = 0.1) -> None:
            super().__init__(optimizer, gamma=gamma)

    Faster.__name__ = "Decay"
    chained = {"type": "ChainedScheduler", "args": {"schedulers": ["Decay"]}}
    for schedule, key in (("Decay", "gamma"), (chained, r"schedulers.0.args.gamma")):
        with temporarily(SCHEDULERS, Decay):
            run = fit("trainer.epochs=3", "trainer.keep_last=null", lr_scheduler=schedule).run_dir
        for path in (run / "checkpoints").iterdir():
            if path.name != "step-00000005.pth":
                path.unlink()
        capsys.readouterr()
        with temporarily(SCHEDULERS, Faster):
            train.main(["-r", str(run)])
        assert f"resumed with lr_scheduler.args.{key} 0.5 -> 0.1\n" in capsys.readouterr().out
        assert [line["lr"] for line in lines(run)] == pytest.approx([0.1, 0.01, 0.001])


def test_a_plateau_follows_the_values_of_the_finished_epochs(fit: Fit) -> None:
    plateau = {"type": "ReduceLROnPlateau", "args": {"patience": 0, "threshold": 0.9}}
    monitor = "trainer.monitor=min val_loss"
    run = fit("trainer.epochs=3", monitor).run_dir
    train.main(["-r", str(run), "trainer.epochs=4", f"lr_scheduler={json.dumps(plateau)}"])
    # no epoch after the first one was an improvement by 90 %, so that two cuts are laid out
    assert lines(run)[3]["lr"] == pytest.approx(0.1 * 0.1**2)


def test_a_plateau_follows_another_monitor_from_the_first_epoch_on(fit: Fit) -> None:
    scheduler = {"type": "ReduceLROnPlateau", "args": {"patience": 0, "threshold": 0.05}}
    keys: Any = {"lr_scheduler": scheduler, "optimizer": {"type": "SGD", "args": {"lr": 1.0}}}
    run = fit("trainer.epochs=4", "trainer.monitor=min val_loss", **keys).run_dir
    train.main(["-r", str(run), "trainer.epochs=5", "trainer.monitor=min loss"])
    records = lines(run)
    cut = torch.optim.lr_scheduler.ReduceLROnPlateau(
        torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0), patience=0, threshold=0.05
    )
    for record in records[:4]:
        cut.step(record["loss"])
    assert records[4]["lr"] == pytest.approx(cut.optimizer.param_groups[0]["lr"])
    cut.step(records[4]["loss"])
    resumed = state(run)["schedule"]["scheduler"]
    assert (resumed["best"], resumed["num_bad_epochs"]) == (cut.best, cut.num_bad_epochs)
    # the same monitor again changes nothing
    before = state(run)["schedule"]
    train.main(["-r", str(run), "trainer.epochs=5"])
    assert same(state(run)["schedule"], before)


def test_the_interval_of_a_schedule_changes(fit: Fit) -> None:
    schedule = {"type": "ExponentialLR", "args": {"gamma": 0.9}}
    run = fit("trainer.epochs=2", lr_scheduler=schedule).run_dir
    train.main(["-r", str(run), "trainer.epochs=3", "lr_scheduler.interval=step"])
    assert lines(run)[2]["lr"] == pytest.approx(0.1 * 0.9**14)  # the rate of step 15, after 14 moves


def test_annotations_of_the_classes_above_count() -> None:
    assert OnResume.BETWEEN_EPOCHS in [
        marker
        for annotation in arguments.annotations(BaseDataLoader, "batch_size")
        for marker in annotation.__metadata__
    ]


def test_changed_metrics_are_shown_as_a_config_names_them(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit().run_dir
    metrics = 'metrics=["accuracy", {"type": "top_k_accuracy", "args": {"k": 2}}]'
    train.main(["-r", str(run), "trainer.epochs=3", metrics])
    expected = 'resumed with metrics ["accuracy"] -> ["accuracy", {"type": "top_k_accuracy", "args": {"k": 2}}]'
    assert expected in capsys.readouterr().out
    train.main(["-r", str(run), "trainer.epochs=4", "metrics.1.args.k=1", "metrics.0.training=false"])
    printed = capsys.readouterr().out
    assert "resumed with metrics.1.args.k 2 -> 1\n" in printed
    assert "resumed with metrics.0.training true -> false\n" in printed


def test_a_change_of_a_finished_run_has_no_effect(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    """It takes no step, so that its config.json does not change; nor may its best epoch."""
    run = fit("trainer.monitor=max val_loss").run_dir
    config, best = (run / "config.json").read_text(), state(run, "best.pth")
    capsys.readouterr()
    train.main(["-r", str(run), "--lr=0.5"])
    printed = capsys.readouterr()
    assert "no effect, since the run is finished: optimizer.args.lr 0.1 -> 0.5" in printed.err
    assert "resumed with" not in printed.out
    for change in ("trainer.monitor=min val_loss", "trainer.monitor=null"):
        with pytest.raises(UserError, match=r"monitor: .* cannot change once a run is finished; .*trainer.epochs=N"):
            train.main(["-r", str(run), change])
    assert (run / "config.json").read_text() == config
    assert same(state(run, "best.pth"), best)
    train.main(["-r", str(run), "trainer.monitor=min val_loss", "--lr=0.5", "trainer.epochs=3"])
    assert "resumed with optimizer.args.lr 0.1 -> 0.5" in capsys.readouterr().out
    assert not same(state(run, "best.pth"), best)


def test_a_run_that_stopped_early_says_what_its_changes_do(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit("trainer.epochs=9", "trainer.monitor=max loss", "trainer.early_stop=2", "--lr=0.1").run_dir
    capsys.readouterr()
    train.main(["-r", str(run), "trainer.epochs=20"])
    printed = capsys.readouterr()
    assert "no effect, since the run is finished: trainer.epochs 9 -> 20" in printed.err
    assert "resumed with" not in printed.out
    changes = ["trainer.epochs=20", "trainer.early_stop=1", "trainer.monitor=max val_loss"]
    with pytest.raises(UserError, match=r"monitor: .* cannot change .*; stopped early: .*early_stop=N"):
        train.main(["-r", str(run), *changes])


def test_a_best_checkpoint_is_not_set_aside_silently(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit("trainer.monitor=min loss").run_dir
    capsys.readouterr()
    train.main(["-r", str(run), "trainer.monitor=null", "trainer.epochs=3"])
    assert "no epoch so far counts as the best; the former best.pth is now " in capsys.readouterr().err


def test_a_model_whose_code_has_changed_is_named_before_the_optimizer(fit: Fit) -> None:
    class Growing(nn.Module):
        width = 4

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(6, self.width), nn.Linear(self.width, 3))

        def forward(self, x: Any) -> Any:
            return self.layers(x)

    with temporarily(MODELS, Growing):
        run = fit(model="Growing", optimizer={"type": "Adam", "args": {"lr": 0.01}}).run_dir
        Growing.width = 5
        says = r"the part model in .*:.*\n.*size mismatch for layers\.0\.weight: .* torch\.Size\(\[4, 6\]\)"
        with pytest.raises(UserError, match=says):
            train.main(["-r", str(run), "trainer.epochs=9"])


def test_a_changed_list_is_shown_as_written_or_by_the_element_that_changed(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit("trainer.epochs=1").run_dir
    train.main(["-r", str(run), "trainer.epochs=2", 'trainer.freeze=[{"params": ["fc1.*"], "epochs": 1}]'])
    assert 'resumed with trainer.freeze [] -> [{"params": ["fc1.*"], "epochs": 1}]' in capsys.readouterr().out
    train.main(["-r", str(run), "trainer.epochs=3", "trainer.freeze.0.epochs=2"])
    assert "resumed with trainer.freeze.0.epochs 1 -> 2" in capsys.readouterr().out


def test_only_the_argument_of_a_nested_component_that_changed_is_shown(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    decay = {"type": "ExponentialLR", "args": {"gamma": 0.9}}
    parts = {"schedulers": ["LinearLR", decay], "milestones": [1]}
    run = fit("trainer.epochs=1", lr_scheduler={"type": "SequentialLR", "args": parts}).run_dir
    at = "lr_scheduler.args.schedulers"
    capsys.readouterr()
    same = f'{at}.0={{"type": "LinearLR", "args": {{"total_iters": 5}}}}'  # the default
    train.main(["-r", str(run), "trainer.epochs=2", same, f"{at}.1.args.gamma=0.5"])
    told = [line for line in capsys.readouterr().out.splitlines() if "resumed with" in line]
    assert told == [f"resumed with {at}.1.args.gamma 0.9 -> 0.5", "resumed with trainer.epochs 1 -> 2"]
    train.main(["-r", str(run), "trainer.epochs=3", f"{at}.1=LinearLR"])
    assert f'resumed with {at}.1.type "ExponentialLR" -> "LinearLR"\n' in capsys.readouterr().out


def test_a_default_that_is_a_tuple_is_the_list_that_a_config_gives(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit("trainer.epochs=1", optimizer={"type": "Adam", "args": {"lr": 0.01}}).run_dir
    capsys.readouterr()
    train.main(["-r", str(run), "trainer.epochs=2", "optimizer.args.betas=[0.9, 0.999]"])
    assert "betas" not in capsys.readouterr().out


def test_a_group_or_a_component_that_is_gone_is_one_change(fit: Fit) -> None:
    groups = [{"params": ["fc1.*"]}, {"params": ["fc2.*"], "args": {"lr": 0.5}}]
    run = fit("trainer.epochs=1", optimizer={"type": "SGD", "args": {"lr": 0.1}, "groups": groups}).run_dir
    fewer = json.dumps(groups[:1])
    several = json.dumps({"a": {"type": "SGD", "params": ["fc1*"]}, "b": {"type": "SGD", "params": ["fc2*"]}})
    for override, key in ((f"optimizer.groups={fewer}", "optimizer.groups.1"), (f"optimizer={several}", "optimizer")):
        with pytest.raises(UserError, match=rf"(?m)^[^\n]*: {key}: cannot change when a run is resumed") as caught:
            train.main(["-r", str(run), override])
        assert "mistakes" not in str(caught.value)


def test_an_argument_in_a_group_is_not_its_default_if_it_was_the_optimizers(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    """The default of lr is 0.001."""
    groups = [{"params": ["fc1.*"]}, {"params": ["fc2.weight"], "args": {"weight_decay": 0.1}}]
    run = fit("trainer.epochs=1", optimizer={"type": "SGD", "args": {"lr": 0.1}, "groups": groups}).run_dir
    train.main(["-r", str(run), "trainer.epochs=2", "optimizer.groups.1.args.lr=0.001"])
    assert "resumed with optimizer.groups.1.args.lr nothing -> 0.001" in capsys.readouterr().out


def test_a_change_is_told_from_the_checkpoint_and_not_from_a_resume_that_was_killed(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    """config.json is rewritten with the first step, before anything is saved."""
    run = fit("trainer.epochs=1").run_dir
    config = json.loads((run / "config.json").read_text())
    config["optimizer"]["args"]["lr"] = 0.5
    (run / "config.json").write_text(json.dumps(config))
    train.main(["-r", str(run), "trainer.epochs=2", "--lr", "0.01"])
    assert "resumed with optimizer.args.lr 0.1 -> 0.01\n" in capsys.readouterr().out
