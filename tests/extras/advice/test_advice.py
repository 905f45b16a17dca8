"""The advice of a run: what it says of a monitored value, and that nothing depends on it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from extras.advice.advice import parts_that_differ
from model.loss import cross_entropy
from tests.base.training.test_first_batch import never
from tests.helpers import Fit, lines, same, state, temporarily
from trainer.trainer import Trainer
from utils.registry import METRICS


def test_a_monitored_value_that_is_nan_is_warned_about_once(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    with temporarily(METRICS, never):
        fit("trainer.epochs=3", "trainer.monitor=max val_never", metrics=["never"])
    shown = capsys.readouterr().err
    assert shown.count("val_never, the value of trainer.monitor, is NaN in epoch 1") == 1
    assert "best.pth is not written" in shown


def test_an_epoch_in_which_no_target_counts_is_warned_about_once(
    fit: Fit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda self, batch: step(self, (batch[0], batch[1] * 0 - 100)))
    fit("trainer.epochs=3", "trainer.monitor=null", metrics=[])
    shown = capsys.readouterr().err
    assert shown.count("the loss of epoch 1 is the mean over nothing") == 1
    assert "ignore_index" in shown


def test_a_run_without_the_folder_is_the_same_and_says_nothing(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("data_loader.random_tensor.RandomTensorLoader.class_names", ["cat", "dog"])
    advised = fit().run_dir
    assert "warning: the data loader has 2 class_names" in capsys.readouterr().err
    monkeypatch.setattr("base.outputs.find_extra", lambda name: None)
    plain = fit().run_dir
    assert capsys.readouterr().err == ""
    assert lines(plain) == lines(advised)
    assert all(same(state(plain)[part], state(advised)[part]) for part in ("model", "optimizer", "random"))


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
