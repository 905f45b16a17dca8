"""Trials without training: each writes the epochs that a function gives, and ends."""

import json
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from extras.sweep.coordinator import Coordinator
from extras.sweep.display import Display
from extras.sweep.search import Search
from extras.sweep.spaces import parse_spaces
from extras.sweep.sweep_folder import Outcome, Spec, SweepFolder, Trial
from extras.sweep.trial_process import ERRORS
from utils.run_folder import RunFolder

Values = Mapping[str, str]


def spec(*words: str, trials: int | None = None, **changed: Any) -> Spec:
    """A sweep over these spaces, whose trials have nine epochs. Hidden features are integers."""
    _, spaces = parse_spaces(words)
    spaces = [replace(each, integer="hidden" in each.key and not each.finite) for each in spaces]
    given = {"sampler": "tpe" if trials else None, "pruner": None, "seed": 0, **changed}
    return Spec("small", spaces, "min loss", epochs=9, trials=trials, threads=1, **given)


def losses(values: Values) -> list[float]:
    """Falls by epoch to a level that the values decide."""
    level = sum(abs(float(value) - 0.3) * (place + 1) for place, value in enumerate(values.values()))
    return [level + 1 / epoch for epoch in range(1, 10)]


def write_epochs(run: RunFolder, values: list[float]) -> None:
    lines = [
        json.dumps({"epoch": epoch, "step": epoch, "loss": value, "seconds": 0.5})
        for epoch, value in enumerate(values, 1)
    ]
    (run.path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


class MadeUpProcess:
    """As subprocess.Popen."""

    def __init__(self, status: int) -> None:
        self.returncode: int | None = status
        self.requests: list[str] = []

    def poll(self) -> int | None:
        return self.returncode

    def terminate(self) -> None:
        self.requests.append("terminate")

    def kill(self) -> None:
        self.requests.append("kill")

    def wait(self, timeout: float | None = None) -> int | None:
        return self.returncode


class MadeUpProcesses:
    """train: from a trial's values to its losses; status: to its exit status and what it prints to standard error.

    outcome: what each run records about its end; "": nothing.
    """

    def __init__(
        self,
        train: Callable[[Values], list[float]] = losses,
        status: Callable[[Values], tuple[int, str]] = lambda values: (0, ""),
        outcome: str = "",
    ) -> None:
        self.train = train
        self.status = status
        self.outcome = outcome
        self.started: list[str] = []
        self.ended = False

    def start(self, run: RunFolder, slot: int) -> MadeUpProcess:
        values = json.loads((run.path / "trial.json").read_text())["values"]
        self.started.append(run.path.name)
        write_epochs(run, self.train(values))
        status, errors = self.status(values)
        (run.path / ERRORS).write_text(errors)
        if self.outcome:
            run.environment.write_text(json.dumps({"outcome": self.outcome}))
        return MadeUpProcess(status)

    def end(self) -> None:
        self.ended = True


class Killed(BaseException):
    """In place of SIGKILL: nothing more is written."""


def sweep_folder(folder: Path, config: Path, spec: Spec) -> SweepFolder:
    base = json.loads(config.read_text())
    base["trainer"]["save_dir"] = str(folder / "saved")
    return SweepFolder.create(spec, base, job=None)


def coordinator(folder: SweepFolder, processes: Any, *, jobs: int = 1) -> Coordinator:
    return Coordinator(folder, processes, Display(folder.read_spec(), quiet=True), jobs=jobs)


def results(folder: SweepFolder) -> list[tuple[Values, Outcome | None]]:
    """All that a sweep has found, as the disk has it."""
    return [(trial.values, trial.outcome) for trial in SweepFolder(folder.path).trials()]


def followed(spec: Spec, folder: Path, count: int, known: list[Trial]) -> list[Trial]:
    """A search from these trials on to so many, one after the other."""
    search, trials = Search(spec), list(known)
    while len(trials) < count:
        values = search.choose(len(trials), trials)
        run = RunFolder(folder / f"trial-{len(trials):03}")
        run.path.mkdir(exist_ok=True)
        write_epochs(run, losses(values))
        trial = Trial(len(trials), values, run)
        trials.append(trial)
        pruned, _ = search.pruned_at(trial), search.pruned_at(trial)  # asked again when its process ends
        measured = losses(values)[:pruned]
        assert search.study is None or len(search.study.trials[-1].intermediate_values) == len(measured)
        trial.outcome = Outcome("pruned" if pruned else "complete", min(measured), 1, len(measured), 0.0)
        search.follow(trials)
    return trials


SIGKILL = -signal.SIGKILL
