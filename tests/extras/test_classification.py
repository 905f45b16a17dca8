"""Outputs and targets that do not fit cross_entropy or the data's classes."""

import functools
from typing import Any

import pytest
import torch
from torch import nn

from base.metric import StepResult
from extras.classification import (
    may_be_classes,
    not_probabilities,
    surplus_outputs,
    wrong_activation,
)
from utils.registry import LOSSES


def test_more_outputs_than_classes_are_a_warning() -> None:
    result = StepResult(torch.zeros(()), torch.zeros(4, 10), torch.tensor([0, 1, 1, 0]))
    assert "the model has 10 outputs, but the data has 2 classes" in str(surplus_outputs(result, ("cat", "dog")))
    assert surplus_outputs(result, None) is None
    assert surplus_outputs(result._replace(outputs=torch.zeros(4, 2)), ("cat", "dog")) is None
    assert surplus_outputs(result._replace(targets=torch.zeros(4, 10)), ("cat", "dog")) is None


def soft(*rows: list[float]) -> StepResult:
    return StepResult(torch.zeros(()), torch.zeros(len(rows), len(rows[0])), torch.tensor(rows))


ENTROPIES = [functools.partial(LOSSES.own()["cross_entropy"], label_smoothing=0.1), nn.CrossEntropyLoss()]


@pytest.mark.parametrize("criterion", ENTROPIES)
def test_targets_that_are_not_probabilities_are_reported(criterion: Any) -> None:
    for rows in ([[0.5, 2.0]], [[1.0, 0.0], [-0.5, 1.5]], [[1.0, 1.0, 0.0]], [[0.0], [1.0]]):
        assert "mse_loss" in str(not_probabilities(soft(*rows), criterion)), rows
        assert not_probabilities(soft(*rows), nn.MSELoss()) is None
    said = str(not_probabilities(soft([0.5, 0.5], [0.5, 2.0]), criterion))
    assert "expects class probabilities, but these targets are not (range 0.5 to 2, one row sums to 2.5)" in said


@pytest.mark.parametrize("criterion", ENTROPIES)
def test_probabilities_are_not_a_mistake(criterion: Any) -> None:
    mixed = torch.rand(64, 1000).softmax(1)
    for targets in (mixed, mixed.bfloat16(), torch.eye(5), torch.zeros(4, 3), torch.rand(2, 5, 4, 4).softmax(1)):
        assert not_probabilities(StepResult(torch.zeros(()), torch.zeros_like(targets), targets), criterion) is None
    indices = StepResult(torch.zeros(()), torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]))
    assert not_probabilities(indices, criterion) is None


def test_a_sigmoid_before_a_loss_of_logits_is_reported() -> None:
    logits = torch.linspace(-2, 2, 16)[:, None]
    targets = torch.ones(16, 1)
    twice = StepResult(torch.zeros(()), logits.sigmoid(), targets)
    assert "leave out its sigmoid" in str(wrong_activation(twice, nn.BCEWithLogitsLoss()))
    assert wrong_activation(twice, nn.BCELoss()) is None
    for outputs in (logits, logits.sigmoid()[:15], torch.zeros(16, 1)):  # logits, too few, and a head that begins at 0
        assert wrong_activation(twice._replace(outputs=outputs), nn.BCEWithLogitsLoss()) is None


@pytest.mark.parametrize(
    ("loss", "outputs", "names", "highest", "expected"),
    [
        ("cross_entropy", 10, ("cat", "dog"), 1, True),  # too many outputs are another warning
        ("NLLLoss", 3, None, None, True),
        ("focal", 3, None, 2, True),
        ("focal", 3, ("a", "b", "c"), None, True),
        ("arc_face", 8, ("a", "b", "c"), 2, False),  # embeddings
        ("counts", 2, None, 7, False),  # mean and variance
    ],
)
def test_outputs_of_a_loss_of_ones_own_may_not_be_classes(
    loss: str, outputs: int, names: tuple[str, ...] | None, highest: int | None, expected: bool
) -> None:
    assert may_be_classes(loss, outputs, names, highest) is expected


def test_logits_for_a_loss_of_log_probabilities_are_reported() -> None:
    logits = torch.randn(8, 3)
    result = StepResult(torch.zeros(()), logits, torch.zeros(8, dtype=torch.int64))
    assert "expects log-probabilities" in str(wrong_activation(result, nn.NLLLoss()))
    assert wrong_activation(result, nn.CrossEntropyLoss()) is None
    assert wrong_activation(result._replace(outputs=logits.log_softmax(1)), nn.NLLLoss()) is None


@pytest.mark.parametrize("criterion", ENTROPIES)
def test_a_softmax_before_cross_entropy_is_reported(criterion: Any) -> None:
    logits = torch.linspace(-2, 2, 24).view(8, 3).roll(5)
    targets = torch.zeros(8, dtype=torch.int64)

    def said(outputs: torch.Tensor) -> str | None:
        return wrong_activation(StepResult(torch.zeros(()), outputs, targets), criterion)

    assert "leave out its softmax" in str(said(logits.softmax(1)))
    for outputs in (logits, logits.log_softmax(1), torch.zeros(8, 3)):
        assert said(outputs) is None


@pytest.mark.parametrize("criterion", [*ENTROPIES, nn.BCEWithLogitsLoss()])
def test_outputs_that_are_positive_by_their_biases_are_not_reported(criterion: Any) -> None:
    outputs = torch.linspace(-0.05, 0.05, 24).view(8, 3) + torch.tensor([0.1, 0.4, 0.2])
    result = StepResult(torch.zeros(()), outputs, torch.zeros(8, dtype=torch.int64))
    assert wrong_activation(result, criterion) is None
