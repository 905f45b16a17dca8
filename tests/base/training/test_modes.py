"""Training and evaluation: what a model or loss does in one of them only, and a step without ``backward``."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from base.metric import StepResult
from tests.helpers import Fit, lines, needs_extra, registering, same, state
from trainer.trainer import Trainer
from utils.distributed import parallel
from utils.errors import ConfigError, UserError
from utils.registry import LOSSES, MODELS, TRAINERS

IMAGES = {"num_samples": 33, "input_shape": [1, 4, 4], "num_classes": 3, "batch_size": 8, "validation_split": 8}


class RunningLoss(nn.Module):
    """Cross entropy with a running mean of itself, in training only."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = F.cross_entropy(outputs, targets)
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * loss.detach())
        return loss


class DroppingLoss(nn.Module):
    """Cross entropy that leaves half of the outputs out, in training only."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(F.dropout(outputs, training=self.training), targets)


class Table(nn.Module):
    """Adds a table that it extends to the longest batch so far, as position encodings do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.table = nn.Linear(6, 3), torch.zeros(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        if len(self.table) < len(x):
            self.table = torch.linspace(0, 1, len(x))[:, None] * torch.ones(1, 3)
        outputs: Tensor = self.linear(x) * self.table[: len(x)]
        return outputs


class Replacing(nn.Module):
    """(B, 1, 4, 4) -> (B, 3), with a BatchNorm, and a buffer that is replaced in each training step."""

    center: Tensor

    def __init__(self, view: bool = False) -> None:
        super().__init__()
        self.layers, self.view = nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3)), view
        self.out = nn.Linear(27, 3)
        self.register_buffer("center", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)
        outputs: Tensor = self.out(x.view(len(x), -1) if self.view else x.flatten(1))
        if self.training:
            self.center = 0.9 * self.center + 0.1 * outputs.detach().mean(0)
        return outputs - self.center


class PlainBackward(Trainer):
    """As in a loop by hand."""

    def train_step(self, batch: Any) -> StepResult:
        inputs, targets = batch
        outputs = self.model(inputs)
        loss = self.criterion(outputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return StepResult(loss, outputs, targets)


_registered = registering((LOSSES, RunningLoss, DroppingLoss), (MODELS, Table, Replacing), (TRAINERS, PlainBackward))


@pytest.mark.parametrize("loss", ["RunningLoss", {"only": {"type": "RunningLoss"}}])
def test_a_loss_is_in_evaluation_mode_in_a_validation(fit: Fit, monkeypatch: pytest.MonkeyPatch, loss: Any) -> None:
    validated = state(fit(loss=loss).run_dir)["loss"]
    monkeypatch.setattr("base.base_trainer.BaseTrainer.validate", lambda trainer: {})
    assert same(validated, state(fit(loss=loss).run_dir)["loss"])


def test_a_loss_without_a_state_is_in_evaluation_mode_too(fit: Fit) -> None:
    still = {"loss": "DroppingLoss", "optimizer": {"type": "SGD", "args": {"lr": 0.0}}}
    values = {line["val_loss"] for line in lines(fit("trainer.epochs=3", **still).run_dir)}
    assert len(values) == 1


def test_what_a_model_keeps_in_a_validation_works_in_training(fit: Fit) -> None:
    run = fit("data_loader.args.eval_batch_size=10", "trainer.epochs=3", model="Table").run_dir
    assert len(lines(run)) == 3


@needs_extra("advice")
@pytest.mark.parametrize("loss", ["cross_entropy", "RunningLoss"])
def test_trying_the_smallest_batch_leaves_no_trace(fit: Fit, monkeypatch: pytest.MonkeyPatch, loss: str) -> None:
    keys = {"data_loader": {"type": "RandomTensorLoader", "args": IMAGES}, "model": "Replacing", "loss": loss}
    tried = state(fit(**keys).run_dir)
    monkeypatch.setattr("extras.advice.advice.check_smallest_batch", lambda trainer: None)
    untried = state(fit(**keys).run_dir)
    assert all(same(tried[part], untried[part]) for part in tried.keys() & {"model", "loss", "metrics"})


@needs_extra("advice")
def test_a_view_of_an_output_in_channels_last_is_explained(fit: Fit) -> None:
    model = {"type": "Replacing", "args": {"view": True}}
    with pytest.raises(UserError, match=r"channels_last here, which is faster; use x.flatten\(1\) or x.reshape"):
        fit(data_loader={"type": "RandomTensorLoader", "args": {**IMAGES, "num_samples": 40}}, model=model)


def test_gradients_without_self_backward_are_refused_where_they_would_be_wrong(fit: Fit) -> None:
    plain = lines(fit("trainer.type=PlainBackward").run_dir)
    assert [line["loss"] for line in plain] == [line["loss"] for line in lines(fit().run_dir)]
    with pytest.raises(ConfigError, match=r"PlainBackward.train_step computes gradients without self.backward\(loss\)"):
        fit("trainer.type=PlainBackward", "trainer.accumulate_steps=2")


def test_a_gradient_of_another_process_counts_here_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of which one has no gradient of one parameter: both take the same step."""
    parameters = [[nn.Parameter(torch.zeros(2)) for _ in range(3)] for _ in range(2)]
    for process, values in zip(parameters, [(1.0, None, None), (3.0, 4.0, None)], strict=True):
        for parameter, value in zip(process, values, strict=True):
            parameter.grad = None if value is None else torch.full((2,), value)
    sent: list[Tensor] = []
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: sent.append(tensor.clone()))
    before = [[each.grad if each.grad is None else each.grad.clone() for each in process] for process in parameters]
    for process in parameters:
        parallel.average_gradients(process)
    total = sent[0] + sent[1]
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.copy_(total))
    for process, gradients in zip(parameters, before, strict=True):
        for parameter, gradient in zip(process, gradients, strict=True):
            parameter.grad = gradient
        parallel.average_gradients(process)
        assert [None if each.grad is None else each.grad.tolist() for each in process] == [[2, 2], [2, 2], None]
