"""A run that goes on: in its folder, from where it was, as if it had never stopped."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import train
from base.base_trainer import BaseTrainer
from tests.helpers import curves, lines, same, state
from utils.errors import CheckpointError, Stopped, UserError
from utils.run_folder import RunFolder

Fit = Callable[..., train.Result]
BUSY = ("trainer.epochs=4", "trainer.save_every_steps=3", "trainer.accumulate_steps=2", "trainer.keep_last=null")


def fork(run: Path, step: int) -> Path:
    """A copy of a run that has no checkpoint after this step; its logs are still those of the whole run."""
    copy = run.with_name("20000101-000000")
    shutil.copytree(run, copy)
    for path in (copy / "checkpoints").iterdir():
        if path.name in ("last.pth", "best.pth") or int(path.stem.removeprefix("step-")) > step:
            path.unlink()
    return copy


def equal(left: Path, right: Path) -> None:
    """Two runs have the same states and the same logs, figures of time aside."""
    one, other = state(left), state(right)
    for name in one.keys() - {"writers"}:
        assert same(one[name], other[name]), name
    assert lines(left) == lines(right)
    assert curves(left) == curves(right)


@pytest.mark.parametrize("step", [3, 6, 9])
def test_a_resumed_run_ends_with_the_same_bits(fit: Fit, step: int) -> None:
    whole = fit(*BUSY, model=DROPOUT, data_loader=IMAGES)
    half = fork(whole.run_dir, step)
    resumed = train.main(["-r", str(half)])
    assert resumed.run_dir == half
    equal(whole.run_dir, half)


DROPOUT: dict[str, Any] = {
    "type": "LeNet",
    "args": {"in_channels": 1, "kernel_size": 3, "num_classes": 3, "dropout": 0.5},
}
IMAGES: dict[str, Any] = {
    "type": "RandomTensorLoader",
    "args": {
        "num_samples": 50,
        "input_shape": [1, 32, 32],
        "num_classes": 3,
        "batch_size": 8,
        "validation_split": 10,
        "num_workers": 1,
    },
}


def test_a_run_without_a_checkpoint_restarts(fit: Fit) -> None:
    whole = fit(*BUSY, "trainer.epochs=2")
    half = fork(whole.run_dir, 0)
    train.main(["-r", str(half)])
    equal(whole.run_dir, half)


class Wrapped(nn.Module):
    """A model as DDP wraps it: the names in its state begin with "module."."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Any:
        return self.module(inputs)


