"""Parameter groups, several optimizers, frozen parameters, and losses with parameters of their own."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import train
from base.base_model import BaseModel
from base.base_trainer import BaseTrainer
from base.metric import StepResult
from base.training.parameters import no_match
from data_loader.random_tensor import RandomTensorLoader
from model.two_layer_net import TwoLayerNet
from tests.conftest import load_script
from tests.helpers import (
    Fit,
    Json,
    curves,
    identical,
    lines,
    needs_extra,
    registering,
    resumed,
    same,
    state,
    temporarily,
)
from trainer.trainer import Trainer
from utils.errors import ConfigError, UserError
from utils.registry import LOSSES, MODELS, OPTIMIZERS, TRAINERS


class Parts(BaseModel):
    """A backbone with BatchNorm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU())
        self.head = nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.backbone(inputs))  # type: ignore[no-any-return]


class Pair(BaseModel):
    """A generator and a discriminator of vectors of 6 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6))
        self.discriminator = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))


class Adversarial(BaseTrainer):
    supervised = False
    model: Any
    logs = ("generator_loss",)
    critic_steps = 1

    def train_step(self, batch: Any) -> StepResult:
        real = batch[0]
        generator, discriminator = self.model.generator, self.model.discriminator
        ones = torch.ones(len(real), 1)
        for _ in range(self.critic_steps):
            fake = generator(torch.randn(len(real), 4))
            with self.optimizing("discriminator"):
                critic = self.criterion(discriminator(real), ones) + self.criterion(
                    discriminator(fake.detach()), ones - 1
                )
                self.backward(critic)
        with self.optimizing("generator"):
            loss = self.criterion(discriminator(generator(torch.randn(len(real), 4))), ones)
            self.backward(loss)
        return StepResult(critic, fake, real, log={"generator_loss": loss})

    def eval_step(self, batch: Any) -> StepResult:
        real = batch[0]
        fake = self.model.generator(torch.ones(len(real), 4))
        return StepResult(self.criterion(self.model.discriminator(fake), torch.ones(len(real), 1)), fake, real)


class Careful(Adversarial):
    """Two steps of the discriminator for one of the generator."""

    critic_steps = 2


class Careless(Adversarial):
    def train_step(self, batch: Any) -> StepResult:
        loss = self.criterion(self.model.discriminator(batch[0]), torch.ones(len(batch[0]), 1))
        self.backward(loss)
        return StepResult(loss, batch[0], batch[0])


class Idle(Careless):
    def backward(self, loss: Tensor) -> None:
        pass


class Forgetful(Careless):
    def train_step(self, batch: Any) -> StepResult:
        with self.optimizing("generator"):
            pass
        return self.eval_step(batch)


class OwnGradients(Adversarial):
    def compute_gradients(self, *args: Any, **more: Any) -> Any:
        raise NotImplementedError


class PlainPair(BaseModel):
    """A pair without BatchNorm, whose result depends on how a batch is divided."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6))
        self.discriminator = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))


class Steady(Adversarial):
    """Without random numbers."""

    def train_step(self, batch: Any) -> StepResult:
        real, ones = batch[0], torch.ones(len(batch[0]), 1)
        fake = self.model.generator(real[:, :4])
        with self.optimizing("discriminator"):
            critic = self.criterion(self.model.discriminator(real), ones)
            critic = critic + self.criterion(self.model.discriminator(fake.detach()), ones - 1)
            self.backward(critic)
        with self.optimizing("generator"):
            # not by the discriminator, whose weights have moved only where this is the last micro-batch
            loss = fake.square().mean()
            self.backward(loss)
        return StepResult(critic, fake, real, log={"generator_loss": loss})

    def eval_step(self, batch: Any) -> StepResult:
        result = super().eval_step(batch)
        return result._replace(log={"generator_loss": result.outputs.square().mean()})


class Layers(Trainer):
    """Steps the second layer of two by the loss and a penalty, each given to ``backward``."""

    model: Any

    def train_step(self, batch: Any) -> StepResult:
        inputs, targets = batch
        with self.optimizing("first"):
            self.backward(self.criterion(self.model(inputs), targets))
        with self.optimizing("second"):
            outputs = self.model(inputs)
            loss = self.criterion(outputs, targets)
            self.backward(loss)
            self.backward(0.1 * self.model.fc2.weight.square().sum())
        return StepResult(loss, outputs, targets)


