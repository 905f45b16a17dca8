"""What environment.json says of a run: the user's note, and how it ended."""

import json
import signal
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import train
from base.base_trainer import BaseTrainer
from extras.advice.changes import environment_changes
from tests.helpers import Fit, temporarily
from utils import files
from utils.device import describe_device
from utils.errors import DivergedError, Stopped, TrainingError, UserError
from utils.registry import MODELS


def test_a_package_that_is_missing_does_not_stop_a_run(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    original = metadata.version

    def version(name: str) -> str:
        if name == "tensorboard":  # as with tb-nightly
            raise metadata.PackageNotFoundError(name)
        return original(name)

    monkeypatch.setattr(metadata, "version", version)
    packages = environment(fit("trainer.epochs=1").run_dir)["packages"]
    assert packages["tensorboard"] is None
    assert packages["torch"]


def environment(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "environment.json").read_text()))


def test_a_note_stays_until_another_one_is_given(fit: Fit, write_config: Callable[..., Path]) -> None:
    run = train.main(["-c", str(write_config()), "trainer.epochs=1", "--note", "wider, 넓게"]).run_dir
    assert environment(run)["note"] == "wider, 넓게"
    train.main(["-r", str(run), "trainer.epochs=2"])
    assert environment(run)["note"] == "wider, 넓게"
    train.main(["-r", str(run), "--note=--deeper"])
    assert environment(run)["note"] == "--deeper"
    train.main(["-r", str(run), "--note", ""])
    assert not environment(run)["note"]
    assert len(environment(run)["resumed"]) == 3
    assert "note" not in environment(fit("trainer.epochs=1").run_dir)


