"""Batches of any form reach the device, and optimizers of any kind get a model that they can train."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

import train
from tests.helpers import lines
from utils.errors import ConfigError
from utils.runtime import Runtime
from utils.schema import RuntimeConfig

Fit = Callable[..., train.Result]


class Pair(NamedTuple):
    inputs: torch.Tensor
    targets: dict[str, torch.Tensor]


def test_a_batch_of_any_form_moves_to_the_device() -> None:
    runtime = Runtime(RuntimeConfig(device="cpu"))
    tensor = torch.zeros(2)
    assert runtime.to_device(tensor) is tensor
    runtime.device, runtime.on_cpu = torch.device("meta"), False
    moved = runtime.to_device([Pair(tensor, {"a": tensor}), (tensor, "name", None), OrderedDict(b=tensor)])
    assert isinstance(moved[0], Pair)
    assert isinstance(moved[2], OrderedDict)
    assert moved[1][1:] == ("name", None)
    for found in (moved[0].inputs, moved[0].targets["a"], moved[1][0], moved[2]["b"]):
        assert found.device.type == "meta"


@pytest.mark.parametrize(("setting", "mode"), [(True, None), ("reduce-overhead", "reduce-overhead")])
def test_a_model_is_compiled_in_the_mode_of_the_config(
    setting: Any, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _, **keys: seen.append(keys))
    Runtime(RuntimeConfig(device="cpu", compile=setting)).prepare(torch.nn.Linear(1, 1))
    assert seen == [{"mode": mode}]


CONVOLUTIONS: dict[str, Any] = {
    "data_loader": {
        "type": "RandomTensorLoader",
        "args": {"num_samples": 24, "input_shape": [3, 32, 32], "num_classes": 10, "batch_size": 12},
    },
    "model": "LeNet",
    "optimizer": {"type": "LBFGS", "args": {"lr": 0.1, "max_iter": 3}},
}


def test_lbfgs_trains_a_net_with_convolutions(fit: Fit) -> None:
    result = fit("trainer.epochs=4", **CONVOLUTIONS)
    losses = [record["loss"] for record in lines(result.run_dir)]
    assert losses[-1] < losses[0]


def test_lbfgs_under_fp16_is_refused_where_it_is_named(fit: Fit) -> None:
    with pytest.raises(ConfigError, match=r"optimizer: LBFGS evaluates the loss several times.*bf16"):
        fit("runtime.precision=fp16", **CONVOLUTIONS)


def test_lbfgs_accumulates_as_one_large_batch(fit: Fit) -> None:
    optimizer = {"type": "LBFGS", "args": {"lr": 0.1, "max_iter": 3}}
    large = fit("--bs=40", optimizer=optimizer)
    small = fit("trainer.accumulate_steps=5", optimizer=optimizer)
    for one, other in zip(lines(large.run_dir), lines(small.run_dir), strict=True):
        assert one == pytest.approx(other, rel=1e-4)