class LayersAtOnce(Trainer):
    """Computes the losses of two layers, of unlike targets, before it steps either."""

    def train_step(self, batch: Any) -> StepResult:
        inputs, targets = batch
        outputs = self.model(inputs)
        loss, other = self.criterion(outputs, targets), self.criterion(self.model(inputs), targets // 2)
        with self.optimizing("second"):
            self.backward(loss)
        with self.optimizing("first"):
            self.backward(other)
        return StepResult(loss, outputs, targets)


class Sometimes(Trainer):
    """Steps the second layer in every other micro-batch."""

    odd = 0

    def __init__(self, experiment: Any, settings: Any) -> None:
        super().__init__(experiment, settings)
        self.calls = 0

    def train_step(self, batch: Any) -> StepResult:
        self.calls += 1
        for name in ("first", "second") if self.calls % 2 == self.odd else ("first",):
            with self.optimizing(name):
                outputs = self.model(batch[0])
                loss = self.criterion(outputs, batch[1])
                self.backward(loss)
        return StepResult(loss, outputs, batch[1])


class SometimesOdd(Sometimes):
    odd = 1


class Dropped(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Dropout(), nn.Linear(6, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)  # type: ignore[no-any-return]


class Twice(torch.optim.SGD):
    """Evaluates the loss twice at the same weights."""

    losses: ClassVar[list[tuple[float, float]]] = []

    def step(self, closure: Callable[[], Tensor]) -> None:  # type: ignore[override]
        self.losses.append((float(closure()), float(closure())))
        super().step()


class Unasked(torch.optim.SGD):
    """Needs a closure, but declares it as torch's optimizers do, which can do without."""

    def step(self, closure: Any = None) -> Any:
        closure()
        return super().step()


class Asserting(Unasked):
    def step(self, closure: Any = None) -> Any:
        assert closure is not None, "SAM requires closure, but it was not provided"
        return super().step(closure)


class Counting(torch.optim.SGD):
    """Keeps numbers of its own in its groups, which determine its steps, as Prodigy and schedule-free optimizers do."""

    def __init__(self, params: Any, **sgd: Any) -> None:
        super().__init__(params, **sgd)
        for group in self.param_groups:
            group |= {"count": 0, "counts": [0]}

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["count"] += 1
            group["counts"][0] += 1
            group["momentum"] = 1 - 1 / (group["count"] + group["counts"][0])
        return super().step(closure)


class LookingAhead(torch.optim.Optimizer):
    """Wraps another optimizer as many do, without the constructor of torch."""

    def __init__(self, params: Any, *, lr: float, wraps: bool = True) -> None:
        inner = torch.optim.Adam(params, lr)
        self.defaults, self.param_groups, self.state = inner.defaults, inner.param_groups, inner.state
        if wraps:
            self.inner = inner

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)
        self.param_groups, self.state = self.inner.param_groups, self.inner.state


class LearntScale(nn.Module):
    """A loss whose temperature is learnt, and which counts its calls."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += int(self.training and torch.is_grad_enabled())
        return nn.functional.cross_entropy(outputs * self.log_scale.exp(), targets)


_registered = registering(
    (MODELS, Parts, Pair, PlainPair, Dropped),
    (OPTIMIZERS, Twice, Unasked, Asserting, Counting, LookingAhead),
    (LOSSES, LearntScale),
    (TRAINERS, Adversarial, Careful, Careless, Idle, Forgetful, OwnGradients),
    (TRAINERS, Steady, Layers, LayersAtOnce, Sometimes, SometimesOdd),
)


GROUPS: Json = {
    "type": "AdamW",
    "args": {"lr": 0.01},
    "groups": [
        {"params": ["*.bias"], "args": {"weight_decay": 0.0}},
        {"params": ["backbone.*"], "args": {"lr": 0.001}},
    ],
}
GAN: Json = {
    "model": "Pair",
    "loss": "BCEWithLogitsLoss",
    "metrics": [],
    "optimizer": {
        "generator": {"type": "Adam", "args": {"lr": 0.01}},
        "discriminator": {"type": "SGD", "args": {"lr": 0.02, "momentum": 0.9}, "clip_grad_norm": 0.5},
    },
    "lr_scheduler": {"generator": {"type": "OneCycleLR", "args": {"max_lr": 0.02}, "interval": "step"}},
}


def resumes_exactly(fit: Fit, tmp_path: Path, *overrides: str, **config: Any) -> Path:
    """A run, which is the same when it is resumed from a checkpoint in the middle."""
    often = ("trainer.save_every_steps=2", "trainer.keep_last=null", "trainer.tensorboard=true")
    whole = fit(*often, *overrides, **config).run_dir
    identical(whole, resumed(whole, tmp_path))
    return whole


# ------------------------------------------------------------------ groups


def test_groups_train_as_those_of_torch(fit: Fit) -> None:
    run = fit("trainer.log_every_steps=1", "trainer.tensorboard=true", model="Parts", optimizer=GROUPS).run_dir
    saved = state(run)["optimizer"]["param_groups"]
    assert [(group["lr"], group["weight_decay"], len(group["params"])) for group in saved] == [
        (0.01, 0.01, 1),  # the weight of the head
        (0.01, 0.0, 3),  # all biases: the first group that matches has them
        (0.001, 0.01, 2),
    ]
    last = lines(run)[-1]
    assert (last["lr"], last["lr_bias"], last["lr_backbone"]) == (0.01, 0.01, 0.001)
    assert {"learning_rate", "learning_rate/bias", "learning_rate/backbone"} <= curves(run).keys()


def test_a_schedule_moves_every_group(fit: Fit, tmp_path: Path) -> None:
    schedule = {"type": "StepLR", "args": {"step_size": 1, "gamma": 0.5}}
    whole = resumes_exactly(fit, tmp_path, model="Parts", optimizer=GROUPS, lr_scheduler=schedule)
    assert [line["lr_backbone"] for line in lines(whole)] == [0.001, 0.0005]


def test_a_rate_for_each_group(fit: Fit) -> None:
    schedule = {"type": "OneCycleLR", "args": {"max_lr": [0.03, 0.02, 0.01]}, "interval": "step"}
    run = fit(model="Parts", optimizer={**GROUPS, "args": {}}, lr_scheduler=schedule).run_dir
    initial = state(run)["schedule"]["scheduler"]
    assert initial["total_steps"] == 10


def test_the_start_shows_each_group(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit(model="Parts", optimizer=GROUPS)
    out = capsys.readouterr().out
    assert "others: 15 parameters, lr 0.01" in out
    assert "backbone: 35 parameters, lr 0.001" in out


def test_the_start_shows_what_a_model_has_frozen_itself(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    class Frozen(Parts):
        def __init__(self) -> None:
            super().__init__()
            self.backbone.requires_grad_(False)

    with temporarily(MODELS, Frozen):
        fit(model="Frozen", optimizer=GROUPS)
    assert "backbone: 35 parameters (35 of them without requires_grad, so not trained), lr" in capsys.readouterr().out


def test_the_arguments_of_a_group_change_on_resume(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit(model="Parts", optimizer=GROUPS).run_dir
    result = train.main(["-r", str(run), "optimizer.groups.1.args.lr=0.5", "trainer.epochs=3"])
    assert "resumed with optimizer.groups.1.args.lr 0.001 -> 0.5" in capsys.readouterr().out
    assert result.last["lr_backbone"] == 0.5
    with pytest.raises(ConfigError, match=r"optimizer.groups.1.params: cannot change when a run is resumed"):
        train.main(["-r", str(run), 'optimizer.groups.1.params=["head.*"]'])


MISTAKES = [
    (
        {"groups": [{"params": ["backbon.*"]}]},
        r'groups.0.params.0: no parameter matches "backbon.\*"; did you mean "backb',
    ),
    (
        {"groups": [{"params": ["*"]}, {"params": ["*.bias"]}]},
        r"groups.1.params: \*.bias: an earlier group already has all",
    ),
    ({"groups": [{"params": ["*"], "args": {"lrr": 1}}]}, 'groups.0.args.lrr: SGD has no argument "lrr"; did you mean'),
    ({"groups": [{"params": ["*"], "args": {"lr": -1}}]}, "groups.0.args.lr: SGD rejects this: Invalid learning"),
    ({"groups": [{"params": ["*"], "args": {"lr": "x"}}]}, "groups.0.args.lr: should be a number"),
    ({"groups": [{"param": ["*"]}]}, 'groups.0.param: unknown key "param"; did you mean "params"'),
    ({"groups": [{"params": []}]}, "groups.0.params: should have at least 1 item"),
    (
        {"type": "LookingAhead", "groups": [{"params": ["*"], "args": {"wraps": False}}]},
        "groups.0.args.wraps: LookingAhead has a single value for all parameters; a group can set: amsgrad, betas",
    ),
    ({"params": ["head.*"]}, "optimizer: no optimizer trains backbone.0.weight, backbone.0.bias, backbone.1.weight"),
]


@pytest.mark.parametrize(("keys", "says"), MISTAKES)
def test_a_mistake_in_the_groups_is_located(fit: Fit, keys: Json, says: str) -> None:
    with pytest.raises(UserError, match=says):
        fit(model="Parts", optimizer={"type": "SGD", "args": {"lr": 0.1}, **keys})


def test_gradients_are_clipped_by_value(fit: Fit) -> None:
    limit = 1e-5
    run = fit("trainer.epochs=1", f"trainer.clip_grad_value={limit}", model="Parts").run_dir
    start = fit("trainer.epochs=1", "optimizer.args.lr=0", model="Parts").run_dir
    before, after = state(start)["model"], state(run)["model"]
    for name in ("head.weight", "backbone.0.weight"):
        moved = (after[name] - before[name]).abs().max()
        assert 0 < moved <= 5 * 0.1 * limit * 1.01


# ------------------------------------------------------------------ frozen parameters


@pytest.mark.slow
def test_frozen_parameters_do_not_change_until_they_are_thawed(fit: Fit, tmp_path: Path) -> None:
    config: Json = {
        "model": "Parts",
        "optimizer": {"type": "Adam", "args": {"lr": 0.01}},
        "trainer": {"epochs": 3, "freeze": [{"params": ["backbone.*"], "epochs": 2}]},
    }
    whole = resumes_exactly(fit, tmp_path, **config)
    epochs = [state(whole, f"step-{5 * epoch:08}.pth")["model"] for epoch in (1, 2, 3)]
    for name in epochs[0]:
        if name.startswith("backbone"):
            assert torch.equal(epochs[0][name], epochs[1][name]), name  # running means of BatchNorm too
        assert not torch.equal(epochs[1][name], epochs[2][name]), name
    assert epochs[1]["backbone.1.num_batches_tracked"] == 0


@pytest.mark.parametrize("args", [{"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.5}])
def test_thawed_parameters_start_with_the_first_momentum_of_sgd(fit: Fit, args: Json) -> None:
    freeze = {"trainer": {"epochs": 2, "freeze": [{"params": ["backbone.*"], "epochs": 1}]}}

    def weights_of(**more: Any) -> Json:
        return state(
            fit(model="Parts", optimizer={"type": "SGD", "args": {"lr": 0.01} | args | more}, **freeze).run_dir
        )

    ours, plain = weights_of()["model"], weights_of(foreach=False)["model"]
    for name, value in plain.items():
        torch.testing.assert_close(ours[name], value, msg=name)


@pytest.mark.parametrize("freeze", [[], [{"params": ["backbone.*"], "epochs": 1}]])
def test_a_fused_sgd_that_the_config_asks_for_takes_torchs_first_step(fit: Fit, freeze: list[Json]) -> None:
    def first_step(*, fused: bool) -> Json:
        args = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "fused": fused}
        run = fit(
            model="Parts",
            optimizer={"type": "SGD", "args": args},
            trainer={"epochs": 2, "freeze": freeze, "save_every_steps": 1, "keep_last": 99},
        ).run_dir
        found: Json = state(run, "step-00000001.pth")["model"]
        return found

    ours, plain = first_step(fused=True), first_step(fused=False)
    for name, value in plain.items():
        torch.testing.assert_close(ours[name], value, msg=name)


def test_a_run_with_frozen_parameters_resumes_with_all_of_them(fit: Fit, tmp_path: Path) -> None:
    sgd: Json = {"type": "SGD", "args": {"lr": 0.01, "momentum": 0.9}}
    run = fit("trainer.epochs=1", 'trainer.freeze=[{"params": ["backbone.*"]}]', model="Parts", optimizer=sgd).run_dir
    train.main(["-r", str(run), "trainer.epochs=2", "trainer.freeze=[]"])
    assert len(state(run)["optimizer"]["state"]) == 6


def test_what_is_frozen_for_good_needs_no_optimizer(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit(
        'trainer.freeze=[{"params": ["backbone.*"]}]',
        model="Parts",
        optimizer={**GROUPS, "params": ["head.*"], "groups": []},
    ).run_dir
    assert len(state(run)["optimizer"]["param_groups"][0]["params"]) == 2
    assert "backbone.*: 45 parameters, for the whole run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("freeze", "says"),
    [
        ('[{"params": ["*"]}]', "trainer.freeze: in epoch 1, every parameter is frozen"),
        ('[{"params": ["*"], "epochs": 1}, {"params": ["head"]}]', 'freeze.1.params.0: no parameter matches "head"'),
        ('[{"params": ["*"], "epochs": 0}]', "freeze.0.epochs: should be greater than 0, got 0"),
    ],
)
def test_a_mistake_in_what_is_frozen_is_located(fit: Fit, freeze: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        fit(f"trainer.freeze={freeze}", model="Parts")


# ------------------------------------------------------------------ several optimizers


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["Adversarial", "Careful"])
def test_several_optimizers_resume_exactly(fit: Fit, tmp_path: Path, trainer: str) -> None:
    whole = resumes_exactly(fit, tmp_path, f"trainer.type={trainer}", **GAN)
    last = lines(whole)[-1]
    assert {"generator_loss", "lr_generator", "lr_discriminator"} <= last.keys()
    assert last["lr_discriminator"] == 0.02
    assert last["lr_generator"] < 0.002  # the end of its schedule
    saved = state(whole)
    assert saved["schedule.generator"]["moves"] == 10
    assert {"optimizer.generator", "optimizer.discriminator"} <= saved.keys()
    step = saved["optimizer.discriminator"]["state"][0].keys()
    assert "momentum_buffer" in step
    load_script("test").main(["-r", str(whole)])


def test_each_optimizer_trains_as_by_hand(fit: Fit) -> None:
    """One step of each, from the same weights and random numbers, against torch alone."""
    config = {**GAN, "lr_scheduler": None}
    shown = list[Json]()

    class Shown(Adversarial):
        def train_step(self, batch: Any) -> StepResult:
            before = {name: value.clone() for name, value in self.experiment.model.state_dict().items()}
            shown.append({"batch": batch[0].clone(), "random": torch.get_rng_state(), "before": before})
            return super().train_step(batch)

    with temporarily(TRAINERS, Shown):
        run = fit("trainer.type=Shown", "trainer.epochs=1", "trainer.steps_per_epoch=1", **config).run_dir
    [first] = shown
    model = Pair()
    model.load_state_dict(first["before"])
    torch.set_rng_state(first["random"])
    real, loss = first["batch"], nn.BCEWithLogitsLoss()
    ones = torch.ones(len(real), 1)
    by_generator = torch.optim.Adam(model.generator.parameters(), lr=0.01)
    by_discriminator = torch.optim.SGD(model.discriminator.parameters(), lr=0.02, momentum=0.9)
    fake = model.generator(torch.randn(len(real), 4))
    (loss(model.discriminator(real), ones) + loss(model.discriminator(fake.detach()), ones - 1)).backward()
    nn.utils.clip_grad_norm_(model.discriminator.parameters(), 0.5)
    by_discriminator.step()
    by_generator.zero_grad()
    loss(model.discriminator(model.generator(torch.randn(len(real), 4))), ones).backward()
    by_generator.step()
    for name, value in state(run)["model"].items():
        assert torch.allclose(value, model.state_dict()[name], atol=1e-6), name


def test_the_gradient_norm_of_several_optimizers_is_that_before_clipping(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[Tensor | None] = []
    log_interval = BaseTrainer.log_interval

    def watched(self: BaseTrainer, *args: Any) -> None:
        norms.append(self.gradient_norm)
        log_interval(self, *args)

    monkeypatch.setattr(BaseTrainer, "log_interval", watched)
    first = ("trainer.type=Adversarial", "trainer.epochs=1", "trainer.steps_per_epoch=1", "trainer.log_every_steps=1")
    for limit in (1e3, 1e-3):
        fit(*first, f"optimizer.discriminator.clip_grad_norm={limit}", **GAN)
    fit(*first, "optimizer.discriminator.clip_grad_norm=null", **GAN)
    high, low, none = norms
    assert none is None
    assert high is not None
    assert low is not None
    assert float(low) == pytest.approx(float(high), rel=0.05)  # the generator's follows from another discriminator
    assert float(low) > 0.1


class LateGenerator(Adversarial):
    """Steps the generator in every third step, first in the third one."""

    def optimizing(self, *names: str) -> Any:
        waits = names == ("generator",) and (self.progress.steps + 1) % 3
        return super().optimizing("discriminator" if waits else names[0])


@pytest.mark.parametrize("scheduler", ["OneCycleLR", "ChainedScheduler"])
def test_the_schedule_of_an_optimizer_that_steps_later_begins_with_the_run(fit: Fit, scheduler: str) -> None:
    """Without torch's warning that the optimizer should step first."""
    cycle: Json = {"type": "OneCycleLR", "args": {"max_lr": 0.02}}
    schedule = cycle if scheduler == "OneCycleLR" else {"type": scheduler, "args": {"schedulers": [cycle]}}
    late = {"lr_scheduler": {"generator": {**schedule, "interval": "step"}}}
    with temporarily(TRAINERS, LateGenerator):
        run = fit("trainer.type=LateGenerator", "trainer.epochs=2", **{**GAN, **late}).run_dir
    always = fit("trainer.type=Adversarial", "trainer.epochs=2", **GAN).run_dir
    assert [line["lr_generator"] for line in lines(run)] == [line["lr_generator"] for line in lines(always)]


class Critic(Adversarial):
    """Steps the discriminator several times."""

    def train_step(self, batch: Any) -> StepResult:
        for _ in range(4):
            super().train_step(batch)
        return super().train_step(batch)


def test_an_optimizer_that_steps_several_times_counts_once(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[list[float]] = []
    log_interval = BaseTrainer.log_interval

    def watched(self: BaseTrainer, *args: Any) -> None:
        gradients = [each.grad for each in self.training.parameters if each.grad is not None]
        norms.append([float(torch.nn.utils.get_total_norm(gradients)), float(self.gradient_norm or 0.0)])
        log_interval(self, *args)

    monkeypatch.setattr(BaseTrainer, "log_interval", watched)
    first = ("trainer.type=Critic", "trainer.epochs=1", "trainer.steps_per_epoch=1", "trainer.log_every_steps=1")
    with temporarily(TRAINERS, Critic):
        fit(*first, "optimizer.discriminator.clip_grad_norm=1000", **GAN)
    [[total, logged]] = norms
    assert logged == pytest.approx(total, rel=1e-5)


def test_accumulated_steps_are_those_of_larger_batches(fit: Fit) -> None:
    args = ("trainer.type=Steady", "trainer.epochs=1", "lr_scheduler=null")
    config = {**GAN, "model": "PlainPair"}
    large = state(fit(*args, "data_loader.args.batch_size=24", **config).run_dir)
    small = state(fit(*args, "data_loader.args.batch_size=8", "trainer.accumulate_steps=3", **config).run_dir)
    for name, value in large["model"].items():
        assert torch.allclose(value, small["model"][name], atol=1e-6), name


class AtOnce(Trainer):
    """Steps both optimizers on one loss, by name."""

    def train_step(self, batch: Any) -> StepResult:
        with self.optimizing("first", "second"):
            return super().train_step(batch)


class AllAtOnce(Trainer):
    def train_step(self, batch: Any) -> StepResult:
        with self.optimizing():
            return super().train_step(batch)


ADAM = {"type": "AdamW", "args": {"lr": 0.05, "weight_decay": 0.1}}
ONE_LOSS: Json = {
    "optimizer": {"first": {**ADAM, "params": ["fc1.*"]}, "second": {**ADAM, "params": ["fc2.*"]}},
    "metrics": [],
}


@pytest.mark.parametrize(
    ("trainer", "precision", "accumulate"),
    [
        ("Trainer", "fp32", 3),
        ("Trainer", "fp16", 1),
        ("AtOnce", "fp32", 3),
        ("AtOnce", "fp16", 1),
        ("AllAtOnce", "fp32", 1),
    ],
)
def test_several_optimizers_on_one_loss_are_as_one(fit: Fit, trainer: str, precision: str, accumulate: int) -> None:
    options = (f"runtime.precision={precision}", f"trainer.accumulate_steps={accumulate}")
    with temporarily(TRAINERS, AtOnce, AllAtOnce):
        several = fit(f"trainer.type={trainer}", *options, **ONE_LOSS)
        one = fit(*options, optimizer=ADAM, metrics=[])
    assert same(state(one.run_dir)["model"], state(several.run_dir)["model"])


class TwoSteps(AllAtOnce):
    """Two steps on each batch, as on the minibatches of a rollout."""

    def train_step(self, batch: Any) -> StepResult:
        super().train_step(batch)
        return super().train_step(batch)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_several_steps_of_a_single_optimizer_need_its_name(fit: Fit, accumulate: int) -> None:
    options = f"trainer.accumulate_steps={accumulate}"
    with temporarily(TRAINERS, AllAtOnce, TwoSteps):
        blocks = fit("trainer.type=AllAtOnce", options, optimizer=ADAM, metrics=[]).run_dir
        without = fit(options, optimizer=ADAM, metrics=[]).run_dir
        assert same(state(blocks)["model"], state(without)["model"])
        with pytest.raises(ConfigError, match=r'twice, .* has no name; name it: "optimizer": {"all": {"type"'):
            fit("trainer.type=TwoSteps", options, optimizer=ADAM, metrics=[])


def test_one_of_several_optimizers_takes_what_the_others_leave(fit: Fit) -> None:
    runs = []
    for params in (["*"], ["*.bias"]):
        weights = {"type": "SGD", "args": {"lr": 0.1}, "params": ["*.weight"]}
        runs.append(fit(optimizer={"others": {**ADAM, "params": params}, "weights": weights}, metrics=[]))
    assert same(state(runs[0].run_dir)["model"], state(runs[1].run_dir)["model"])


def test_several_optimizers_on_one_loss_resume_exactly(fit: Fit, tmp_path: Path) -> None:
    muon = {"type": "Muon", "args": {"lr": 0.02}, "params": ["*.weight"], "clip_grad_norm": 1.0}
    optimizer = {"others": {**ADAM, "params": ["*"]}, "matrices": muon}
    schedule = {"matrices": {"type": "OneCycleLR", "args": {"max_lr": 0.1}, "interval": "step"}}
    keys = {"optimizer": optimizer, "lr_scheduler": schedule}
    resumes_exactly(fit, tmp_path, **keys)


@pytest.mark.parametrize(
    ("trainer", "change", "says"),
    [
        ("Careless", {}, "self.backward was called outside self.optimizing"),
        ("OwnGradients", {}, "OwnGradients.compute_gradients is not called, since the config has several optimizers"),
        ("Idle", {}, "Idle.train_step steps none of them: with self.optimizing"),
        ("Forgetful", {}, r"self.optimizing\('generator'\) steps without gradients; call self.backward\(loss\)"),
        (
            "Adversarial",
            {"optimizer": {"type": "SGD", "args": {"lr": 0.1}}, "lr_scheduler": None},
            "but the config's single optimizer has no name",
        ),
        ("Trainer", {}, "self.backward was called outside|failed in the model"),
        ("Adversarial", {"model": "Parts"}, 'optimizer.generator: no parameter matches "generator.*"'),
        (
            "Adversarial",
            {
                "optimizer": {
                    "generator": {"type": "SGD", "args": {"lr": 1}, "params": ["generator.*", "*.0.*"]},
                    "discriminator": {"type": "SGD", "args": {"lr": 1}},
                }
            },
            "discriminator.0.weight is in two optimizers, generator and discriminator",
        ),
        (
            "Adversarial",
            {"optimizer": {**GAN["optimizer"], "third": {"type": "SGD", "args": {"lr": 1}, "params": ["*"]}}},
            "optimizer.third.params: the other optimizers already have all parameters; leave this one out",
        ),
        (
            "Adversarial",
            {"model": "Parts"},
            'name its parameters in "params", for example .* for all that no other optimizer has',
        ),
        (
            "Adversarial",
            {"optimizer": {"generator": {"type": "SGD", "args": {"lr": 1}}}},
            "optimizer: no optimizer trains discriminator.0.weight.*or requires_grad_",
        ),
        (
            "Adversarial",
            {
                "optimizer": {
                    "generator": {"type": "SGD", "args": {"lr": 1}},
                    "discriminator": {
                        "type": "SGD",
                        "args": {"lr": 1},
                        "params": ["discriminator.*.weight", "discriminator.0.*"],
                    },
                }
            },
            r"no optimizer trains discriminator\.2\.bias\. ",
        ),
        (
            "Adversarial",
            {"lr_scheduler": {"gen": {"type": "StepLR", "args": {"step_size": 1}}}},
            'unknown optimizer "gen"',
        ),
        (
            "Adversarial",
            {"optimizer": {name: {"type": "LBFGS"} for name in ("generator", "discriminator")}, "lr_scheduler": None},
            "optimizer.generator: LBFGS evaluates the loss itself, which is not possible with several optimizers",
        ),
    ],
)
def test_a_mistake_with_several_optimizers_is_told(fit: Fit, trainer: str, change: Json, says: str) -> None:
    with pytest.raises(UserError, match=says):
        fit(f"trainer.type={trainer}", **{**GAN, **change})


def test_a_rate_for_all_of_several_is_not_a_key(fit: Fit) -> None:
    with pytest.raises(
        ConfigError, match=r"^override optimizer.args.lr=0.5: optimizer.args: belongs in each component: \S+ and \S+$"
    ):
        fit("trainer.type=Adversarial", "optimizer.args.lr=0.5", **GAN)


def test_the_arguments_of_several_change_on_resume(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit("trainer.type=Adversarial", **GAN).run_dir
    for change in ("optimizer.generator.type=SGD", 'optimizer.critic={"type": "SGD", "params": ["critic.*"]}'):
        with pytest.raises(UserError, match="cannot change when a run is resumed"):
            train.main(["-r", str(run), change])
    result = train.main(
        ["-r", str(run), "optimizer.discriminator.args.lr=0.5", "trainer.epochs=3", "lr_scheduler=null"]
    )
    assert "resumed with optimizer.discriminator.args.lr 0.02 -> 0.5" in capsys.readouterr().out
    assert (result.last["lr_discriminator"], result.last["lr_generator"]) == (0.5, 0.01)


def test_twice_in_a_step_and_accumulation_exclude_each_other(fit: Fit) -> None:
    with pytest.raises(ConfigError, match=r"micro-batch 1 of 2 uses .*, use each block once in all micro-batches"):
        fit("trainer.type=Careful", "trainer.accumulate_steps=2", **GAN)


class Nested(Trainer):
    """Would step both layers by one loss."""

    def train_step(self, batch: Any) -> StepResult:
        with self.optimizing("first"), self.optimizing("second"):
            return super().train_step(batch)


def test_a_block_in_another_one_is_refused(fit: Fit) -> None:
    message = r"'second'\) inside self.optimizing\('first'\); let one block follow the other, or"
    with temporarily(TRAINERS, Nested), pytest.raises(ConfigError, match=message):
        fit("trainer.type=Nested", **LAYERS)


LAYERS: Json = {
    "loss": {"type": "cross_entropy", "args": {"weight": [0.1, 1.0, 10.0]}},
    "optimizer": {
        "first": {"type": "SGD", "args": {"lr": 0.0}, "params": ["fc1.*"]},
        "second": {"type": "SGD", "args": {"lr": 0.1}, "params": ["fc2.*"]},
    },
}


def test_what_the_loss_counts_counts_with_several_optimizers_too(fit: Fit) -> None:
    def trained(name: str, batch_size: int, micro_batches: int, **config: Any) -> train.Result:
        sizes = (f"data_loader.args.batch_size={batch_size}", f"trainer.accumulate_steps={micro_batches}")
        return fit("trainer.epochs=1", f"trainer.type={name}", *sizes, **{**LAYERS, **config})

    large, small = trained("Layers", 24, 1), trained("Layers", 8, 3)
    assert torch.allclose(state(large.run_dir)["model"]["fc2.weight"], state(small.run_dir)["model"]["fc2.weight"])
    assert large.last["loss"] == pytest.approx(small.last["loss"])
    still = {name: {**each, "args": {"lr": 0.0}} for name, each in LAYERS["optimizer"].items()}
    alone = trained("Trainer", 24, 1, optimizer={"type": "SGD", "args": {"lr": 0.0}}).last["loss"]
    for batch_size, micro_batches in ((24, 1), (8, 3)):
        assert trained("Layers", batch_size, micro_batches, optimizer=still).last["loss"] == pytest.approx(alone)


def test_each_loss_keeps_its_count_if_all_are_computed_before_a_step(fit: Fit) -> None:
    # the layer that is stepped first does not move: the other one's gradient would depend on it
    rates = {"first": 0.1, "second": 0.0}
    optimizers = {name: {**each, "args": {"lr": rates[name]}} for name, each in LAYERS["optimizer"].items()}

    def trained(batch_size: int, micro_batches: int) -> train.Result:
        sizes = (f"data_loader.args.batch_size={batch_size}", f"trainer.accumulate_steps={micro_batches}")
        keys = {**LAYERS, "optimizer": optimizers}
        return fit("trainer.epochs=1", "trainer.type=LayersAtOnce", *sizes, **keys)

    large, small = trained(24, 1), trained(8, 3)
    left, right = (state(run.run_dir)["model"]["fc1.weight"] for run in (large, small))
    assert torch.allclose(left, right)
    assert large.last["loss"] == pytest.approx(small.last["loss"], rel=1e-5)


class Derived(Layers):
    """Returns a loss that is computed from the one it has stepped on."""

    def train_step(self, batch: Any) -> StepResult:
        result = super().train_step(batch)
        return result._replace(loss=result.loss * 1)


def test_a_loss_computed_from_that_of_a_block_counts_as_it(fit: Fit) -> None:
    sizes = ("trainer.epochs=1", "data_loader.args.batch_size=8", "trainer.accumulate_steps=3")
    with temporarily(TRAINERS, Derived):
        derived, plain = (fit(f"trainer.type={name}", *sizes, **LAYERS) for name in ("Derived", "Layers"))
    assert derived.last["loss"] == plain.last["loss"]


class Repeating(Trainer):
    """Steps one layer twice."""

    model: Any

    def train_step(self, batch: Any) -> StepResult:
        weight = self.model.fc2.weight
        for _ in range(2):
            with self.optimizing("second"):
                outputs = self.model(batch[0])
                loss = self.criterion(outputs, batch[1])
                [expected] = torch.autograd.grad(loss, weight, retain_graph=True)
                self.backward(loss)
            torch.testing.assert_close(weight.grad, expected)
        return StepResult(loss, outputs, batch[1])


def test_an_optimizer_that_steps_twice_has_the_gradients_of_one_block_at_a_time(fit: Fit) -> None:
    with temporarily(TRAINERS, Repeating):
        fit("trainer.type=Repeating", "trainer.epochs=1", **LAYERS)


def test_a_frozen_parameter_stays_frozen_after_the_block_of_another_optimizer(fit: Fit) -> None:
    rates = ("optimizer.first.args.lr=0.1", "trainer.save_every_steps=1", "trainer.keep_last=null")
    run = fit("trainer.type=Layers", *rates, 'trainer.freeze=[{"params": ["fc1.bias"]}]', **LAYERS).run_dir
    first, last = (state(run, name)["model"] for name in ("step-00000001.pth", "last.pth"))
    assert same(first["fc1.bias"], last["fc1.bias"])
    assert not same(first["fc1.weight"], last["fc1.weight"])


@pytest.mark.parametrize("trainer", ["Sometimes", "SometimesOdd"])
def test_an_optimizer_that_only_some_micro_batches_step_is_an_error(fit: Fit, trainer: str) -> None:
    fit(f"trainer.type={trainer}", **LAYERS)
    with pytest.raises(ConfigError, match=r"micro-batch 2 of 2 uses .*, use each block once in all micro-batches"):
        fit(f"trainer.type={trainer}", "trainer.accumulate_steps=2", **LAYERS)


def test_one_optimizer_without_a_name_is_told_and_leaves_no_folder(fit: Fit, tmp_path: Path) -> None:
    one = {**GAN, "optimizer": "Adam", "lr_scheduler": None}
    with pytest.raises(ConfigError, match=r'"optimizer": {"discriminator": {"type"(.|\n)*removed the empty run folder'):
        fit("trainer.type=Adversarial", **one)
    assert not list(tmp_path.glob("saved/*/*"))


def test_a_misspelt_pattern_is_corrected_to_the_module_that_was_meant() -> None:
    names = [f"encoder.layers.{n}.{part}.weight" for n in range(3) for part in ("norm1", "linear1", "attention.out")]
    assert no_match("encoder.layer.1.*", dict.fromkeys(names)).endswith('did you mean "encoder.layers.1.*"?')


# ------------------------------------------------------------------ a loss with parameters


def test_a_loss_with_parameters_trains_with_the_model(fit: Fit, tmp_path: Path) -> None:
    optimizer = {"type": "SGD", "args": {"lr": 0.1}, "groups": [{"params": ["loss.*"], "args": {"lr": 0.5}}]}
    whole = resumes_exactly(fit, tmp_path, loss="LearntScale", optimizer=optimizer)
    saved = state(whole)["loss"]
    assert float(saved["log_scale"]) != 0
    assert int(saved["calls"]) == 10


@pytest.mark.slow
def test_a_test_evaluates_with_the_learnt_loss(fit: Fit) -> None:
    run = fit("trainer.epochs=3", loss="LearntScale", optimizer={"type": "SGD", "args": {"lr": 0.5}}).run_dir
    scale = float(state(run)["loss"]["log_scale"])
    assert scale != 0
    load_script("test").main(["-r", str(run / "checkpoints" / "last.pth")])
    tested = json.loads((run / "test" / "metrics.json").read_text(encoding="utf-8"))
    model, loss = TwoLayerNet(in_features=6, hidden_features=5, out_features=3), nn.CrossEntropyLoss()
    model.load_state_dict(state(run)["model"])
    data = RandomTensorLoader(num_samples=50, num_test_samples=20, input_shape=[6], num_classes=3, batch_size=20)
    inputs, targets = next(iter(data.test().one_pass())).data
    with torch.no_grad():
        assert tested["loss"] == pytest.approx(float(loss(model(inputs) * math.exp(scale), targets)), rel=1e-5)


def scaled(outputs: Tensor, targets: Tensor, *, inner: nn.Module) -> Tensor:
    return 2 * inner(outputs, targets)  # type: ignore[no-any-return]


class Fixed(BaseModel):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs[:, :3]


def test_what_nothing_would_train_is_located(fit: Fit) -> None:
    with temporarily(LOSSES, scaled), pytest.raises(UserError, match="loss: scaled has parameters, which no optimizer"):
        fit(loss={"type": "scaled", "args": {"inner": "LearntScale"}})
    with temporarily(MODELS, Fixed), pytest.raises(UserError, match="model: Fixed has no parameters to train"):
        fit(model="Fixed")


def test_a_closure_is_one_function_that_draws_the_same_dropout_each_time(fit: Fit, tmp_path: Path) -> None:
    Twice.losses.clear()
    optimizer = {"type": "Twice", "args": {"lr": 0.1}}
    schedule = {"type": "ExponentialLR", "args": {"gamma": 0.5}, "interval": "step"}
    run = resumes_exactly(
        fit, tmp_path, "trainer.accumulate_steps=2", model="Dropped", optimizer=optimizer, lr_scheduler=schedule
    )
    record = lines(run)[-1]
    assert record["lr"] == pytest.approx(0.1 * 0.5 ** (record["step"] - 1))
    assert all(first == second for first, second in Twice.losses)
    assert len({first for first, _ in Twice.losses}) > 5, "each step draws its own"


@pytest.mark.parametrize("optimizer", ["Unasked", "Asserting"])
def test_an_optimizer_that_misses_its_closure_is_told_how_to_get_one(fit: Fit, optimizer: str) -> None:
    with pytest.raises(ConfigError, match=rf"{optimizer}.step failed: (.|\n)*self, closure") as failed:
        fit(optimizer={"type": optimizer, "args": {"lr": 0.1}})
    assert "test_optimizers.py:" in str(failed.value)
    assert "saved state" not in str(failed.value)


class Failing(torch.optim.SGD):
    def step(self) -> Any:  # type: ignore[override]
        raise KeyError("momentum")


def test_an_optimizer_of_ones_own_that_fails_is_named(fit: Fit) -> None:
    """Without guesses at causes that cannot apply."""
    with temporarily(OPTIMIZERS, Failing), pytest.raises(ConfigError) as failed:
        fit(optimizer={"type": "Failing", "args": {"lr": 0.1}})
    first, line, *rest = str(failed.value).splitlines()
    assert first == "optimizer: Failing.step failed: KeyError: 'momentum'"
    assert line.endswith('raise KeyError("momentum")')
    assert all(each.startswith("No step completed") for each in rest)


@needs_extra("check")
def test_check_finds_an_optimizer_that_misses_its_closure(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fit("--check", optimizer={"type": "Asserting", "args": {"lr": 0.1}})
    assert "FAIL  optimizer: Asserting.step failed" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [None, {"type": "StepLR", "args": {"step_size": 1}}])
def test_what_an_optimizer_keeps_in_its_groups_is_resumed(fit: Fit, tmp_path: Path, schedule: Any) -> None:
    optimizer = {"type": "Counting", "args": {"lr": 0.01}}
    run = resumes_exactly(fit, tmp_path, optimizer=optimizer, lr_scheduler=schedule)
    steps = state(run)["progress"]["steps"]
    copy = train.main(["-r", str(run), "trainer.epochs=3", "optimizer.args.lr=0.02"]).run_dir
    [group] = state(copy)["optimizer"]["param_groups"]
    assert group["count"] == group["counts"][0] == state(copy)["progress"]["steps"] > steps


@pytest.mark.slow
def test_an_optimizer_that_wraps_another_needs_no_constructor_of_torch(fit: Fit, tmp_path: Path) -> None:
    optimizer: Json = {"type": "LookingAhead", "args": {"lr": 0.01}}
    resumes_exactly(fit, tmp_path, optimizer=optimizer, lr_scheduler="CosineAnnealingLR")
    optimizer["args"]["wraps"] = False
    with pytest.raises(ConfigError, match=r"LookingAhead.__init__ must call super\(\).__init__\(params, defaults\)"):
        fit(optimizer=optimizer)
