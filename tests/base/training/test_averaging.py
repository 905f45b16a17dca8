"""Averaged weights by the key trainer.ema: validated, kept as the best, tested, and resumed exactly."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import train
from base.base_model import BaseModel
from base.training.averaging import AveragedWeights
from tests.conftest import load_script
from tests.helpers import Fit, identical, lines, registering, resumed, same, state, temporarily
from trainer.trainer import Trainer
from utils import checkpoint
from utils.distributed.strategy import Strategy
from utils.errors import UserError
from utils.registry import MODELS, TRAINERS

EMA = 'trainer.ema={"decay": 0.8}'


class Normed(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)  # type: ignore[no-any-return]


class Tied(BaseModel):
    """Two layers that share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.second(self.first(inputs).relu()))  # type: ignore[no-any-return]


class Fourier(BaseModel):
    """Complex weights between real inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed = nn.Parameter(torch.ones(6, 3, dtype=torch.complex64))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.view_as_real(inputs.to(self.mixed.dtype) @ self.mixed).sum(-1) + self.bias


class Adapted(Normed):
    """The state leaves out frozen weights, which its constructor makes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers[0].requires_grad_(False)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        state = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if not name.startswith("layers.0.")}

    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state, strict=False, assign=assign)


_registered = registering((MODELS, Normed, Tied, Fourier, Adapted))


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [("Normed", "SGD"), ("Fourier", "SGD"), ("Fourier", "AdamW")],  # complex numbers have no fused kernel
)
def test_the_average_is_that_of_the_weights_after_each_step(fit: Fit, model: str, optimizer: str) -> None:
    often = ("trainer.save_every_steps=1", "trainer.keep_last=null", "trainer.epochs=1")
    component = {"type": optimizer, "args": {"lr": 0.1}}
    run = fit(EMA, *often, model=model, optimizer=component).run_dir
    states = [checkpoint.read(path) for path in sorted((run / "checkpoints").glob("step-*.pth"))]
    assert len(states) == 5
    for name, average in states[0]["averaged_weights"].items():
        for before, after in itertools.pairwise(states):
            weights = after["model"][name]
            if average.is_floating_point() or average.is_complex():
                expected = 0.8 * before["averaged_weights"][name] + 0.2 * weights
                assert torch.allclose(after["averaged_weights"][name], expected, atol=1e-6), name
            else:
                assert after["averaged_weights"][name] == weights  # num_batches_tracked


@pytest.mark.parametrize("model", ["Normed", "Tied", "Adapted"])
@pytest.mark.usefixtures("tensorboard")
def test_a_resume_in_mid_epoch_is_exact(fit: Fit, tmp_path: Path, model: str) -> None:
    whole = fit(EMA, "trainer.save_every_steps=2", "trainer.keep_last=null", model=model).run_dir
    identical(whole, resumed(whole, tmp_path, 6))


class WarmingUp(Trainer):
    """Copies the weights in the first two steps, and keeps the average in every third."""

    def decay(self, steps: int) -> float:
        return 0.0 if steps < 2 else 1.0 if steps % 3 == 0 else 0.5

    def optimizer_step(self, step: Any) -> Any:
        assert self.averaged_weights
        self.averaged_weights.decay = self.decay(self.progress.steps)
        return super().optimizer_step(step)


@pytest.mark.usefixtures("tensorboard")
def test_a_trainer_may_change_the_decay_from_step_to_step(fit: Fit, tmp_path: Path) -> None:
    often = ("trainer.save_every_steps=1", "trainer.keep_last=null", "trainer.epochs=1", "trainer.type=WarmingUp")
    with temporarily(TRAINERS, WarmingUp):
        run = fit(EMA, *often, model="Normed").run_dir
        identical(run, resumed(run, tmp_path, 3))
    states = [checkpoint.read(path) for path in sorted((run / "checkpoints").glob("step-*.pth"))]
    for name, average in states[0]["averaged_weights"].items():
        if average.is_floating_point():
            weights = [state["model"][name] for state in states]
            third = (weights[1] + weights[2]) / 2
            expected = [weights[0], weights[1], third, third, (third + weights[4]) / 2]
            for saved, wanted in zip(states, expected, strict=True):
                torch.testing.assert_close(saved["averaged_weights"][name], wanted)


