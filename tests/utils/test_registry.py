"""What a registry offers of a library, whatever its version."""

import types

import pytest
import torch
from torch import nn

from utils.registry import LOSSES, OPTIMIZERS, SCHEDULERS, Registry


class NewOptimizer(torch.optim.SGD):
    def __init__(self, params: object, lr: float = 1e-3, boost: "UnknownType" = None) -> None:  # type: ignore[name-defined]  # noqa: F821
        """An annotation that cannot be resolved at runtime."""


class NewLoss(nn.Module):
    def __init__(self, reduction: str = "mean") -> None:
        """Derived from nn.Module alone."""

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs - targets


def test_what_every_supported_torch_has_is_offered() -> None:
    assert {"Adam", "AdamW", "SGD", "RMSprop", "LBFGS", "Adafactor", "Muon"} <= set(OPTIMIZERS.names())
    assert {"StepLR", "OneCycleLR", "CosineAnnealingLR", "SequentialLR"} <= set(SCHEDULERS.names())
    assert {"MSELoss", "CrossEntropyLoss", "BCEWithLogitsLoss", "HuberLoss"} <= set(LOSSES.names())
    assert "AdaptiveLogSoftmaxWithLoss" not in LOSSES.names()


def test_what_a_newer_torch_adds_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim, "NewOptimizer", NewOptimizer, raising=False)
    monkeypatch.setattr(torch.optim, "__all__", ["SGD", "NewOptimizer", "lr_scheduler"])
    monkeypatch.setattr(nn, "NewLoss", NewLoss, raising=False)
    assert OPTIMIZERS.names() == ["NewOptimizer", "SGD"]
    assert list(OPTIMIZERS.parameters("NewOptimizer")) == ["lr", "boost"]
    assert not OPTIMIZERS.takes_any("NewOptimizer")
    assert "NewLoss" in LOSSES.names()


def test_a_public_name_that_does_not_exist_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    library = types.ModuleType("library")
    library.__dict__.update(__all__=["Present", "Absent"], Present=NewLoss, Unlisted=NewLoss, Module=nn.Module)
    monkeypatch.setitem(__import__("sys").modules, "library", library)
    registry = Registry("thing", library="library", base="Module")
    assert registry.names() == ["Present"]
    assert registry.get("Absent") is None
    assert registry.suggest("Presnt") == 'did you mean "Present"?'
