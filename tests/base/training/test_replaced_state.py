"""State that users' code replaces as it trains, or reads in begin_epoch, is the same in a run resumed in mid-epoch."""

import copy
import shutil
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
from base.training.schedule import gradient_norm
from tests.helpers import Fit, curves, equal, fork, lines, needs_extra, registering, state, temporarily
from trainer.trainer import Trainer
from utils.errors import ConfigError
from utils.registry import LOSSES, MODELS, TRAINERS
from utils.schema import TrainerConfig

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
        self.register_buffer("queue", torch.zeros(12 if kind == "batch" else 1, 6))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.kind:
            mean = x.detach().mean(0)
            before = torch.zeros(6) if self.mean is None else self.mean
            self.mean = 0.9 * before + 0.1 * (mean.mean() if self.kind == "dtype" else mean)
            if self.kind == "shared":
                self.square = 0.9 * self.square + 0.1 * mean.square()
            if self.kind == "grown":
                self.queue = torch.cat([self.queue, x.detach()])[-20:]
            if self.kind == "batch":
                self.queue = x.detach()
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


_registered = registering((MODELS, Net), (LOSSES, LateLoss), (TRAINERS, Anchored, Critical, Alternating))


@pytest.mark.parametrize("more", [[], ['trainer.ema={"decay": 0.8}']], ids=["plain", "ema"])
@pytest.mark.parametrize("kind", ["dtype", "shared", "none", "grown", "batch"])
def test_a_buffer_that_a_model_replaces(fit: Fit, kind: str, more: list[str]) -> None:
    more = [*more, "data_loader.args.batch_size=12", "trainer.steps_per_epoch=3"]  # the fourth batch has 4 samples
    whole = fit(*OFTEN, *more, model={"type": "Net", "args": {"kind": kind}}).run_dir
    half = fork(whole, 4)
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


class Mask(nn.Module):
    """A buffer that comes and goes: created by an evaluation, or None in every other step."""

    mask: Tensor | None
    steps: Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.linear, self.calls = kind, nn.Linear(6, 3), 0
        self.register_buffer("mask", None)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "evaluation" and not self.training:
            self.mask = torch.full((6,), 0.5)
        if self.kind == "every other step" and self.training:
            self.steps += 1
            self.mask = x.detach().mean(0) if int(self.steps) % 2 else None
        outputs: Tensor = self.linear(x if self.mask is None else x * self.mask)
        return outputs


@pytest.mark.parametrize("kind", ["evaluation", "every other step"])
def test_averages_of_a_buffer_that_comes_and_goes(fit: Fit, kind: str) -> None:
    with temporarily(MODELS, Mask):
        model = {"type": "Mask", "args": {"kind": kind}}
        whole = fit(*OFTEN, 'trainer.ema={"decay": 0.8}', model=model).run_dir
        for step in (6, 7):
            half = fork(whole, step)
            train.main(["-r", half])
            equal(whole, half)
            shutil.rmtree(half)


class Anchoring(Trainer):
    """Stays near the weights it began with, of which it has a copy that is in no checkpoint."""

    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        super().__init__(experiment, settings)
        self.first = copy.deepcopy(self.model)

    def train_step(self, batch: Any) -> StepResult:
        inputs, targets = batch
        outputs = self.model(inputs)
        pairs = zip(self.model.parameters(), self.first.parameters(), strict=True)
        loss = self.criterion(outputs, targets) + sum((one - other.detach()).square().sum() for one, other in pairs)
        self.backward(loss)
        return StepResult(loss, outputs, targets)


def test_a_trainer_that_copies_the_model_copies_the_weights_that_the_run_began_with(fit: Fit) -> None:
    with temporarily(TRAINERS, Anchoring):
        pretrained = fit("trainer.epochs=1", "seed=7").run_dir
        whole = fit(*OFTEN, "trainer.type=Anchoring", f"model.weights={pretrained}").run_dir
        half = fork(whole, 7)
        train.main(["-r", half])
        equal(whole, half)


