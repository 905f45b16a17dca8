"""A disk that is full or read-only, and a folder that goes away: reported, survived where it can be, never hidden."""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import train
from base.base_trainer import BaseTrainer
from tests.campaign import differences
from tests.conftest import load_script
from tests.helpers import Fit, needs_extra
from utils import checkpoint
from utils.checkpoint.checkpointer import Checkpointer
from utils.errors import Stopped, TrainingError, UserError
from utils.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("tensorboard")]

OFTEN = ("trainer.monitor=min val_loss", "trainer.save_every_steps=2", "trainer.log_every_steps=1", "trainer.epochs=4")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def at_step(monkeypatch: pytest.MonkeyPatch, actions: dict[int, Callable[[], Any]]) -> None:
    """Do something just before an optimizer step."""
    original = BaseTrainer.optimizer_step

    def optimizer_step(self: BaseTrainer, step: Any) -> Tensor | float:
        if action := actions.pop(self.progress.steps + 1, None):
            self.outputs.checkpointer.wait()  # what it removes when it fails would make room again
            action()
        return original(self, step)

    monkeypatch.setattr(BaseTrainer, "optimizer_step", optimizer_step)


def fill(folder: Path) -> None:
    """Take what is left of a file system, to the last byte."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 512)
        except OSError:
            pass


# from Python 3.13 on, DCP's writer complains of a second flush when it is freed
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["full", "sharded"])
def test_a_full_disk_is_survived_and_what_was_logged_meanwhile_comes_later(
    fit: Fit, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    whole = fit(*OFTEN)
    at_step(monkeypatch, {4: lambda: fill(small_disk), 15: (small_disk / "filler").unlink})
    run = fit(*OFTEN, f"trainer.save_dir={small_disk}", f"trainer.checkpoint={kind}").run_dir
    said = capsys.readouterr().err
    assert "step-00000006.pth could not be written: [Errno 28] No space left on device" in said
    assert "the older checkpoints are intact" in said
    assert differences(whole.run_dir, run) == []
    assert " 2/4 " in (run / "train.log").read_text()


def test_checkpoints_are_written_where_no_thread_can_be_started(
    fit: Fit, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = fit(*OFTEN)

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    at_step(monkeypatch, {4: lambda: fill(small_disk), 15: (small_disk / "filler").unlink})
    run = fit(*OFTEN, f"trainer.save_dir={small_disk}").run_dir
    assert "step-00000006.pth could not be written: [Errno 28]" in capsys.readouterr().err
    assert differences(whole.run_dir, run) == []


def test_a_run_that_cannot_save_at_its_end_says_so_and_where(
    fit: Fit, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(*OFTEN)
    at_step(monkeypatch, {8: lambda: fill(small_disk)})
    with pytest.raises(TrainingError, match=r"the run ended, but checkpoint .*step-00000020.pth could not be written"):
        fit(*OFTEN, f"trainer.save_dir={small_disk}")
    run = RunFolder.newest(str(small_disk), "small").path
    for path in checkpoint.step_files(run / "checkpoints"):
        checkpoint.verify(path)
    monkeypatch.undo()
    load_checkpoint = vars(train)["load_checkpoint"]

    def load_and_fill(*arguments: Any) -> None:
        load_checkpoint(*arguments)
        fill(small_disk)  # what was logged after the checkpoint is gone, and has left room

    monkeypatch.setattr(train, "load_checkpoint", load_and_fill)
    with pytest.raises(TrainingError, match=r"cannot write .*environment.json: No space left"):
        train.main(["-r", str(run)])
    monkeypatch.undo()
    (small_disk / "filler").unlink()
    train.main(["-r", str(run)])
    assert differences(whole.run_dir, run) == []


def test_a_stop_that_could_not_save_is_not_called_saved(
    fit: Fit, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop() -> None:
        fill(small_disk)
        raise Stopped(15)

    at_step(monkeypatch, {4: stop})
    with pytest.raises(TrainingError, match=r"stopped by signal 15, but checkpoint .*step-00000003.pth could not be"):
        fit(*OFTEN, f"trainer.save_dir={small_disk}")


def test_no_room_for_a_run_folder_is_the_users_error(fit: Fit, small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(UserError, match=r"cannot create a run folder .*trainer.save_dir"):
        fit(f"trainer.save_dir={small_disk}")
    assert [path.name for path in small_disk.rglob("*") if path.name not in ("filler", "small")] == []


def test_a_read_only_folder(fit: Fit, small_disk: Path, tmp_path: Path) -> None:
    run = fit(f"trainer.save_dir={small_disk}").run_dir
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match=r"cannot write .*: Read-only file system"):
        train.main(["-r", str(run), "trainer.epochs=9"])
    with pytest.raises(UserError, match=r"cannot create a run folder in \S+: Read-only file system; see trainer"):
        fit(f"trainer.save_dir={small_disk}")
    with pytest.raises(UserError, match=r"test cannot be written: Read-only file system; choose another folder"):
        load_script("test").main(["-r", str(run)])
    values = load_script("test").main(["-r", str(run), "--out", str(tmp_path / "report")])
    assert values["loss"] > 0
    assert (tmp_path / "report" / "metrics.json").exists()


@needs_extra("compare", "export")
def test_a_command_that_cannot_write_its_results_says_so(fit: Fit, small_disk: Path) -> None:
    run = fit(f"trainer.save_dir={small_disk}").run_dir
    test, export = load_script("test").main, load_script("export").main
    test(["-r", str(run)])

    def refused(reason: str) -> None:
        with pytest.raises(UserError, match=rf"{reason}; .*choose another folder with --out"):
            test(["-r", str(run)])
        with pytest.raises(UserError, match=rf"cannot be written: .*{reason}; choose another folder with --out"):
            test(["--compare", str(run)])
        with pytest.raises(UserError, match=rf"cannot be written: {reason}; --out names another file"):
            export(["-r", str(run), "--format", "safetensors"])

    fill(small_disk)
    refused("No space left on device")
    (small_disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused("Read-only file system")


def test_a_checkpoint_that_cannot_be_removed_is_named_once(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name == "step-00000002.pth":
            raise PermissionError(1, "Operation not permitted", str(path))
        original(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    run = fit(*OFTEN, "trainer.keep_last=1").run_dir
    said = capsys.readouterr().err
    assert said.count("an older checkpoint could not be removed: [Errno 1] Operation not permitted") == 1
    assert "could not be written" not in said
    assert (run / "checkpoints" / "last.pth").samefile(run / "checkpoints" / "step-00000020.pth")


def test_a_folder_that_is_removed_during_the_run(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at_step(monkeypatch, {4: lambda: (tmp_path / "saved").rename(tmp_path / "gone")})
    with pytest.raises(TrainingError, match="the run ended, but checkpoint"):
        fit(*OFTEN)
    said = capsys.readouterr().err
    assert "step-00000004.pth could not be written" in said
    assert "the run folder is gone" in said
    assert "intact" not in said


def test_checkpoints_that_are_removed_during_the_run_are_written_again(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove() -> None:
        # at once: rmtree fails where a checkpoint is being written
        next((save_dir / "other").glob("*/checkpoints")).rename(save_dir / "gone")

    whole = fit(*OFTEN)
    save_dir = whole.run_dir.parent.parent
    at_step(monkeypatch, {9: remove})
    other = fit(*OFTEN, name="other")
    assert [part for part in differences(whole.run_dir, other.run_dir) if not part.startswith("best")] == []


def test_a_disk_that_does_not_keep_what_was_written_is_noticed_before_it_replaces_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "step-00000001.pth"
    checkpoint.write(path, {"model": {"w": torch.ones(100)}})
    before = path.read_bytes()

    def lose_a_byte(file: int) -> None:
        os.pwrite(file, b"\xff", 200)

    monkeypatch.setattr(os, "fsync", lose_a_byte)
    with pytest.raises(OSError, match="the disk did not return what was written") as caught:
        checkpoint.write(path, {"model": {"w": torch.zeros(100)}})
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


def test_a_checkpoint_counts_only_once_the_logs_are_flushed_and_a_failure_until_the_next(tmp_path: Path) -> None:
    folder, failures, warnings = tmp_path / "checkpoints", [OSError("no space")], list[str]()

    def flush() -> None:
        assert not checkpoint.step_files(folder)
        if failures:
            raise failures.pop()

    checkpointer = Checkpointer(folder, keep_last=None, warn=warnings.append, before_commit=flush)
    saved = []
    for step in (1, 2):
        checkpointer.save(step, {"model": {}}, best_step=None)
        saved.append(checkpointer.wait())
    assert saved == [False, True]
    assert len(warnings) == 1
    assert [path.name for path in checkpoint.step_files(folder)] == ["step-00000002.pth"]
