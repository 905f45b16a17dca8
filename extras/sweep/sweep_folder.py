"""The folder of a sweep, the only record of what has been done: whatever is killed, the rest continues from it.

sweep.json            what is searched, and how
base.json             the config of every trial, except for the searched values
trial-000/            the run of a trial: config.json, metrics.jsonl, checkpoints/ ... as for any run, and
        trial.json        its number and its values
        outcome.json      how it ended; without it, the trial is running or was killed
        .claim            locked by the coordinator that runs the trial
.lock                 locked briefly while a coordinator claims a trial or records an outcome
journal.log, sweep.csv, best.json, report.md, report.html    derived from these at any time
"""

import contextlib
import json
import math
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, TypeVar, get_args

from pydantic import TypeAdapter, ValidationError

from extras.letters import short_key
from extras.sweep.spaces import Space
from utils.config import as_json, load_config, to_json
from utils.errors import ConfigError, TrainingError, UserError, os_errors_as
from utils.files import lock_file, read_text
from utils.paths import project_path
from utils.run_folder import RunFolder, rename_to_free, replace_file

Record = TypeVar("Record")
State = Literal["complete", "pruned", "failed"]
TRIAL = re.compile(r"trial-(\d{3,})")
LOCK_WAIT = 60.0
"""Seconds to wait for another coordinator's claim, which takes milliseconds."""


@dataclass(frozen=True)
class Spec:
    """What a sweep searches. The same for all coordinators on one folder."""

    name: str
    spaces: list[Space]
    monitor: str
    """The value to compare trials by: "min NAME" or "max NAME"."""
    epochs: int
    trials: int | None
    """Total number of trials; None: the points of the grid."""
    sampler: str | None
    """None: a grid."""
    pruner: str | None
    seed: int
    threads: int
    """Threads per trial: with another number, sums would be rounded differently."""
    note: str | None = None
    """The user's label for the sweep and its trials; None: never given."""

    @property
    def minimise(self) -> bool:
        return self.monitor.startswith("min ")

    @property
    def value_name(self) -> str:
        return self.monitor.partition(" ")[2]

    @property
    def keys(self) -> list[str]:
        return [space.key for space in self.spaces]

    def short(self, key: str) -> str:
        """A searched key for a table."""
        return short_key(key, self.keys)


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    state: State
    value: float | None
    """The best monitored value; None if there was none."""
    epoch: int
    """Epoch of the best value."""
    epochs: int
    """Number of epochs that count."""
    seconds: float
    """Training time."""
    reason: str = ""
    """Reason for a failure."""

    @property
    def headline(self) -> str:
        return self.reason.partition("\n")[0]


@dataclass(frozen=True)
class Values:
    """What a trial tries: the content of trial.json."""

    number: int
    values: dict[str, str]
    """By key, in override notation."""


@dataclass
class Trial:
    """A trial and its run."""

    number: int
    values: dict[str, str]
    """By key, in override notation."""
    run: RunFolder
    outcome: Outcome | None = None
    claim: IO[str] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.run.path.name

    @property
    def state(self) -> str:
        return self.outcome.state if self.outcome else "running"

    @property
    def value(self) -> float:
        """The best monitored value; NaN if there is none, or not yet."""
        return math.nan if self.outcome is None or self.outcome.value is None else self.outcome.value

    def measured(self, name: str) -> list[float]:
        """The values of this name, one per epoch; NaN if it was not finite."""
        values = [record.get(name) for record in self.run.epochs()]
        return [math.nan if value is None else float(value) for value in values]

    @property
    def diverged(self) -> bool:
        """Whether its run ended at a loss that is not finite."""
        return str(self.run.read_environment().get("outcome")).startswith("diverged: ")

    def seconds(self) -> float:
        return sum(float(record.get("seconds") or 0.0) for record in self.run.epochs())


def rank(trials: Iterable[Trial], spec: Spec) -> list[Trial]:
    """The trials that have ended, the best first; pruned trials come after complete ones, failed ones last."""

    def key(trial: Trial) -> tuple[int, float, int]:
        value = math.inf if math.isnan(trial.value) else trial.value if spec.minimise else -trial.value
        return get_args(State).index(trial.state), value, trial.number

    return sorted((trial for trial in trials if trial.outcome), key=key)


def best_trial(trials: Iterable[Trial], spec: Spec) -> Trial | None:
    """The complete trial with the best value, the first of equal ones."""
    return next((trial for trial in rank(trials, spec) if trial.state == "complete"), None)


