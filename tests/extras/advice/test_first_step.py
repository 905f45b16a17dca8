"""What only the first optimizer step shows of a user's own optimizers and parts."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from base.metric import StepResult
from extras.advice.first_step import parts_that_differ
from model.loss import cross_entropy
from tests.base.training.test_optimizer_state import Own, Precise, SavedSAM, Shared
from tests.base.training.test_optimizers import GAN, Adversarial, Careful, Pair
from tests.helpers import Fit, temporarily
from utils.registry import MODELS, OPTIMIZERS, TRAINERS

# ------------------------------------------------------------------ a user's own optimizers


class Rebinds(Own):
    """Changes only the value of a variable."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter = parameter - group["lr"] * parameter.grad


class Plain(Own):
    """Changes the data of a parameter, which torch does not count as a change in place."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(group["lr"] * parameter.grad)


class Forgetful(Plain):
    """Keeps its momentum where no checkpoint has it, beside what needs none: views, constants and smaller tensors."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr)
        self.parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self.views = [parameter.data.flatten() for parameter in self.parameters]
        self.initial = [parameter.detach().clone() for parameter in self.parameters]
        self.momentum = {"mean": [torch.zeros_like(parameter) for parameter in self.parameters]}
        self.norm = torch.zeros(())

    def step(self, closure: Any = None) -> Any:
        for mean, parameter in zip(self.momentum["mean"], self.parameters, strict=True):
            mean.mul_(0.9).add_(parameter.grad)
            self.norm = mean.norm().expand(2)
            parameter.data.sub_(self.param_groups[0]["lr"] * mean)


class Remembering(Forgetful):
    """Saves it itself."""

    def state_dict(self) -> Any:
        return {**super().state_dict(), "momentum": self.momentum}


@pytest.mark.parametrize(
    ("optimizer", "warning"),
    [
        ("Rebinds", "Rebinds changed no parameter in its first step, although they have gradients; change them in"),
        ("Forgetful", "Forgetful.momentum changes in a step but is in no checkpoint"),
        *((name, "") for name in ("Plain", "Precise", "Shared", "SavedSAM", "Remembering")),
    ],
)
def test_an_own_optimizer_is_warned_about_after_its_first_step(
    fit: Fit, capsys: pytest.CaptureFixture[str], optimizer: str, warning: str
) -> None:
    with temporarily(OPTIMIZERS, Rebinds, Plain, Forgetful, Remembering, Precise, Shared, SavedSAM):
        fit(optimizer={"type": optimizer, "args": {"lr": 0.1}})
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(said) == bool(warning)
    assert all(warning in line for line in said)


@pytest.mark.parametrize("start", [1e-20, 1.0])
def test_a_step_that_is_too_small_to_change_a_weight_is_not_warned_about(
    fit: Fit, capsys: pytest.CaptureFixture[str], start: float
) -> None:
    """As the first of a warm-up."""
    warmup = {"type": "LinearLR", "args": {"start_factor": start}, "interval": "step"}
    with temporarily(OPTIMIZERS, Plain):
        fit(optimizer={"type": "Plain", "args": {"lr": 0.1 if start < 1 else 0.0}}, lr_scheduler=warmup)
    assert "changed no parameter" not in capsys.readouterr().err


# ------------------------------------------------------------------ several optimizers


class Lopsided(Adversarial):
    """Never computes gradients for the generator. stepped: whether it steps that optimizer all the same."""

    stepped = False

    def train_step(self, batch: Any) -> StepResult:
        real, ones = batch[0], torch.ones(len(batch[0]), 1)
        with self.optimizing("discriminator"):
            loss = self.criterion(self.model.discriminator(real), ones)
            self.backward(loss)
        if self.stepped:
            with self.optimizing("generator"):
                self.criterion(self.model.discriminator(self.model.generator(real[:, :4])), ones)
        return StepResult(loss, real, real)


class LopsidedSteps(Lopsided):
    stepped = True


class Late(Lopsided):
    """Computes gradients for the generator only in the last of an epoch's 5 steps."""

    def train_step(self, batch: Any) -> StepResult:
        if self.progress.epoch_steps == 4:
            return Adversarial.train_step(self, batch)
        return super().train_step(batch)


@pytest.fixture
def _adversarial() -> Iterator[None]:
    with temporarily(MODELS, Pair), temporarily(TRAINERS, Lopsided, LopsidedSteps, Late, Careful):
        yield


@pytest.mark.usefixtures("_adversarial")
@pytest.mark.parametrize("trainer", ["Lopsided", "LopsidedSteps"])
def test_an_optimizer_that_changes_nothing_is_warned_about(
    fit: Fit, capsys: pytest.CaptureFixture[str], trainer: str
) -> None:
    fit("trainer.epochs=2", f"trainer.type={trainer}", **GAN | {"lr_scheduler": None})
    assert capsys.readouterr().err.count("the optimizer generator changed nothing in the first epoch, since Lops") == 1
    fit(f"trainer.type={trainer}", 'trainer.freeze=[{"params": ["generator.*"]}]', **GAN | {"lr_scheduler": None})
    assert "changed nothing" not in capsys.readouterr().err


@pytest.mark.usefixtures("_adversarial")
@pytest.mark.parametrize("trainer", ["Careful", "Late"])
def test_an_optimizer_that_steps_in_the_first_epoch_is_not_warned_about(
    fit: Fit, capsys: pytest.CaptureFixture[str], trainer: str
) -> None:
    fit(f"trainer.type={trainer}", **GAN | {"lr_scheduler": None})
    assert "changed nothing" not in capsys.readouterr().err


# ------------------------------------------------------------------ several processes


class TwoProcesses:
    """The process group of the first of two, of which the other has these digests' states."""

    world_size = 2

    def __init__(self, other: dict[str, Any]) -> None:
        self.other = other

        self.gathered = list[dict[str, str]]()

    def all_gather(self, own: dict[str, str]) -> list[dict[str, str]]:
        def gather(digests: dict[str, str]) -> list[dict[str, str]]:
            self.gathered.append(digests)
            return [digests]

        parts_that_differ(trainer(SimpleNamespace(world_size=2, all_gather=gather), self.other))
        return [own, *self.gathered]


def trainer(process_group: Any, parts: dict[str, Any]) -> Any:
    experiment = SimpleNamespace(criterion=cross_entropy)
    return SimpleNamespace(
        runtime=SimpleNamespace(process_group=process_group), stateful=lambda: parts, experiment=experiment
    )


@pytest.mark.parametrize(("value", "differing"), [(1.0, []), (1.5, ["scale"])])
def test_a_part_that_differs_between_processes_is_named(value: float, differing: list[str]) -> None:
    def parts(number: float) -> dict[str, Any]:
        scale = nn.BatchNorm1d(2)
        scale.running_mean = torch.full((2,), number)
        return {"model": nn.Linear(2, 2), "scale": scale, "optimizer.generator": nn.Linear(1, 1)}

    group = TwoProcesses(parts(value))
    assert parts_that_differ(trainer(group, parts(1.0))) == differing


def test_one_process_has_nothing_to_compare() -> None:
    assert parts_that_differ(trainer(SimpleNamespace(world_size=1), {})) == []
