"""A project's own tests pass on every machine: a config may need a GPU, a variable or files that are not there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torchvision

from tests.helpers import own_components
from tests.project import test_project
from utils.config import load_config
from utils.errors import ConfigError
from utils.registry import DATA_LOADERS

SMALL = {
    "name": "small",
    "data_loader": {
        "type": "RandomTensorLoader",
        "args": {"num_samples": 8, "input_shape": [4], "target_shape": [1], "batch_size": 4},
    },
    "model": {"type": "TwoLayerNet", "args": {"in_features": 4, "hidden_features": 2, "out_features": 1}},
    "loss": "mse_loss",
    "optimizer": {"type": "SGD", "args": {"lr": 0.01}},
}


def check(folder: Path, **keys: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**SMALL, **keys}))
    test_project.test_a_config_has_no_mistakes(path)
    test_project.test_a_resumed_run_ends_like_one_that_was_never_stopped(path, folder)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_on_other_hardware_is_tested(tmp_path: Path, strategy: str) -> None:
    runtime = {"device": "cuda:77", "precision": "fp16", "compile": True, "strategy": strategy}
    check(tmp_path, runtime=runtime, trainer={"writers": ["wandb"], "tensorboard": True})


@pytest.mark.parametrize(
    "keys",
    [
        {"model": {**SMALL["model"], "weights": "missing.pth"}},  # type: ignore[dict-item]
        {"optimizer": {"type": "SGD", "args": {"lr": "${env:NOT_SET_HERE}"}}},
    ],
)
def test_what_a_config_needs_may_be_missing(tmp_path: Path, keys: dict[str, Any]) -> None:
    with pytest.raises(pytest.skip.Exception, match="on this machine: "):
        check(tmp_path, **keys)


def mistaken(_: Path) -> Any:
    raise RuntimeError("my mistake")


@pytest.mark.parametrize(
    ("read", "outcome", "said"),
    [
        (Path.read_text, pytest.skip.Exception, "its data is not on this machine"),
        (torchvision.datasets.MNIST, pytest.skip.Exception, "its data is not on this machine"),
        (mistaken, ConfigError, "my mistake"),
    ],
)
def test_the_data_of_ones_own_loader_may_be_missing_but_not_mistaken(
    tmp_path: Path, read: Any, outcome: type[BaseException], said: str
) -> None:
    with own_components():

        @DATA_LOADERS.register
        def my_data() -> Any:
            return read(tmp_path / "missing")

        with pytest.raises(outcome, match=said):
            check(tmp_path, data_loader="my_data")


def test_a_default_of_the_environment_is_used(tmp_path: Path) -> None:
    optimizer = {"type": "SGD", "args": {"lr": "${env:NOT_SET_HERE:0.01}"}}
    check(tmp_path, optimizer=optimizer)
    path = tmp_path / "config.json"
    assert test_project.missing(load_config(path, partial=True)) == []
