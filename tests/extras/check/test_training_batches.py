"""``--check`` where training batches differ from those of validation, or have targets that nobody uses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from base.base_data_loader import BaseDataLoader
from base.data.batches import StepBatches
from base.metric import StepResult
from extras.check import preflight
from tests.helpers import temporarily
from trainer.trainer import Trainer
from utils.config import load_config
from utils.registry import DATA_LOADERS, TRAINERS


class Samples(Dataset[Any]):
    """Labelled samples; in training, each with three that have no label."""

    def __init__(self, *, unlabelled: bool, constant: bool) -> None:
        self.unlabelled, self.constant = unlabelled, constant

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        x, y = torch.linspace(-1, 1, 6) * (index % 3 - 1), 0 if self.constant else index % 3
        return ({"labelled": x, "unlabelled": torch.randn(3, 6)}, y) if self.unlabelled else (x, y)


class HalfLabelled(BaseDataLoader):
    def __init__(self, *, constant: bool = False, extra: bool = True) -> None:
        super().__init__(batch_size=8, validation_split=10)
        self.constant, self.extra = constant, extra

    def training_data(self, *, augment: bool) -> Dataset[Any]:
        return Samples(unlabelled=augment and self.extra, constant=self.constant)

    def test_data(self) -> Dataset[Any]:
        return self.training_data(augment=False)


class Consistent(Trainer):
    """Also trains on samples without labels, whose outputs should be alike."""

    def train_step(self, batch: Any) -> StepResult:
        inputs, targets = batch
        outputs = self.model(inputs["labelled"])
        spread = self.model(inputs["unlabelled"].flatten(0, 1)).unflatten(0, (-1, 3)).var(1).mean()
        loss = self.criterion(outputs, targets) + spread
        self.backward(loss)
        return StepResult(loss, outputs, targets)


class FailsInTraining(Trainer):
    def train_step(self, batch: Any) -> StepResult:
        raise ValueError("no training")


class Remembers(Trainer):
    """Adds to the outputs those of the batch before, in a validation that starts without them."""

    before: Tensor | None = None

    def evaluate(self, *args: Any, **more: Any) -> dict[str, float]:
        self.before = None
        return super().evaluate(*args, **more)

    def eval_step(self, batch: Any) -> StepResult:
        result = super().eval_step(batch)
        if self.before is not None:
            result = result._replace(outputs=result.outputs + self.before[: len(result.outputs)])
        self.before = result.outputs
        return result


class SetsUp(Trainer):
    """Collects in train_step what its optimizer_step takes."""

    def optimizer_step(self, step: StepBatches) -> Tensor | float:
        self.sizes: list[int] = []
        return super().optimizer_step(step)

    def train_step(self, batch: Any) -> StepResult:
        self.sizes.append(len(batch[0]))
        return super().train_step(batch)


class Unsupervised(Trainer):
    supervised = False


OWN = (Consistent, FailsInTraining, Remembers, SetsUp, Unsupervised)


@pytest.fixture
def check(write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(trainer: str, **args: Any) -> tuple[int, str]:
        loader = {"type": "HalfLabelled", "args": args}
        with (
            temporarily(DATA_LOADERS, HalfLabelled),
            temporarily(TRAINERS, *OWN),
        ):
            status = preflight(load_config(write_config(data_loader=loader, trainer={"type": trainer})))
        return status, capsys.readouterr().out

    return run


def test_training_batches_of_another_form_are_checked_in_train_step(check: Callable[..., tuple[int, str]]) -> None:
    status, shown = check("Consistent")
    assert status == 0
    assert "first loss    ok" in shown
    assert "gradients     ok" in shown
    assert "eval_step" not in shown


@pytest.mark.parametrize("extra", [True, False])
@pytest.mark.parametrize(("trainer", "says"), [("Trainer", ""), ("FailsInTraining", "ValueError: no training")])
def test_a_training_step_that_fails_is_reported_once(
    check: Callable[..., tuple[int, str]], trainer: str, says: str, extra: bool
) -> None:
    status, shown = check(trainer, extra=extra)
    fails = extra or trainer == "FailsInTraining"
    assert status == fails
    assert shown.count("forward       FAIL") == fails
    assert says in shown


def test_a_train_step_that_needs_what_optimizer_step_sets_up_passes(check: Callable[..., tuple[int, str]]) -> None:
    status, shown = check("SetsUp", extra=False)
    assert status == 0, shown
    assert "gradients     ok" in shown


def test_a_batch_that_fails_after_others_is_a_note(check: Callable[..., tuple[int, str]]) -> None:
    status, shown = check("Remembers", extra=False)
    assert status == 0, shown
    assert "repetition    note  RuntimeError: The size of tensor" in shown


@pytest.mark.parametrize(("trainer", "advised"), [("Trainer", True), ("Unsupervised", False)])
def test_constant_targets_are_not_a_mistake_if_nobody_uses_them(
    check: Callable[..., tuple[int, str]], trainer: str, advised: bool
) -> None:
    _, shown = check(trainer, constant=True, extra=False)
    assert ("all values are the same" in shown) is advised
    assert ("data sorted by class" in shown) is advised