def test_the_average_follows_what_the_model_replaces_or_shares_between_steps() -> None:
    one, two, other = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    model = nn.Sequential(one, two)
    averaged = AveragedWeights(model, 0.5, Strategy())
    averaged.update()
    first, second = one.weight.detach(), other.weight.detach()
    model[0] = other
    averaged.update()
    torch.testing.assert_close(averaged.averages["0.weight"], (first + second) / 2)
    two.weight = other.weight
    averaged.update()
    state = averaged.state_dict()
    torch.testing.assert_close(state["1.weight"], first / 4 + second * 3 / 4)
    assert torch.equal(state["0.weight"], state["1.weight"])


@pytest.mark.slow
def test_the_averages_are_what_is_validated_and_tested(fit: Fit, tmp_path: Path) -> None:
    options = ("trainer.epochs=3", "trainer.monitor=min val_loss")
    run = fit(EMA, *options, model="Normed").run_dir
    plain = fit(*options, model="Normed").run_dir
    assert [line["loss"] for line in lines(run)] == [line["loss"] for line in lines(plain)]  # training is the same
    assert lines(run)[-1]["val_loss"] != lines(plain)[-1]["val_loss"]
    # a run that starts from it, and does not move, validates as it did
    again = fit("optimizer.args.lr=1e-30", "trainer.epochs=1", f"model.weights={run}", model="Normed")
    taken = state(again.run_dir)["model"]
    best = state(run, "best.pth")["averaged_weights"]
    assert all(torch.equal(taken[name], best[name]) for name in best if "running" not in name and "num" not in name)
    load_script("test").main(["-r", str(run)])
    tested = checkpoint.read(run / "checkpoints" / "best.pth")
    assert same(tested["averaged_weights"], best)


@pytest.mark.slow
def test_the_test_evaluates_the_averages(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fit(EMA, model="Normed").run_dir
    seen = list[Tensor]()
    original = Normed.forward

    def forward(self: Normed, inputs: Tensor) -> Tensor:
        seen.append(self.layers[0].weight.detach().clone())  # type: ignore[operator]
        return original(self, inputs)

    monkeypatch.setattr(Normed, "forward", forward)
    load_script("test").main(["-r", str(run / "checkpoints" / "last.pth")])
    expected = state(run)["averaged_weights"]["layers.0.weight"]
    assert any(torch.equal(weight, expected) for weight in seen)


def test_the_weights_are_back_after_an_error_in_an_evaluation() -> None:
    model = Tied()
    averaged = AveragedWeights(model, 0.5, Strategy())
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    averaged.update()
    inside = Tied()

    def fail() -> None:
        with averaged.swapped():
            inside.load_state_dict(model.state_dict())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.allclose(inside.first.weight, weights["first.weight"] + 0.5)
    assert torch.equal(inside.second.weight, inside.first.weight)
    assert torch.allclose(model.first.weight, weights["first.weight"] + 1)
    assert torch.allclose(averaged.state_dict()["second.weight"], weights["first.weight"] + 0.5)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ('{"decay": 1}', "trainer.ema.decay: should be less than 1, got 1"),
        ("0.99", 'trainer.ema: should be an object, such as {"decay": 0.999}'),
        ('{"deca": 0.9}', 'trainer.ema.deca: unknown key "deca"; did you mean "decay"'),
    ],
)
def test_a_mistake_is_located(fit: Fit, value: str, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        fit(f"trainer.ema={value}")


def test_it_cannot_be_added_or_taken_away_on_resume(fit: Fit) -> None:
    with_average: Any = fit(EMA, model="Normed").run_dir
    without = fit(model="Normed").run_dir
    for run, change in ((with_average, "trainer.ema=null"), (without, EMA)):
        with pytest.raises(UserError, match=r"trainer.ema: cannot change when a run is resumed"):
            train.main(["-r", str(run), change])
    train.main(["-r", str(with_average), "trainer.ema.decay=0.5", "trainer.epochs=3"])
