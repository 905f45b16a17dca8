"""The process of a trial: ``train.py -r`` on the trial's run, whose folder exists before the first step.

python -m extras.sweep.trial_process RUN [--note=TEXT]
"""

import sys

from utils.signals import exit_on_signal

if __name__ == "__main__":
    exit_on_signal()  # before the imports below, which take seconds

import os
import runpy
import signal
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

from base.build import build_experiment, with_facts
from base.initial_weights import load_initial_weights
from base.training.run import prepare_folder
from extras.sweep.sweep_folder import Trial
from utils import cli
from utils.config import load_config
from utils.distributed import get_process_group
from utils.files import size
from utils.paths import PROJECT
from utils.registry import import_components
from utils.run_folder import RunFolder

ERRORS = "errors.log"
"""Standard error of a trial's process; the rest is in train.log."""


@dataclass(frozen=True)
class Progress:
    """What a trial has on disk."""

    metrics: int
    """Bytes of metrics.jsonl."""
    checkpoints: list[Path]

    @classmethod
    def of(cls, trial: Trial) -> "Progress":
        folder = trial.run.checkpoints
        return cls(size(trial.run.path / "metrics.jsonl"), sorted(folder.iterdir()) if folder.exists() else [])


@dataclass(kw_only=True)
class Running:
    """A trial claimed by a coordinator."""

    trial: Trial
    slot: int
    at_claim: Progress
    at_start: Progress | None = None
    """When its process was last started."""
    process: "subprocess.Popen[bytes] | None" = None
    """None while a process left behind by another coordinator still trains it."""
    deaths: int = 0
    read: int = -1
    """Bytes of metrics.jsonl read so far."""
    epochs: int = 0
    value: float | None = None
    """Its best value so far."""
    pruned: bool = False
    """Whether it was asked to stop because of pruning."""


class TrialProcesses:
    """Starts trial processes.

    threads: number of torch threads in each. devices: number of GPUs to share out, one per slot.
    first_slot: number of slots of other sweep processes on this machine, which take the first GPUs.
    note: the label of their runs; None: keep their own.
    """

    def __init__(self, *, threads: int, devices: int, first_slot: int = 0, note: str | None) -> None:
        self.threads = threads
        self.devices = devices
        self.first_slot = first_slot
        self.note = note
        self.pipe = os.pipe()  # its writing end, which only this process has, closes when this process ends

    def start(self, run: RunFolder, slot: int) -> "subprocess.Popen[bytes]":
        """Start a process that trains this run to its end. It saves and exits when this process does."""
        path = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "PYTHONPATH": path}
        if self.devices > 1:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(self.devices)))
            environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[(self.first_slot + slot) % self.devices]
        note = [] if self.note is None else [f"--note={self.note}"]
        with (run.path / ERRORS).open("wb") as errors:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "extras.sweep.trial_process", str(run.path.resolve()), *note],
                env=environment,
                stdin=self.pipe[0],
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def end(self) -> None:
        """Let all processes save and exit, as if this one had ended."""
        os.close(self.pipe[1])


def train_trial(folder: str, *options: str) -> int:
    """Train the run in a folder to its end. Returns the exit status."""
    threading.Thread(target=_end_with_sweep, daemon=True).start()
    run = RunFolder(Path(folder))
    if not run.environment.exists() and (status := cli.run(lambda _: _complete(run))):
        return status
    sys.argv = [str(PROJECT / "train.py"), "-r", folder, *options]
    runpy.run_path(sys.argv[0], run_name="__main__")
    return 0


def _complete(run: RunFolder) -> None:
    """Before the first step, add what a new run's folder has besides the config, which requires the data."""
    import_components()
    loaded = load_config(run.config)
    if not loaded.from_data and (loaded.config.model.weights is None or run.initial.exists()):
        return
    loaded, data = with_facts(loaded)
    weights = None
    if loaded.config.model.weights is not None:
        weights = load_initial_weights(loaded, build_experiment(loaded, data).model, get_process_group())
    prepare_folder(loaded, weights, run)


def _end_with_sweep() -> None:
    """Let a trial whose sweep was killed save and exit: its standard input then ends."""
    os.read(0, 1)
    if sys.platform == "win32":  # where os.kill would end the process at once
        signal.raise_signal(signal.SIGTERM)
    else:
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(train_trial(*sys.argv[1:]))