def test_a_wrapped_model_restarts_from_its_initial_weights(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fit("trainer.epochs=1")
    monkeypatch.setattr("utils.runtime.Runtime.wrap_ddp", lambda self, model: Wrapped(model))
    whole = fit(*BUSY, "trainer.epochs=2", "--init-from", str(first.run_dir))
    half = fork(whole.run_dir, 0)
    train.main(["-r", str(half)])
    equal(whole.run_dir, half)


def test_a_longer_run_resumes_in_the_same_folder(fit: Fit) -> None:
    short = fit("trainer.epochs=2", "trainer.monitor=min val_loss")
    longer = train.main(["-r", str(short.run_dir), "trainer.epochs=5"])
    asked = fit("trainer.epochs=5", "trainer.monitor=min val_loss")
    assert longer.run_dir == short.run_dir
    assert longer.epochs == 5
    equal(asked.run_dir, longer.run_dir)


def test_patience_is_kept_across_a_resume(fit: Fit) -> None:
    watch = ("trainer.monitor=max loss", "trainer.early_stop=4")
    whole = fit("trainer.epochs=30", *watch)
    assert whole.epochs < 30
    short = fit("trainer.epochs=3", *watch)
    assert train.main(["-r", str(short.run_dir), "trainer.epochs=30"]).epochs == whole.epochs


def test_a_finished_run_stays_as_it_is(fit: Fit) -> None:
    done = fit()
    before = lines(done.run_dir)
    again = train.main(["-r", str(done.run_dir)])
    assert lines(done.run_dir) == before
    assert again.last == done.last


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("method", ["optimizer_step", "evaluate"])
def test_a_signal_saves_and_the_run_resumes(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, method: str
) -> None:
    whole = fit(*BUSY)
    original, calls = getattr(BaseTrainer, method), []

    def interrupted(self: BaseTrainer, *arguments: Any) -> Any:
        calls.append(method)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(BaseTrainer, method, interrupted)
        with pytest.raises(Stopped) as caught:
            fit(*BUSY, name="stopped")
    assert caught.value.signal == number
    stopped = RunFolder.newest(str(whole.run_dir.parent.parent), "stopped")
    assert train.main(["-r", str(stopped.path)]).epochs == 4
    equal(whole.run_dir, stopped.path)


def test_resume_without_a_value_takes_the_newest_run(fit: Fit, write_config: Callable[..., Path]) -> None:
    fit()
    newest = fit("trainer.epochs=1")
    config = ["-c", str(write_config())]
    assert train.main([*config, "-r", "trainer.epochs=3"]).run_dir == newest.run_dir
    assert len(lines(newest.run_dir)) == 3
    with pytest.raises(CheckpointError, match="no run to resume"):
        train.main([*config, "-r", "name=other"])


def test_a_checkpoint_file_sets_later_ones_aside(fit: Fit) -> None:
    whole = fit(*BUSY)
    before = state(whole.run_dir)
    folder = whole.run_dir / "checkpoints"
    train.main(["-r", str(folder / "step-00000003.pth")])
    assert same(before["model"], state(whole.run_dir)["model"])
    assert sorted(path.name for path in (folder / "set-aside").iterdir()) == [
        "step-00000006.pth",
        "step-00000009.pth",
        "step-00000012.pth",
    ]


def test_a_damaged_checkpoint_is_passed_over(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    whole = fit(*BUSY)
    half = fork(whole.run_dir, 9)
    newest = half / "checkpoints" / "step-00000009.pth"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"step-00000009.pth is damaged"):
        train.main(["-r", str(newest)])
    train.main(["-r", str(half)])
    assert "step-00000009.pth is damaged" in capsys.readouterr().err
    equal(whole.run_dir, half)


def test_new_weights_from_an_old_run(fit: Fit) -> None:
    first = fit()
    tuned = fit("--init-from", str(first.run_dir), "--lr=1e-30", "trainer.epochs=1")
    assert tuned.run_dir != first.run_dir
    assert tuned.epochs == 1
    assert same(state(tuned.run_dir)["model"], state(first.run_dir)["model"])
    assert (tuned.run_dir / "initial.pth").exists(), "killed early, it must find these weights"
    with pytest.raises(UserError, match="do not fit this model"):
        fit("--init-from", str(first.run_dir), "model.args.hidden_features=9")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-r", "{run}", "-c", "{run}/config.json"], "--init-from"),
        (["-r", "{run}", "--init-from", "{run}"], "one of them"),
        (["-r", "{run}", "name=other"], "cannot change"),
        (["-r", "{run}", "trainer.save_dir=elsewhere"], "cannot change"),
        (["-r", "{run}/nothing"], "no such run"),
        (["-r", "{run}/checkpoints"], "is not a run folder"),
        (["-r", "{run}/.."], "; its newest run is "),
        (["-r", "{run}/train.log"], "is not a checkpoint in a run folder"),
    ],
)
def test_what_cannot_be_resumed_is_reported(fit: Fit, arguments: list[str], says: str) -> None:
    run = fit().run_dir
    with pytest.raises(UserError, match=says):
        train.main([argument.format(run=run) for argument in arguments])


def test_a_run_that_is_in_use_is_refused(fit: Fit) -> None:
    run = fit().run_dir
    with RunFolder(run).locked(), pytest.raises(UserError, match="in use"):
        train.main(["-r", str(run)])


def test_two_runs_of_one_second_get_two_folders(tmp_path: Path) -> None:
    folders = [RunFolder.create(str(tmp_path), "name").path for _ in range(12)]
    assert len(set(folders)) == 12
    for folder in folders:
        (folder / "config.json").touch()
    assert RunFolder.newest(str(tmp_path), "name").path == folders[-1]
