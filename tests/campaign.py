"""Kills runs and resumes them until they end, and compares them with a run that was left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests import forked
from tests.helpers import PATIENCE, ROOT, TIMES, Json, curves, lines, same, state

WEIGHTS = [0.1, 5.0, 1.0, 1.0, 3.0, 0.2, 1.0, 4.0, 2.0, 1.0]  # of ten classes
VARIANTS: dict[str, Json] = {
    "weighted": {
        "loss": {"type": "cross_entropy", "args": {"weight": WEIGHTS}},
        "trainer": {"type": "AveragedTrainer"},
    },
    "groups": {
        "optimizer": {
            "type": "AdamW",
            "args": {},
            "groups": [{"params": ["*.bias"], "args": {"weight_decay": 0.0}}, {"params": ["conv*"]}],
        },
        "lr_scheduler": {"type": "OneCycleLR", "args": {"max_lr": [0.01, 0.02, 0.005]}, "interval": "step"},
        "trainer": {
            "freeze": [{"params": ["conv1.*"], "epochs": 3}],
            "ema": {"decay": 0.9},
            "validate_every_steps": 3,
        },
    },
    "several": {
        "loss": {"classes": {"type": "cross_entropy"}, "scaled": {"type": "LearntScale", "weight": 0.5}},
        "optimizer": {
            "features": {"type": "Adam", "args": {"lr": 0.002}, "params": ["conv*"], "clip_grad_norm": 1.0},
            "head": {"type": "SGD", "args": {"lr": 0.01, "momentum": 0.9}, "params": ["fc*", "loss.*"]},
        },
        "lr_scheduler": {"features": {"type": "OneCycleLR", "args": {"max_lr": 0.01}, "interval": "step"}},
        "trainer": {"type": "TwoStepTrainer", "monitor": "min val_scaled"},
    },
}

Running = subprocess.Popen[str] | forked.Process


def config(
    save_dir: Path, *, loader: str, name: str, workers: int = 2, checkpoint: str = "full", variant: str = ""
) -> Json:
    """Everything that a resume could get wrong: 5 steps an epoch, the last of one short batch, about 8 epochs.

    variant: a name in VARIANTS.
    """
    data = {"batch_size": 8, "validation_split": 16, "num_workers": workers, "eval_batch_size": 16}
    watch = {"monitor": "min val_loss", "early_stop": 4}
    often = {"epochs": 12, "accumulate_steps": 3, "save_every_steps": 2, "log_every_steps": 1, "keep_last": 2}
    plain: Json = {
        "name": name,
        "data_loader": {"type": loader, "args": data},
        "model": {"type": "LeNet", "args": {"dropout": 0.3}},
        "loss": "cross_entropy",
        "metrics": ["accuracy"],
        "optimizer": {"type": "AdamW", "args": {"lr": 0.001}},
        "lr_scheduler": {"type": "OneCycleLR", "args": {"max_lr": 0.01}, "interval": "step"},
        "trainer": {
            **often,
            **watch,
            "checkpoint": checkpoint,
            "save_dir": str(save_dir),
            "verbosity": 1,
        },
        "runtime": {"device": "cpu"},
    }
    other = VARIANTS[variant] if variant else {}
    return {**plain, **other, "trainer": {**plain["trainer"], **other.get("trainer", {})}}


@contextmanager
def process(*arguments: str, save_dir: Path, fork: bool = True, **variables: str) -> Iterator[Running]:
    """train.py with these arguments, ended at the latest when the block is left. fork: without the import of torch."""
    words = ("-m", "tests.killable", *arguments)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RUNS": str(save_dir), **variables}
    started: Running
    if fork:
        started = forked.Process(*words, cwd=ROOT, env=environment, session=True)
    else:
        started = subprocess.Popen(
            [sys.executable, "-W", "ignore", *words],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def wait_for(condition: Callable[[], bool], running: Running) -> None:
    """Look again and again until the condition holds, or the process has ended."""
    end = time.monotonic() + PATIENCE
    while running.poll() is None and not condition() and time.monotonic() < end:
        time.sleep(0.002)


def logged(folder: Path) -> Callable[[], bool]:
    """Whether the event files below a folder are no longer as they are now: a run has begun, or was resumed."""

    def look() -> list[tuple[Path, int]]:
        while True:
            with suppress(FileNotFoundError):  # a folder that was made and removed meanwhile
                return sorted((path, path.stat().st_size) for path in folder.rglob("*tfevents*"))

    before = look()
    return lambda: look() != before


def passed(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


@dataclass
class Campaign:
    """Kills of one run. Moments are drawn from the seed."""

    folder: Path
    loader: str
    seed: int
    workers: tuple[int, ...] = (2,)
    left_out: str = ""
    checkpoint: str = "full"
    variant: str = ""
    signals: tuple[signal.Signals, ...] = (signal.SIGKILL,)
    kinds: tuple[str, ...] = ("start", "work", "work", "file")
    fork: bool = False
    kills: int = 0
    moments: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def alone(self) -> Path:
        """The run that nobody disturbs."""
        return self._start("alone")

    def killed(self, at_least: int) -> Path:
        """A run that is killed so often, and then runs to its end."""
        arguments = ["-c", str(self._config("killed"))]
        while self.kills < at_least and not self._killed_once(arguments):
            if (run := self._run("killed")) is not None:
                arguments = ["-r", str(run)]
        if (run := self._run("killed")) is None:
            return self._start("killed")
        self._finish(["-r", str(run), *self._other_workers()])
        return run

    def _killed_once(self, arguments: list[str]) -> bool:
        """Whether the run came to its end before the kill."""
        environment = {"LEAVE_OUT": self.left_out} if self.left_out else {}
        kind = self.random.choice(self.kinds)
        number = self.random.choice(self.signals) if kind != "file" else signal.SIGKILL
        if kind == "file":
            environment["KILL_AT"] = str(self.random.randint(1, 120))
        again = self._other_workers() if arguments[0] == "-r" else []
        changed = logged(self.folder)
        with process(*arguments, *again, save_dir=self.folder, fork=self.fork, **environment) as running:
            if kind == "start":
                wait_for(passed(self.random.uniform(0, 3)), running)
            elif kind == "work":
                wait_for(changed, running)
                wait_for(passed(self.random.uniform(0, 0.6)), running)
            else:
                wait_for(passed(PATIENCE), running)
            running.send_signal(number)
            output = "".join(running.communicate(timeout=PATIENCE))
        if running.returncode == 0 or "done after" in output:  # a signal to a process that is just leaving
            return True
        check_end(running.returncode, output, number)
        self.kills += 1
        self.moments.append(f"{kind} {number.name}")
        return False

    def _other_workers(self) -> list[str]:
        return [f"data_loader.args.num_workers={self.random.choice(self.workers)}"]

    def _config(self, name: str) -> Path:
        path = self.folder / f"{name}.json"
        how = {"checkpoint": self.checkpoint, "variant": self.variant}
        path.write_text(json.dumps(config(self.folder, loader=self.loader, name=name, **how)))  # type: ignore[arg-type]
        return path

    def _run(self, name: str) -> Path | None:
        runs = sorted((self.folder / name).glob("[0-9]*"))
        assert len(runs) <= 1, f"a killed run was not found again: {runs}"
        return runs[0] if runs else None

    def _start(self, name: str) -> Path:
        self._finish(["-c", str(self._config(name))])
        run = self._run(name)
        assert run is not None
        return run

    def _finish(self, arguments: list[str]) -> None:
        environment = {"LEAVE_OUT": self.left_out} if self.left_out else {}
        with process(*arguments, save_dir=self.folder, fork=self.fork, **environment) as running:
            output = "".join(running.communicate(timeout=PATIENCE))
        assert running.returncode == 0, output


def check_end(status: int | None, output: str, number: signal.Signals) -> None:
    """What a process shows that was ended by a signal: no traceback, and how to resume if the run had begun."""
    if number == signal.SIGKILL:  # a data worker may complain that its parent is gone
        assert status == -number, output
        return
    assert "Traceback" not in output, output
    assert status == 128 + number, output
    if "run folder" in output:
        assert output.splitlines()[-1].startswith("python train.py -r "), output


def differences(left: Path, right: Path) -> list[str]:
    """What two runs ended with that is not equal to the bit, figures of time aside, and the configs, as of workers."""
    found = []
    for name in ("last.pth", "best.pth"):
        one, other = state(left, name), state(right, name)
        found += [
            f"{name}: {part}" for part in one if part not in ("writers", "config") and not same(one[part], other[part])
        ]
    if lines(left) != lines(right):
        found.append("metrics.jsonl")
    if curves(left) != curves(right) or records(left) != records(right):
        found.append("TensorBoard")
    return found


def records(run: Path) -> list[tuple[str, int, object]]:
    """The contents of the event files, in the order of writing, with nothing that a reader would have to sort out.

    Pictures and histograms too, to the bit; not the figures of time and memory, nor the config, which has the name.
    """
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util.tensor_util import make_ndarray

    found = [
        (value.tag, event.step, make_ndarray(value.tensor).tolist())
        for path in sorted(run.glob("events.out.tfevents.*"))
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.tag not in (*TIMES, "config") and not value.tag.startswith("_hparams_/")
    ]
    assert found, f"{run} has no event files: its config says tensorboard=false"
    return found
