"""Outputs and targets that do not fit cross_entropy or the data's classes."""

import functools
from typing import Any

import pytest
import torch
from torch import nn

from base.metric import StepResult
from extras.classification import not_probabilities, surplus_outputs
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
def test_probabilities_are_no_mistake(criterion: Any) -> None:
    mixed = torch.rand(64, 1000).softmax(1)
    for targets in (mixed, mixed.bfloat16(), torch.eye(5), torch.zeros(4, 3), torch.rand(2, 5, 4, 4).softmax(1)):
        assert not_probabilities(StepResult(torch.zeros(()), torch.zeros_like(targets), targets), criterion) is None
    indices = StepResult(torch.zeros(()), torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]))
    assert not_probabilities(indices, criterion) is None
