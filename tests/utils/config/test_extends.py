"""``"extends"``: what a config inherits, and which file a mistake is in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.configs import message, sound
from tests.helpers import temporarily
from utils.config import load_config, to_json
from utils.config.sources import read_config
from utils.registry import MODELS
from utils.schema import Config

Extend = Callable[..., Config]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def file(name: str, /, **keys: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(keys, indent=1))
        return path

    return file


@pytest.fixture
def extend(write: Callable[..., Path]) -> Extend:
    """The sound config as base.json, and a config in a folder beside it that extends it with some keys."""

    def load(**keys: Any) -> Config:
        write("base.json", **sound())
        return load_config(write("more/child.json", extends="../base.json", **keys)).config

    return load


def test_objects_are_merged_and_lists_replaced(extend: Extend) -> None:
    config = extend(
        name="wide",
        model={"args": {"hidden_features": 50}},
        metrics=["accuracy"],
        optimizer={"type": "SGD", "args": {"lr": 0.5}},
        data_loader="RandomTensorLoader",
        loss={"args": {"label_smoothing": 0.1}},
    )
    base = Config.model_validate(sound())
    assert config.name == "wide"
    assert config.model.args == {**base.model.args, "hidden_features": 50}
    assert [metric.type for metric in config.metrics] == ["accuracy"]
    assert config.optimizers[""].args == {"lr": 0.5, "momentum": 0.9}
    assert config.data_loader == base.data_loader
    assert config.loss is not None
    assert (config.losses[""].type, config.losses[""].args) == ("cross_entropy", {"label_smoothing": 0.1})
    assert config.trainer == base.trainer


def test_another_type_inherits_nothing(extend: Extend) -> None:
    config = extend(
        optimizer={"type": "Adam"}, lr_scheduler={"type": "StepLR", "args": {"step_size": 1}}, loss="MSELoss"
    )
    assert config.optimizers[""].args == {}
    _, scheduler = config.scheduler_of("")
    assert scheduler is not None
    assert (scheduler.args, scheduler.interval) == ({"step_size": 1}, "epoch")
    assert config.loss is not None
    assert config.losses[""].type == "MSELoss"


def merged(write: Callable[..., Path], below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    write("base.json", **sound() | below)
    read: dict[str, Any] = read_config(write("child.json", extends="base.json", **above)).value
    return read


SGD = {"type": "SGD", "args": {"lr": 0.1, "momentum": 0.9}}


@pytest.mark.parametrize(
    ("below", "above", "expected"),
    [
        (SGD, {"a": "Adam", "b": SGD}, {"a": "Adam", "b": SGD}),
        ("SGD", {"a": {"type": "Adam"}}, {"a": {"type": "Adam"}}),
        ({"a": SGD, "b": "Adam"}, {"type": "Adam"}, {"type": "Adam"}),
        ({"a": SGD, "b": "Adam"}, {"a": {"type": "Adam"}}, {"a": {"type": "Adam"}, "b": "Adam"}),
        ({"a": SGD, "b": "Adam"}, {"a": {"args": {"lr": 1}}, "b": "SGD", "c": "SGD"},
         {"a": {"type": "SGD", "args": {"lr": 1, "momentum": 0.9}}, "b": "SGD", "c": "SGD"}),
    ],
)  # fmt: skip
def test_several_by_name_are_merged_by_name_and_replace_a_single_one(
    write: Callable[..., Path], below: Any, above: Any, expected: Any
) -> None:
    assert merged(write, {"optimizer": below}, {"optimizer": above})["optimizer"] == expected


@pytest.mark.parametrize(
    ("key", "below", "above", "expected"),
    [
        ("validation", None, {"type": "CIFAR10Loader"}, {"type": "CIFAR10Loader"}),
        ("model", {"type": "M", "args": {"loss": "a"}}, {"args": {"loss": "a"}}, {"type": "M", "args": {"loss": "a"}}),
        ("model", {"type": "M", "args": {"n": 1}}, {"args": {"n": {"type": "A"}}},
         {"type": "M", "args": {"n": {"type": "A"}}}),
        ("model", {"type": "M", "args": {"n": {"type": "A"}}}, {"args": {"n": 1}}, {"type": "M", "args": {"n": 1}}),
        ("trainer", {"args": {"of": "Trainer"}, "epochs": 3}, {"type": "Mine"}, {"type": "Mine", "epochs": 3}),
        ("variables", {"LOSS": {"type": "a"}, "N": 1}, {"LOSS": {"type": "b"}}, {"LOSS": {"type": "b"}, "N": 1}),
        ("trainer", {"keep_last": 5, "epochs": 3}, {"keep_last": None}, {"keep_last": None, "epochs": 3}),
    ],
)  # fmt: skip
def test_what_is_inherited(write: Callable[..., Path], key: str, below: Any, above: Any, expected: Any) -> None:
    assert merged(write, {key: below}, {key: above})[key] == expected


def test_another_type_inherits_nothing_inside_arguments_either(write: Callable[..., Path]) -> None:
    write("base.json", model={"type": "M", "args": {"inner": {"type": "A", "args": {"width": 3}}, "depth": 2}})
    for inner, expected in (
        ({"type": "B"}, {"type": "B"}),
        ({"type": "A", "args": {"bias": True}}, {"type": "A", "args": {"width": 3, "bias": True}}),
        ({"args": {"width": 4}}, {"type": "A", "args": {"width": 4}}),
        ({"args": {"width": None}}, {"type": "A", "args": {}}),
    ):
        read = read_config(write("child.json", extends="base.json", model={"args": {"inner": inner}})).value
        assert read["model"]["args"] == {"inner": expected, "depth": 2}


def test_null_takes_away(extend: Extend) -> None:
    config = extend(
        lr_scheduler=None,
        metrics=None,
        optimizer={"args": {"momentum": None}},
        trainer={"monitor": None, "epochs": None},
        data_loader={"args": {"validation_split": None, "eval_batch_size": None}},
    )
    assert config.lr_scheduler is None
    assert config.metrics == []
    assert config.optimizers[""].args == {"lr": 0.01}
    assert (config.trainer.monitor, config.trainer.epochs) == (None, 10)
    assert "validation_split" not in config.data_loader.args


def test_null_stays_where_it_is_a_value(write: Callable[..., Path]) -> None:
    def inner_net(*, width: int | None = 3, name: str = "", size: str | int = 1) -> None: ...

    inner = {"type": "inner_net", "args": {"width": 4, "name": "5"}}
    write("base.json", model={"type": "M", "args": {"inner": inner}})
    with temporarily(MODELS, inner_net):
        path = write("child.json", extends="base.json", model={"args": {"inner": {"args": {"width": None}}}})
        read = read_config(path, ["model.args.inner.args.name=6", "model.args.inner.args.size=7"]).value
    assert read["model"]["args"]["inner"]["args"] == {"width": None, "name": "6", "size": 7}


def test_null_for_what_must_be_there_is_a_mistake_of_the_child(write: Callable[..., Path]) -> None:
    write("base.json", **sound())
    text = message(write("child.json", extends="base.json", optimizer=None, model={"args": {"in_features": None}}))
    assert "child.json:3:2: optimizer: should be a component" in text
    assert "child.json:6:4: model.args.in_features: should be an integer, got null" in text
    misspelt = message(write("child.json", extends="base.json", optimizer={"args": {"momentun": None}}))
    assert 'SGD has no argument "momentun"; did you mean "momentum"' in misspelt


def test_messages_name_the_file_that_has_the_mistake(write: Callable[..., Path]) -> None:
    base = sound()
    base["optimizer"]["args"]["momentun"] = 0.9
    write("base.json", **base)
    path = write("child.json", extends="base.json", optimizer={"args": {"lr": "high"}}, metrics=["acuracy"])
    lines = [line for line in message(path, "seed=-1").splitlines() if ": " in line and "|" not in line]
    files = {line.split(": ")[1]: Path(line.split(":")[0]).name for line in lines}
    assert files["optimizer.args.momentun"] == "base.json"
    assert files["optimizer.args.lr"] == "child.json"
    assert files["metrics.0"] == "child.json"
    assert files["seed"] == "override seed=-1"


def test_a_chain_and_what_the_run_folder_gets(write: Callable[..., Path], tmp_path: Path) -> None:
    write("base.json", **sound())
    write("more/middle.json", extends="../base.json", seed=1, trainer={"epochs": 3})
    path = write("last.json", **{"$schema": "x", "extends": "more/middle.json", "trainer": {"save_period": 2}})
    config = load_config(path, ["name=chain"]).config
    assert (config.seed, config.trainer.epochs, config.trainer.save_period) == (1, 3, 2)
    written = tmp_path / "written.json"
    written.write_text(to_json(config))
    assert "extends" not in json.loads(written.read_text())
    assert load_config(written).config.trainer == config.trainer


def test_circles_and_missing_files_are_located(write: Callable[..., Path]) -> None:
    write("a.json", extends="b.json")
    path = write("b.json", extends="a.json", name="b")
    assert "a.json:2:2: extends: circular inheritance" in message(path)
    assert "circular" in message(write("self.json", extends="self.json"))
    write("more/self.json", extends="../more/self.json")
    assert "circular" in message(path.parent / "more/../more/self.json")
    assert "c.json:2:2: extends: file not found" in message(write("c.json", extends="no.json"))
    assert "c.json:2:2: extends: file not found" in message(write("c.json", extends="."))
    (path.parent / "loop.json").symlink_to("loop.json")
    assert "e.json:2:2: extends: file not found" in message(write("e.json", extends="loop.json"))
    (path.parent / "broken.json").write_text("{")
    assert "broken.json:1:2" in message(write("d.json", extends="broken.json"))
    for number in range(60):
        path = write(f"{number}.json", extends=f"{number + 1}.json")
    assert "50.json:2:2: extends: more than 50 files" in message(path.with_name("0.json"))


def test_extends_is_allowed_only_at_the_top(write: Callable[..., Path]) -> None:
    write("base.json", **sound())
    assert 'unknown key "extends"' in message(write("child.json", extends="base.json", trainer={"extends": "x.json"}))
