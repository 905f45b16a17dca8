"""State that users' code replaces as it trains, or reads in begin_epoch, is the same in a run resumed in mid-epoch."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim import Optimizer

import train
from base.experiment import Experiment
from base.load_run import load_run
from base.metric import StepResult
from tests.base.training.test_resume import equal, fork
from tests.conftest import load_script
from tests.helpers import curves, needs_extra, state, temporarily
from trainer.trainer import Trainer
from utils.registry import LOSSES, MODELS, TRAINERS
from utils.schema import TrainerConfig

Fit = Callable[..., train.Result]
OFTEN = ("trainer.save_every_steps=1", "trainer.keep_last=null", "trainer.epochs=3")


class Net(nn.Module):
    """(B, 6) -> (B, 3), shifted by means of its inputs in buffers that each training step replaces."""

    mean: Tensor | None
    square: Tensor
    queue: Tensor

    def __init__(self, kind: str = "") -> None:
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(6, 3)
        shared = torch.zeros(6)
        self.register_buffer("mean", torch.tensor(0) if kind == "dtype" else None if kind == "none" else shared)
        self.register_buffer("square", shared)
        self.register_buffer("queue", torch.zeros(1, 6))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.kind:
            mean = x.detach().mean(0)
            before = torch.zeros(6) if self.mean is None else self.mean
            self.mean = 0.9 * before + 0.1 * (mean.mean() if self.kind == "dtype" else mean)
            if self.kind == "shared":
                self.square = 0.9 * self.square + 0.1 * mean.square()
            if self.kind == "grown":
                self.queue = torch.cat([self.queue, x.detach()])[-20:]
        shift = 0 if self.mean is None else self.mean
        outputs: Tensor = self.linear(x - shift + self.square + self.queue.mean(0))
        return outputs


class LateLoss(nn.Module):
    """Cross entropy, divided by a running mean of itself that is created in the first step."""

    mean: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", None)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = F.cross_entropy(outputs, targets)
        if self.training:
            self.mean = loss.detach() if self.mean is None else 0.9 * self.mean + 0.1 * loss.detach()
        return loss if self.mean is None else loss / self.mean


class Anchored(Trainer):
    """Stays near the weights at the start of the epoch."""

    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        super().__init__(experiment, settings)
        self.anchor = Net().requires_grad_(False)

    def begin_epoch(self, epoch: int) -> None:
        self.anchor.load_state_dict(self.experiment.model.state_dict())

    def stateful(self) -> dict[str, Any]:
        return {**super().stateful(), "anchor": self.anchor}

    def train_step(self, batch: Any) -> StepResult:
        inputs, targets = batch
        outputs = self.model(inputs)
        loss = self.criterion(outputs, targets) + (outputs - self.anchor(inputs)).square().mean()
        self.backward(loss)
        return StepResult(loss, outputs, targets)


class Doubles(Optimizer):
    """Momentum in float64."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state["momentum"] = 0.9 * state.get("momentum", 0) + parameter.grad.double()
            parameter.sub_((0.01 * state["momentum"]).float())


class Critical(Trainer):
    """With a second net and an optimizer of its own."""

    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        super().__init__(experiment, settings)
        self.critic = nn.Linear(6, 1)
        self.own = Doubles(self.critic.parameters())

    def stateful(self) -> dict[str, Any]:
        return {**super().stateful(), "critic": self.critic, "own": self.own}

    def train_step(self, batch: Any) -> StepResult:
        inputs, targets = batch
        self.own.zero_grad()
        (self.critic(inputs) - 1).square().mean().backward()
        self.own.step()
        return super().train_step((inputs + self.critic(inputs).detach(), targets))


class Alternating(Trainer):
    """Steps the second optimizer every second time."""

    def train_step(self, batch: Any) -> StepResult:
        inputs, targets = batch
        outputs = self.model(inputs)
        loss = self.criterion(outputs, targets)
        with self.optimizing("fc1"):
            self.backward(loss)
        if self.progress.steps % 2 == 0:
            with self.optimizing("fc2"):
                self.backward(self.criterion(self.model(inputs), targets))
        return StepResult(loss, outputs, targets)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with (
        temporarily(MODELS, Net),
        temporarily(LOSSES, LateLoss),
        temporarily(TRAINERS, Anchored, Critical, Alternating),
    ):
        yield


@pytest.mark.parametrize("more", [[], ['trainer.ema={"decay": 0.8}']], ids=["plain", "ema"])
@pytest.mark.parametrize("kind", ["dtype", "shared", "none", "grown"])
def test_a_buffer_that_a_model_replaces(fit: Fit, kind: str, more: list[str]) -> None:
    whole = fit(*OFTEN, *more, model={"type": "Net", "args": {"kind": kind}}).run_dir
    half = fork(whole, 7)
    train.main(["-r", half])
    equal(whole, half)
    loaded = load_run(whole).model
    assert kind != "grown" or len(loaded.queue) == 20  # type: ignore[arg-type]


class Table(nn.Module):
    """A buffer that grows with the largest batch, as a table of positions does; that of validation is the largest."""

    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.register_buffer("rows", torch.ones(1, 6))

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > len(self.rows):
            self.rows = torch.ones(len(x), 6)
        outputs: Tensor = self.linear(x * self.rows[: len(x)])
        return outputs


def test_averages_of_a_buffer_that_an_evaluation_has_replaced(fit: Fit) -> None:
    with temporarily(MODELS, Table):
        keys = ("data_loader.args.eval_batch_size=16", "data_loader.args.validation_split=16")
        whole = fit(*OFTEN, *keys, 'trainer.ema={"decay": 0.8}', model="Table").run_dir
        half = fork(whole, state(whole)["progress"]["steps"] // 3)
        train.main(["-r", half])
        equal(whole, half)


@pytest.mark.parametrize("override", ["loss=LateLoss", "trainer.type=Anchored", "trainer.type=Critical"])
def test_what_a_loss_or_trainer_keeps(fit: Fit, override: str) -> None:
    whole = fit(*OFTEN, override, model="Net").run_dir
    half = fork(whole, 7)
    train.main(["-r", half])
    equal(whole, half)


@needs_extra("tensorboard")
@pytest.mark.usefixtures("tensorboard")
def test_gradients_of_an_optimizer_that_did_not_step_are_in_no_curve(fit: Fit) -> None:
    sgd = {"type": "SGD", "args": {"lr": 0.1}}
    often = (*OFTEN, "trainer.type=Alternating", "trainer.log_every_steps=1")
    whole = fit(*often, optimizer={"fc1": sgd, "fc2": sgd}).run_dir
    half = fork(whole, 7)
    train.main(["-r", half])
    assert curves(whole) == curves(half)


class Plain(nn.Module):
    """A loss without a state."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)


def test_a_checkpoint_from_before_losses_without_a_state_were_saved(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    with temporarily(LOSSES, Plain):
        with monkeypatch.context() as before:
            before.setattr("base.base_trainer.stateful_loss", lambda loss: None)
            run = fit("trainer.epochs=1", loss="Plain").run_dir
        assert "loss" not in state(run)
        train.main(["-r", run, "trainer.epochs=2"])
        load_script("test").main(["-r", str(run)])
        assert "loss" in state(run)