def test_a_resume_says_what_its_last_bits_depend_on_and_differs(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit("trainer.epochs=1").run_dir
    record = environment(run)
    train.main(["-r", str(run), "trainer.epochs=2"])
    assert "resumed with" not in capsys.readouterr().err

    def resumed(epochs: int, **changed: Any) -> str:
        (run / "environment.json").write_text(json.dumps({**record, **changed}))
        train.main(["-r", str(run), f"trainer.epochs={epochs}"])
        return capsys.readouterr().err

    warning = resumed(3, threads=77, packages={**record["packages"], "torch": "1.0"})
    assert (
        f"torch {torch.__version__.partition('+')[0]} (before: 1.0), threads {record['threads']} (before: 77)"
        in warning
    )
    assert "exact only up to rounding" in warning
    assert environment_changes(record, {**record, "device": "cuda:1"}) == "device cuda (before: cpu)"
    assert not environment_changes({**record, "device": "cuda:0"}, {**record, "device": "cuda:1"})
    # the last start counts, and what is missing or damaged is not compared
    assert "resumed with threads" in resumed(4, resumed=[{**record, "threads": 5}])
    broken: list[dict[str, Any]] = [{"resumed": [7]}, {"packages": 7}, {"packages": {}, "threads": None}]
    for damaged in broken:
        assert "resumed with" not in resumed(5, **damaged)


def test_a_resume_says_once_that_the_code_is_another(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def resumed(epochs: int, commit: str | None, *, dirty: bool) -> str:
        monkeypatch.setattr("utils.environment.git_state", lambda: {"git_commit": commit, "git_dirty": dirty})
        train.main(["-r", str(run), f"trainer.epochs={epochs}"])
        return next((line for line in capsys.readouterr().out.splitlines() if "the code of" in line), "")

    monkeypatch.setattr("utils.environment.git_state", lambda: {"git_commit": "a" * 40, "git_dirty": False})
    run = fit("trainer.epochs=1").run_dir
    assert "the code of" not in capsys.readouterr().out
    assert not resumed(2, "a" * 40, dirty=False)
    first = resumed(3, "b" * 40, dirty=False)
    assert first == "resumed with the code of git commit bbbbbbbbb (before: git commit aaaaaaaaa)"
    assert not resumed(4, "b" * 40, dirty=False)
    assert "bbbbbbbbb with uncommitted changes (before: git commit bbbbbbbbb)" in resumed(5, "b" * 40, dirty=True)
    assert not resumed(6, None, dirty=False)


def test_a_resume_names_the_folders_whose_code_has_changed(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    project = tmp_path / "project"
    for name in ("model/net.py", "base/loop.py", "extras/report.py", "train.py"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("one")
        (project / name).with_name("__init__.py").touch()
    monkeypatch.setattr("utils.paths.PROJECT", project)
    state: dict[str, Any] = {"git_commit": "a" * 40, "git_dirty": True}
    monkeypatch.setattr("utils.environment.git_state", lambda: state)
    run = fit("trainer.epochs=1").run_dir

    def resumed(epochs: int, *changed: str) -> str:
        for name in changed:
            (project / name).write_text(f"for {epochs} epochs")
        train.main(["-r", str(run), f"trainer.epochs={epochs}"])
        return "\n".join(line for line in capsys.readouterr().out.splitlines() if "code" in line)

    assert not resumed(2)
    assert not resumed(3, "extras/report.py")
    assert resumed(4, "model/net.py") == "resumed with changed code: model/"
    assert not resumed(5)
    state = {"git_commit": "b" * 40, "git_dirty": False}
    expected = "bbbbbbbbb (before: git commit aaaaaaaaa with uncommitted changes); changed: base/, the scripts"
    assert resumed(6, "base/loop.py", "train.py").endswith(expected)


def test_the_names_of_a_gpu_and_its_libraries_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    described = describe_device(torch.device("cuda:1"))
    assert described["device_name"] == "GPU of cuda:1"
    assert {"cuda", "cudnn", "cpu_capability"} < described.keys()
    assert describe_device(torch.device("cpu")).keys() == {"cpu_capability"}


def test_a_run_records_how_it_ended(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fit("trainer.epochs=1").run_dir
    assert environment(run)["outcome"] == "finished"

    def ended(error: BaseException, expected: str | None) -> None:
        def train_epoch(self: BaseTrainer) -> None:
            assert "outcome" not in environment(run), "while it trains, or if it is killed"
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(BaseTrainer, "train_epoch", train_epoch)
            with pytest.raises(type(error)):
                train.main(["-r", str(run), "trainer.epochs=2"])
        assert environment(run).get("outcome") == expected

    ended(Stopped(signal.SIGTERM), "stopped")
    ended(KeyboardInterrupt(), None)
    ended(
        DivergedError("the loss is inf at step 3 (...).\nTry a lower one"), "diverged: the loss is inf at step 3 (...)."
    )
    ended(TrainingError("a disk is full"), "failed: a disk is full")
    ended(ZeroDivisionError(), "failed: ZeroDivisionError")
    with pytest.raises(UserError, match="seed"):
        train.main(["-r", str(run), "seed=5"])
    assert environment(run)["outcome"] == "failed: ZeroDivisionError", "a resume that is refused changes nothing"
    train.main(["-r", str(run), "trainer.epochs=2"])
    assert environment(run)["outcome"] == "finished"


def test_a_full_disk_at_the_end_does_not_fail_the_run(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    original = files.atomic_write

    def write(path: Path) -> Any:
        if path.name == "environment.json" and path.exists():
            raise OSError(28, "No space left on device")
        return original(path)

    monkeypatch.setattr("utils.run_folder.atomic_write", write)
    run = fit("trainer.epochs=1").run_dir
    assert "outcome" not in environment(run)


def test_the_command_can_be_pasted(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--note", "a b", 'metrics=["accuracy"]'])
    assert environment(fit("trainer.epochs=1").run_dir)["command"].endswith(
        """train.py --note 'a b' 'metrics=["accuracy"]'"""
    )


def test_the_start_names_all_parameters_and_those_that_are_trained(
    fit: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    class Frozen(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(6, 4), nn.Linear(4, 3))
            self[0].requires_grad_(False)

    with temporarily(MODELS, Frozen):
        fit(model="Frozen")
    assert "model     Frozen, 43 parameters, 15 of them trainable\n" in capsys.readouterr().out
