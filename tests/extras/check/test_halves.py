"""``--check`` on losses that are averaged over something other than samples."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from extras.check.first_loss import check_halves

TARGETS = torch.tensor([0, 0, 0, 1, 2, 2, 1])
BATCH = {"values": torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]), "targets": TARGETS}


def ignoring_zero(batch: Any) -> Tensor:
    kept: Tensor = batch["values"][batch["targets"] != 0]
    return kept.mean()


def mean(batch: Any) -> tuple[float, float]:
    return float(batch["values"].mean()), len(batch["values"])


def without_count(batch: Any) -> tuple[float, float]:
    return float(ignoring_zero(batch)), len(batch["values"])


def with_count(batch: Any) -> tuple[float, float]:
    count = int((batch["targets"] != 0).sum())
    return float(ignoring_zero(batch)) if count else math.nan, count


def compares_samples(batch: Any) -> tuple[float, float]:
    return float(batch["values"].std()), len(batch["values"])


def fails(batch: Any) -> tuple[float, float]:
    if len(batch["values"]) < len(TARGETS):
        raise ValueError("all batches have seven samples")
    return 1.0, 7.0


def random(batch: Any) -> tuple[float, float]:
    return float(torch.rand(())), len(batch["values"])


@pytest.mark.parametrize(
    ("loss_of", "notes"),
    [(mean, 0), (without_count, 1), (with_count, 0), (compares_samples, 1), (fails, 0), (random, 0)],
)
def test_a_loss_that_is_no_mean_over_its_count_is_noted(
    loss_of: Callable[[Any], tuple[float, float]], notes: int
) -> None:
    results = list(check_halves(BATCH, len(TARGETS), loss_of))
    assert [(each.check, each.verdict) for each in results] == [("loss", "note")] * notes
    assert all("return StepResult(..., count=...)" in each.cause for each in results)


def test_a_batch_without_a_row_for_each_sample_is_not_divided() -> None:
    assert not list(check_halves({**BATCH, "weights": torch.ones(3)}, len(TARGETS), without_count))
    assert not list(check_halves(BATCH, 1, without_count))
