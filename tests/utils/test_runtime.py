"""Batches of any form reach the device, and optimizers of any kind get a model that they can train."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import train
from base.base_model import BaseModel
from tests.helpers import Fit, lines, temporarily
from utils.errors import ConfigError
from utils.prepare import prepare_model
from utils.registry import MODELS
from utils.runtime import Runtime
from utils.schema import RuntimeConfig
from utils.tree import to_device


@dataclass
class Graph:
    """As of a library for graphs: it moves itself."""

    nodes: torch.Tensor

    def to(self, device: torch.device) -> "Graph":
        return Graph(self.nodes.to(device))


@dataclass(frozen=True)
class Batch:
    graph: Graph
    targets: list[torch.Tensor]
    name: str = "a"


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


def test_objects_in_a_batch_move_to_the_device() -> None:
    runtime = Runtime(RuntimeConfig(device="cpu"))
    runtime.device, runtime.on_cpu = torch.device("meta"), False
    batch = Batch(Graph(torch.zeros(2)), [torch.zeros(3)])
    words = pack_sequence([torch.zeros(3, 4), torch.zeros(2, 4)])
    moved, packed = runtime.to_device((batch, words))
    assert isinstance(moved, Batch)
    assert moved.graph.nodes.is_meta
    assert moved.targets[0].is_meta
    assert moved.name == "a"
    assert not batch.graph.nodes.is_meta  # the batch itself stays as it is
    assert not batch.targets[0].is_meta
    assert packed.data.is_meta
    assert packed.batch_sizes.is_cpu  # where torch needs it


@pytest.mark.parametrize(("device", "non_blocking"), [("meta", True), ("cpu", False), ("mps", False)])
def test_a_copy_is_waited_for_where_memory_could_be_used_too_early(
    monkeypatch: pytest.MonkeyPatch, device: str, non_blocking: bool
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(torch.Tensor, "to", lambda _, device, **keys: seen.append(keys))
    to_device([torch.zeros(2)], torch.device(device))
    assert seen == [{"non_blocking": non_blocking}]


@pytest.mark.parametrize(("setting", "mode"), [(True, None), ("reduce-overhead", "reduce-overhead")])
def test_a_model_is_compiled_in_the_mode_of_the_config(
    setting: Any, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _, **keys: seen.append(keys))
    prepare_model(Runtime(RuntimeConfig(device="cpu", compile=setting)), torch.nn.Linear(1, 1))
    assert seen == [{"mode": mode}]


def test_the_parts_of_a_model_without_forward_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: seen.append(self))
    model = nn.Module()  # as of a GAN, whose trainer calls its nets
    model.generator, model.others = nn.Sequential(nn.Linear(1, 1)), nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
    prepare_model(Runtime(RuntimeConfig(device="cpu", compile=True)), model)
    assert seen == [model.generator, *model.others]


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


class Clips(BaseModel):
    """A convolution of images and one of clips, and buffers of any number of dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.images, self.clips = nn.Conv2d(1, 2, 3), nn.Conv3d(1, 2, 1)
        self.layer = nn.Linear(6, 3)
        self.register_buffer("kernels", torch.ones(2, 3, 4, 5))
        self.register_buffer("offsets", torch.ones(2, 3, 4, 5, 6))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        images = inputs.view(-1, 1, 2, 3).repeat(1, 1, 2, 1)  # (B, 1, 4, 3)
        weight = self.images(images).mean() + self.clips(images[:, None]).mean()
        return self.layer(inputs) * weight  # type: ignore[no-any-return]


def test_tensors_of_four_and_five_dimensions_in_one_model(fit: Fit) -> None:
    model = Clips()
    prepare_model(Runtime(RuntimeConfig(device="cpu")), model)
    for tensor in (model.images.weight, model.get_buffer("kernels")):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    for tensor in (model.clips.weight, model.get_buffer("offsets")):
        assert tensor.is_contiguous()
    with temporarily(MODELS, Clips):
        run = fit("trainer.epochs=1", model="Clips").run_dir
        train.main(["-r", str(run), "trainer.epochs=2"])
