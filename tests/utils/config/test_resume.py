"""Which changes of a config are seen, as what, and which of them a resumed run may make."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.configs import SOUND
from utils.config.resume import Change, changes, changes_since, saved_config, with_all_defaults
from utils.config.sources import read_config
from utils.paths import PROJECT
from utils.schema import Config, OnResume

Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    path = tmp_path / "config.json"
    path.write_text(SOUND)
    return lambda *overrides: Config.model_validate_json(json.dumps(read_config(path, overrides).value))


GROUPS = 'optimizer.groups=[{"params": ["*.bias"], "args": {"lr": %s}}, {"params": ["fc*"]}]'
PARTS = 'lr_scheduler={"type": "SequentialLR", "args": {"milestones": [%s], "schedulers": %s}}'
TWO = '[{"type": "ConstantLR", "args": {"factor": %s}}, "ExponentialLR"]'


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("trainer.epochs=2", "trainer.epochs=3", ["trainer.epochs 2 -> 3"]),
        ("trainer.save_dir=saved", f"trainer.save_dir={PROJECT}/saved/../saved", []),
        ("optimizer=SGD", 'optimizer={"type": "SGD", "args": {"lr": 0.001, "momentum": 0}}', []),
        ("optimizer=SGD", 'optimizer={"type": "Adam", "args": {"lr": 1}}', ['optimizer.type "SGD" -> "Adam"']),
        ("lr_scheduler=null", "lr_scheduler.interval=step", ["lr_scheduler null -> "]),
        ("loss=mse_loss", 'loss={"a": "mse_loss", "b": "l1_loss"}', ['loss {"type": "mse_loss", ']),
        ('loss={"a": "MSELoss", "b": "f"}', 'loss={"a": "L1Loss", "b": "f"}', ['loss.a.type "MSELoss" -> "L1Loss"']),
        ("metrics=[]", 'metrics=["accuracy"]', ['metrics [] -> ["accuracy"]']),
        ("seed=0", "metrics.1.args.k=1", ["metrics.1.args.k 2 -> 1"]),
        ("seed=0", "metrics.0.name=a", ['metrics.0.name null -> "a"']),
        ('trainer.writers=["csv"]', 'trainer.writers=["csv", "a"]', ['trainer.writers ["csv"] -> ["csv", "a"]']),
        ('trainer.writers=["csv"]', 'trainer.writers=["mlflow"]', ['trainer.writers.0.type "csv" -> "mlflow"']),
        (GROUPS % 1, GROUPS % 2, ["optimizer.groups.0.args.lr 1 -> 2"]),
        (GROUPS % 1, 'optimizer.groups=[{"params": ["*.bias"], "args": {"lr": 1}}]', ["optimizer.groups.1 {"]),
        (GROUPS % 1, "optimizer.groups=[]", ["optimizer.groups [{"]),
        (PARTS % (1, TWO % 0.1), PARTS % (1, TWO % 0.2), ["lr_scheduler.args.schedulers.0.args.factor 0.1 -> 0.2"]),
        (PARTS % (1, TWO % 0.1), PARTS % (2, TWO % 0.1), ["lr_scheduler.args.milestones [1] -> [2]"]),
        (PARTS % (1, TWO % 0.1), PARTS % ("", "[]"), ["lr_scheduler.args.milestones [1] -> []", "schedulers [{"]),
        ("trainer.args={}", "trainer.args.a=1", ["trainer.args.a nothing -> 1"]),
        ("lr_scheduler.args.max_lr=1", "lr_scheduler.args.max_lr=[1]", ["lr_scheduler.args.max_lr 1 -> [1]"]),
        ("lr_scheduler.args.max_lr=[1]", "lr_scheduler.args.max_lr=1", ["lr_scheduler.args.max_lr [1] -> 1"]),
        ('model.weights="a.pth"', "model.weights=null", ["model.weights "]),
        ('trainer.freeze=[{"params": ["a"]}]', 'trainer.freeze=[{"params": ["b"]}]', ['params ["a"] -> ["b"]']),
    ],
)  # fmt: skip
def test_what_differs_is_shown_as_a_config_gives_it(load: Load, before: str, after: str, expected: list[str]) -> None:
    found = changes(with_all_defaults(load(before)), with_all_defaults(load(after)))
    assert len(found) == len(expected)
    for change, start in zip(found, expected, strict=True):
        assert start in str(change)


@pytest.mark.parametrize(
    ("optimizer", "override", "rule"),
    [
        ("SGD", "optimizer.args.lr=1", OnResume.TAKES_EFFECT),
        ("Rprop", "optimizer.args.lr=1", OnResume.REFUSED),
        ("Adagrad", "optimizer.args.initial_accumulator_value=1", OnResume.REFUSED),
        ("LBFGS", "optimizer.args.history_size=1", OnResume.REFUSED),
        ("SGD", "model.args.bias=false", OnResume.REFUSED),
        ("SGD", "data_loader.args.batch_size=5", OnResume.BETWEEN_EPOCHS),
        ("SGD", "lr_scheduler.args.max_lr=1", OnResume.TAKES_EFFECT),
    ],
)  # fmt: skip
def test_the_rule_of_an_argument(load: Load, optimizer: str, override: str, rule: OnResume) -> None:
    before = with_all_defaults(load(f"optimizer={optimizer}"))
    assert [change.rule for change in changes(before, with_all_defaults(load(f"optimizer={optimizer}", override)))] == [
        rule
    ]


def test_a_change_between_epochs_is_refused_within_one() -> None:
    change = Change(("trainer", "accumulate_steps"), 1, 2, OnResume.BETWEEN_EPOCHS)
    assert change.refusal(epoch_steps=0) is None
    refused = change.refusal(epoch_steps=3)
    assert refused is not None
    assert refused.message == "cannot change in the middle of an epoch: this run has 1, got 2"
    assert Change(change.path, 1, 2, OnResume.TAKES_EFFECT).refusal(epoch_steps=3) is None


def without(value: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key not in keys}


def test_a_checkpoint_of_earlier_code_lacks_keys_that_have_their_defaults(load: Load) -> None:
    now = saved_config(load())
    assert not {"name", "variables"} & now.keys()
    earlier = without(now, "validation") | {"trainer": without(now["trainer"], "ema", "keep_last")}
    assert changes_since(earlier, now) == []
    later = saved_config(load("trainer.keep_last=1"))
    assert [str(change) for change in changes_since(earlier, later)] == ["trainer.keep_last nothing -> 1"]
    assert [change.path for change in changes_since(without(now, "loss", "model"), now)] == [("model",), ("loss",)]