class Shrinking(Trainer):
    """Shrinks and perturbs its weights before each epoch."""

    def begin_epoch(self, epoch: int) -> None:
        with torch.no_grad():
            for parameter in self.experiment.model.parameters():
                parameter.mul_(0.8).add_(torch.randn_like(parameter) * 0.05)


@pytest.mark.parametrize("step", [5, 7])
def test_weights_that_begin_epoch_changes_are_changed_once(fit: Fit, step: int) -> None:
    with temporarily(TRAINERS, Shrinking):
        whole = fit(*OFTEN, "trainer.type=Shrinking").run_dir
        half = fork(whole, step)
        train.main(["-r", half])
        equal(whole, half)


class Decaying(Trainer):
    """Sets learning rates by hand, and forgets what the optimizer has kept."""

    def begin_epoch(self, epoch: int) -> None:
        for optimizer in self.training.optimizers.values():
            for group in optimizer.optimizer.param_groups:
                group["lr"] *= 0.7
            optimizer.optimizer.state.clear()


@pytest.mark.parametrize("step", [5, 7, 10])
def test_an_optimizer_that_begin_epoch_changes_is_changed_once(fit: Fit, step: int) -> None:
    optimizer = {"type": "Adam", "args": {"lr": 0.01}}
    with temporarily(TRAINERS, Decaying):
        whole = fit(*OFTEN, "trainer.epochs=3", "trainer.type=Decaying", optimizer=optimizer).run_dir
        half = fork(whole, step)
        train.main(["-r", half])
        equal(whole, half)
    assert [line["lr"] for line in lines(whole)] == pytest.approx([0.007, 0.0049, 0.00343])


class Words(nn.Module):
    """With sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(9, 4, sparse=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.out(self.table((x.abs() * 3).long().clamp(max=8)).mean(1))
        return outputs


@pytest.mark.parametrize("args", [{}, {"momentum": 0.9}])
def test_sparse_gradients_train_and_resume(fit: Fit, args: Any) -> None:
    with temporarily(MODELS, Words):
        optimizer = {"type": "SGD", "args": {"lr": 0.05, **args}}
        whole = fit(*OFTEN, model="Words", optimizer=optimizer).run_dir
        half = fork(whole, 7)
        train.main(["-r", half])
        equal(whole, half)


@pytest.mark.parametrize("kind", ["Adam", "SparseAdam"])
@pytest.mark.parametrize("several", [False, True])
def test_an_optimizer_that_does_not_take_the_gradients_is_named(fit: Fit, kind: str, several: bool) -> None:
    optimizer: Any = {"type": kind, "args": {"lr": 0.05}}
    if several:
        optimizer = {"table": optimizer, "out": optimizer}
    with (
        temporarily(MODELS, Words),
        temporarily(TRAINERS, Both),
        pytest.raises(ConfigError, match=rf"optimizer: {kind}.step failed: .*\n.*nn.Embedding"),
    ):
        fit("trainer.type=Both" if several else "seed=0", model="Words", optimizer=optimizer)


def test_clipping_sparse_gradients_by_value_is_refused(fit: Fit) -> None:
    with temporarily(MODELS, Words), pytest.raises(ConfigError, match="clip_grad_value cannot clip sparse gradients"):
        fit("trainer.clip_grad_value=1", model="Words")


class Both(Trainer):
    """Steps an optimizer for the embeddings and another one for all else."""

    def train_step(self, batch: Any) -> StepResult:
        for name in ("table", "out"):
            with self.optimizing(name):
                result = super().train_step(batch)
        return result


def test_the_norm_of_sparse_gradients_is_that_of_dense_ones() -> None:
    norms = []
    for sparse in (False, True):
        torch.manual_seed(0)
        table, out = nn.Embedding(9, 4, sparse=sparse), nn.Linear(4, 3)
        out(table(torch.tensor([1, 5, 1]))).sum().backward()
        norms.append(float(gradient_norm([*table.parameters(), *out.parameters()])))
    assert norms[1] == pytest.approx(norms[0])


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