class SweepFolder:
    """Reads and writes a sweep's folder. Raises UserError if the disk rejects a write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.base = path / "base.json"
        self._trials: dict[int, Trial] = {}

    @classmethod
    def create(cls, spec: Spec, base: dict[str, Any], *, job: str | None) -> "SweepFolder":
        """Create a folder save_dir/name/sweep-TIME.

        job: a launcher's id, whose processes share sweep-JOB, which the first of them creates.
        """
        trainer = base.get("trainer")
        save_dir = str(trainer.get("save_dir", "saved")) if isinstance(trainer, dict) else "saved"
        parent = project_path(save_dir) / spec.name
        if job is None:
            return cls(_create(parent / f"sweep-{time.strftime('%Y%m%d-%H%M%S')}", spec, base, rename_to_free))
        path = parent / ("sweep-" + re.sub(r"\W+", "-", job))
        try:
            return cls(_create(path, spec, base, Path.rename))
        except UserError:
            if not path.exists():
                raise
        folder = cls.of(path)  # another process of the same job has created it
        if folder.read_spec().spaces != spec.spaces or read_text(folder.base) != as_json(base, path):
            raise UserError(f"{path} is a different sweep, of another job with the same id; choose another id")
        return folder

    @classmethod
    def of(cls, path: Path) -> "SweepFolder":
        """The sweep in a folder. Raises UserError if there is none."""
        if not (path / "sweep.json").is_file():
            raise UserError(f"{path} is not the folder of a sweep: it has no sweep.json")
        return cls(path)

    def read_spec(self) -> Spec:
        """Raises UserError if sweep.json is damaged."""
        return _read_record(self.path / "sweep.json", Spec)

    def write_spec(self, spec: Spec) -> None:
        _write_record(self.path / "sweep.json", spec)

    # ------------------------------------------------------------------ trials

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock for claims and outcomes: one coordinator at a time, on all machines that share the disk."""
        until = time.monotonic() + LOCK_WAIT
        path = self.path / ".lock"
        with os_errors_as(UserError, f"cannot write to {path}"):
            while not lock_file(file := path.open("a")):
                if time.monotonic() > until:
                    raise UserError(f"{self.path} was locked by another sweep for {LOCK_WAIT:.0f} s; is it hanging?")
                time.sleep(0.01)
        with file:
            yield

    def trials(self) -> list[Trial]:
        """All trials in order of number, with new outcomes."""
        with os_errors_as(UserError, f"cannot write to {self.path}"):
            names = [entry.name for entry in os.scandir(self.path)]
        for name in names:
            if (found := TRIAL.fullmatch(name)) and (number := int(found[1])) not in self._trials:
                content = _read_record(self.path / name / "trial.json", Values, advice=ADVICE_FOR_TRIAL)
                self._trials[number] = Trial(content.number, content.values, RunFolder(self.path / name))
        for trial in self._trials.values():
            if trial.outcome is None and (trial.run.path / "outcome.json").exists():
                trial.outcome = _read_record(trial.run.path / "outcome.json", Outcome, advice=ADVICE_FOR_TRIAL)
        return [self._trials[number] for number in sorted(self._trials)]

    def create_trial(self, number: int, values: dict[str, str]) -> Trial:
        """Create the run of a trial, for ``train.py -r``. It appears completely or not at all.

        If these values are invalid together, the trial is recorded as failed.
        """
        name = f"trial-{number:03}"
        unnamed = RunFolder(self.path / f".{name}.tmp")
        shutil.rmtree(unnamed.path, ignore_errors=True)  # left by a killed sweep
        outcome = None
        with os_errors_as(UserError, f"cannot write to {self.path / name}"):
            unnamed.checkpoints.mkdir(parents=True)
            unnamed.started.write_text(f"{time.time_ns()}\n")
            _write_record(unnamed.path / "trial.json", Values(number, values))
            try:
                _write(unnamed.config, self.config_text(values, self.path / name))
            except ConfigError as error:
                outcome = Outcome("failed", None, 0, 0, 0.0, str(error))
                _write_record(unnamed.path / "outcome.json", outcome)
            unnamed.path.rename(self.path / name)
        return self._trials.setdefault(number, Trial(number, values, RunFolder(self.path / name), outcome))

    def config_text(self, values: dict[str, str], folder: Path) -> str:
        """A trial's config, in the form that ``train.py -c`` reads. folder: where it will be saved."""
        loaded = load_config(self.base, [f"{key}={value}" for key, value in values.items()], dry_run=False)
        if loaded.from_data:  # the trial's own process replaces these references
            return as_json(loaded.unresolved.value, folder)
        return to_json(loaded.config, folder=folder)

    def claim(self, trial: Trial) -> bool:
        """Claim a trial for this process; False if another has claimed it."""
        if trial.claim is None:
            with os_errors_as(UserError, f"cannot write to {trial.run.path}"):
                file = (trial.run.path / ".claim").open("a")
                trial.claim = file if lock_file(file) else None
        return trial.claim is not None

    def finish(self, trial: Trial, outcome: Outcome) -> None:
        """Record how a trial ended, and release it."""
        _write_record(trial.run.path / "outcome.json", outcome)
        trial.outcome = outcome
        self.release(trial)

    def release(self, trial: Trial) -> None:
        if trial.claim is not None:
            trial.claim.close()
            trial.claim = None


ADVICE = "start a new sweep, without -r"
ADVICE_FOR_TRIAL = "remove the folder of this trial to run it again"


def _create(path: Path, spec: Spec, base: dict[str, Any], rename: Callable[[Path, Path], Path]) -> Path:
    """Create a sweep's folder, which appears completely or not at all. Raises UserError."""
    unnamed = path.with_name(f".{path.name}-{platform.node()}-{os.getpid()}.tmp")
    try:
        with os_errors_as(UserError, f"cannot create a folder for the sweep in {path.parent}"):
            unnamed.mkdir(parents=True)
            _write(unnamed / "base.json", as_json(base, path))
            _write_record(unnamed / "sweep.json", spec)
            return rename(unnamed, path)
    finally:
        shutil.rmtree(unnamed, ignore_errors=True)


def is_running(run: RunFolder) -> bool:
    """Whether a process trains this run: it holds a lock."""
    path = run.path / ".lock"
    if not path.exists():
        return False
    with os_errors_as(UserError, f"cannot write to {path}"), path.open("a") as file:
        return not lock_file(file)


def _read_record(path: Path, kind: type[Record], *, advice: str = ADVICE) -> Record:
    """Read what ``_write_record`` wrote of an object of this class. Raises UserError."""
    with os_errors_as(UserError, f"cannot read {path}"):
        content = path.read_bytes()
    try:
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        raise UserError(f"{path} is damaged; {advice}") from error


def _write_record(path: Path, record: Spec | Values | Outcome) -> None:
    _write(path, json.dumps(asdict(record), indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    """Write atomically. Raises UserError."""
    try:
        replace_file(path, text)
    except TrainingError as error:
        raise UserError(str(error)) from error
