"""The advice of a run: what it says of a monitored value, and that nothing depends on it."""

import pytest

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
