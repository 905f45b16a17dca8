"""Mistakes that a first step, loss or model of one's own often has: each ends with one message that names it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import train
from base.metric import StepResult
from tests.helpers import temporarily
from trainer.trainer import Trainer
from utils.errors import UserError
from utils.registry import LOSSES, MODELS, TRAINERS

Fit = Callable[..., train.Result]


class ReturnsNothing(Trainer):
    def train_step(self, batch: Any) -> StepResult:
        super().train_step(batch)
        return None  # type: ignore[return-value]


class ReturnsTheLoss(Trainer):
    def train_step(self, batch: Any) -> Any:
        return super().train_step(batch).loss


class ReturnsATuple(Trainer):
    def train_step(self, batch: Any) -> Any:
        return tuple(super().train_step(batch))[:3]


class ReturnsAFloat(Trainer):
    def train_step(self, batch: Any) -> Any:
        result = super().train_step(batch)
        return result._replace(loss=result.loss.item())  # type: ignore[arg-type]


class EvaluatesToNothing(Trainer):
    def eval_step(self, batch: Any) -> Any:
        super().eval_step(batch)


class EvaluatesEachSample(Trainer):
    def eval_step(self, batch: Any) -> StepResult:
        result = super().eval_step(batch)
        return result._replace(loss=F.cross_entropy(result.outputs, result.targets, reduction="none"))


class ExpectsADict(Trainer):
    def train_step(self, batch: Any) -> StepResult:
        return super().train_step((batch[0], {"label": batch[1]}["labels"]))


class Asserts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        assert inputs.dim() == 4, "expected images"
        return self.layer(inputs)  # type: ignore[no-any-return]


class Misspells(Asserts):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)  # type: ignore[operator,no-any-return]


def several_values(outputs: Tensor, targets: Tensor) -> Any:
    return {"cross_entropy": F.cross_entropy(outputs, targets)}


def a_number(outputs: Tensor, targets: Tensor) -> Any:
    return F.cross_entropy(outputs, targets).item()


def each_sample(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    trainers = (ReturnsNothing, ReturnsTheLoss, ReturnsATuple, ReturnsAFloat, EvaluatesToNothing, EvaluatesEachSample)
    with (
        temporarily(TRAINERS, *trainers, ExpectsADict),
        temporarily(MODELS, Asserts, Misspells),
        temporarily(LOSSES, several_values, a_number, each_sample),
    ):
        yield


RETURN = r"end it with: return StepResult\(loss, outputs, targets\)"
ONE_NUMBER = r"expected one number per batch, a tensor of shape \(\)"


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ("ReturnsNothing", rf"ReturnsNothing.train_step returned nothing; {RETURN}"),
        ("ReturnsTheLoss", rf"ReturnsTheLoss.train_step returned a Tensor; {RETURN}"),
        ("ReturnsATuple", rf"ReturnsATuple.train_step returned a tuple; {RETURN}"),
        ("ReturnsAFloat", rf"ReturnsAFloat.train_step returned a loss of type float; {ONE_NUMBER}"),
        ("EvaluatesToNothing", rf"EvaluatesToNothing.eval_step returned nothing; {RETURN}"),
        ("EvaluatesEachSample", rf"EvaluatesEachSample.eval_step returned a loss of shape \(8,\); {ONE_NUMBER}"),
        ("ExpectsADict", r"KeyError: 'labels'\n  tests/base/training/test_own_step.py:\d+: return super\(\)"),
    ],
)
def test_what_a_step_returns_is_checked_once(fit: Fit, tmp_path: Path, trainer: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit(trainer={"type": trainer})
    assert not list(tmp_path.glob("saved/*/*"))


@pytest.mark.parametrize(
    ("loss", "found"), [("several_values", "type dict"), ("a_number", "type float"), ("each_sample", r"shape \(8,\)")]
)
def test_a_loss_that_is_not_one_number_is_refused(fit: Fit, loss: str, found: str) -> None:
    with pytest.raises(UserError, match=rf"self.backward got a loss of {found}; {ONE_NUMBER}"):
        fit(loss=loss)


@pytest.mark.parametrize(
    ("model", "reason"),
    [("Asserts", "AssertionError: expected images"), ("Misspells", "'Misspells' object has no attribute 'layers'")],
)
def test_an_error_in_a_model_is_shown_with_its_line(fit: Fit, model: str, reason: str) -> None:
    with pytest.raises(
        UserError, match=rf"\(8, 6\) float32.* failed in the model.*: {reason}[^$]*\n  tests/base/training/"
    ):
        fit(model=model)


def test_an_attribute_missing_in_the_template_keeps_its_traceback(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("utils.runtime.Runtime.to_device")
    with pytest.raises(AttributeError):
        fit()


def test_a_loss_of_shape_1_is_one_number(fit: Fit) -> None:
    def with_dimension(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)[None]

    plain = fit().last
    with temporarily(LOSSES, with_dimension):
        result = fit(loss="with_dimension").last
    assert (result["loss"], result["val_loss"]) == pytest.approx((plain["loss"], plain["val_loss"]), rel=1e-6)
