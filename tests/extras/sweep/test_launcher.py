"""A sweep whose processes a launcher starts: they share its trials, and the GPUs of their machine."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from extras.sweep.trial_process import TrialProcesses
from tests import forked
from tests.conftest import load_script, small_config
from tests.helpers import PATIENCE, ROOT
from utils import cli
from utils.run_folder import RunFolder

SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}
TORCHRUN = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def processes_of(rank: int, launcher: dict[str, str]) -> dict[str, str]:
    ranks = {"SLURM_PROCID": str(rank)} if "SLURM_JOB_ID" in launcher else {"RANK": str(rank), "LOCAL_RANK": "0"}
    return {**os.environ, "OMP_NUM_THREADS": "1", **launcher, **ranks}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "name"),
    [(SLURM, "sweep-slurm-7-0"), ({**TORCHRUN, "TORCHELASTIC_RUN_ID": "my search"}, "sweep-my-search")],
)
def test_the_processes_of_a_launcher_share_one_sweep(tmp_path: Path, launcher: dict[str, str], name: str) -> None:
    config = small_config(tmp_path, trainer={"epochs": 1, "monitor": "min val_loss"})
    words = ("sweep.py", "-c", config, "seed=0..3")
    started = [forked.Process(*words, cwd=ROOT, env=processes_of(rank, launcher)) for rank in range(2)]
    (first, first_errors), (second, second_errors) = [process.communicate(PATIENCE) for process in started]
    assert [process.returncode for process in started] == [0, 0], first_errors + second_errors
    assert "done: 4 trials" in first
    assert second == ""
    (folder,) = (tmp_path / "saved" / "small").iterdir()
    assert folder.name == name
    outcomes = [json.loads(path.read_text()) for path in folder.glob("trial-*/outcome.json")]
    assert [outcome["state"] for outcome in outcomes] == ["complete"] * 4
    # train.log says so if a trial was started twice
    assert not [path for path in folder.glob("trial-*/train.log") if "resum" in path.read_text()]

    other = forked.run(*words[:3], "seed=0..4", cwd=ROOT, env=processes_of(0, launcher), timeout=PATIENCE)
    assert (other.returncode, f"{name} is a different sweep, of another job with the same id" in other.stderr) == (
        2,
        True,
    )


@pytest.mark.parametrize(
    "variables", [{**TORCHRUN, "TORCHELASTIC_RUN_ID": "none", "RANK": "1"}, {**TORCHRUN, "RANK": "1"}]
)
def test_processes_without_a_common_id_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    """torchrun without --rdzv-id on two machines: each would run the whole sweep."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cli.run(load_script("sweep").main, ["-c", str(small_config(tmp_path)), "seed=0..1"]) == 2
    assert "have no id in common" in capsys.readouterr().err
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("visible", "first_slot", "given"),
    [
        (None, 0, ["0", "1", "0"]),
        ("5,GPU-1b", 0, ["5", "GPU-1b", "5"]),
        (None, 1, ["1", "0", "1"]),
    ],
)
def test_each_trial_gets_one_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, first_slot: int, given: list[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    started: list[dict[str, str]] = []

    def start(*_: Any, env: dict[str, str], **__: Any) -> None:
        started.append(env)

    monkeypatch.setattr(subprocess, "Popen", start)
    processes = TrialProcesses(threads=1, devices=2, first_slot=first_slot, note=None)
    for slot in range(3):
        processes.start(RunFolder(tmp_path), slot)
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in started] == given
