"""Reads run folders in any state, without building anything or needing the run's code."""

import glob
import itertools
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from extras.letters import short_key, shortened
from extras.records import RATES, Record, best_of, charts, flat, value_text
from utils.errors import CheckpointError
from utils.files import read_json_object
from utils.paths import display_path, project_path
from utils.run_folder import RunFolder, start_order
from utils.schema import Config
from utils.text import one_line

# where a run is saved and how much it prints: not part of the experiment
NOT_COMPARED = {"$schema", "name", "trainer.save_dir", "trainer.verbosity"}

UNKNOWN = "unknown"
LOSS_TYPE = re.compile(r"loss\.([^.]+\.)?type")  # of a single loss, or of one of several by name

ARGUMENT = "data_loader.args."
# data loader arguments that determine which samples there are, and which are held out
WHICH_DATA = (
    "data_dir", "folds", "input_shape", "linear", "num_classes", "num_samples", "seed", "target_shape",
    "validation_split",
)  # fmt: skip
# overrides that cannot change what a test measures, whatever the data loader
ONLY_SPEED = (
    "runtime.", *(f"{ARGUMENT}{name}=" for name in ("batch_size", "device_cache", "eval_batch_size", "num_workers"))
)  # fmt: skip
# runs that differ only in these repeat one experiment
REPEATS = ("seed", f"{ARGUMENT}fold")

# what test/metrics.json contains besides the values
ABOUT_TEST = {"checkpoint", "epoch", "step", "samples", "overrides"}


class Task(NamedTuple):
    """What runs must have in common to be ranked together."""

    data: str
    loss: str
    which: tuple[tuple[str, str], ...] = ()
    """Arguments that determine the data and the loss, by name."""


@dataclass
class Run:
    """A run folder, as far as it can be read."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    """Config by dotted key, as in optimizer.args.lr."""
    records: Sequence[Record] = ()
    environment: dict[str, Any] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    """The result of test.py, as in its metrics.json; empty if ``outdated``."""
    outdated: str = ""
    """Why the result of test.py does not belong to these records; empty if it does, or there is none."""
    damage: str = ""
    """What cannot be read; empty if everything can."""

    @property
    def name(self) -> str:
        return f"{self.config.get('name', self.path.resolve().parent.name)}/{self.path.resolve().name}"

    @property
    def task(self) -> Task:
        """The data and the loss. Runs with different ones cannot be ranked together."""
        given = {name: self.config.get(f"{ARGUMENT}{name}") for name in WHICH_DATA}
        if isinstance(folder := given["data_dir"], str):
            given["data_dir"] = display_path(project_path(folder))
        which = [(name, shown_value(value)) for name, value in given.items() if value is not None]
        losses = [str(value) for key, value in self.config.items() if LOSS_TYPE.fullmatch(key)]
        others = [key for key in sorted(self.config) if key.startswith(("loss.", "validation."))]
        which += [(key, self.compared(key)) for key in others if not LOSS_TYPE.fullmatch(key)]
        loss = " + ".join(losses) if losses else UNKNOWN if self.config.get("loss", UNKNOWN) else "no loss"
        return Task(str(self.config.get("data_loader.type", UNKNOWN)), loss, tuple(which))

    @property
    def monitor(self) -> str | None:
        asked = self.config.get("trainer.monitor")
        return asked if isinstance(asked, str) and re.fullmatch(r"(min|max) \S+", asked) else None

    def compared(self, key: str) -> str:
        """A value of the config for comparisons, in which those that follow from the data are all the same."""
        found = self.environment.get("from_data")
        facts = list(map(str, found)) if isinstance(found, list) else []
        if any(f"{fact}.".startswith(f"{key}.") for fact in facts):  # perhaps an item of a list
            return "from the data"
        return shown_value(self.config.get(key))

    @property
    def note(self) -> str:
        return one_line(str(self.environment.get("note") or ""))

    @property
    def commit(self) -> str:
        """The abbreviated commit, with + if files were changed; empty without git."""
        commit = self.environment.get("git_commit")
        return f"{commit[:7]}{'+' if self.environment.get('git_dirty') else ''}" if isinstance(commit, str) else ""

    @property
    def epochs(self) -> int:
        return int(self.records[-1].get("epoch") or 0) if self.records else 0

    @property
    def seconds(self) -> float:
        """Training time over all epochs."""
        return sum(record.get("seconds") or 0.0 for record in self.records)

    def values(self, name: str) -> list[float | None]:
        return [record.get(name) for record in self.records]

    def at_best(self, monitor: str) -> Record:
        """The record of the best epoch; empty without one. monitor: "min NAME" or "max NAME"."""
        found = best_of(self.values(monitor.split()[1]), monitor)
        return {} if found is None else self.records[found[0]]

    def best(self, monitor: str) -> float | None:
        return self.at_best(monitor).get(monitor.split()[1])

    @property
    def state(self) -> str:
        """How it ended: "finished", "stopped", "failed: REASON" or "diverged: REASON"; "unfinished" if it is training
        or was killed, "damaged" if a file cannot be read."""
        if self.damage:
            return "damaged"
        outcome = self.environment.get("outcome")
        return one_line(outcome).partition(" (")[0] if isinstance(outcome, str) else "unfinished"


def find_runs(paths: Sequence[Path]) -> tuple[list[Run], list[Path]]:
    """The runs at these paths, and the paths without any. A path is a run folder, or a folder above it, as
    saved/lenet/.

    Raises CheckpointError for a path that does not exist.
    """
    runs = dict[Path, Run]()
    others = list[Path]()
    # shells of Windows leave patterns to the program
    matches = [[path] if path.exists() else sorted(map(Path, glob.glob(str(path)))) or [path] for path in paths]  # noqa: PTH207
    for path in itertools.chain(*matches):
        if not path.exists():
            raise CheckpointError(f"{path}: no such run folder")
        folders = [path] if (path / "config.json").is_file() else []
        if not folders and path.is_dir():
            below = sorted([*path.glob("*/"), *path.glob("*/*/")])
            # with a dot: a run being created, or killed during that
            folders = [folder for folder in below if (folder / "config.json").is_file() and folder.name[0] != "."]
        if not folders:
            others.append(path)
        for folder in folders:
            if folder.resolve() not in runs:
                runs[folder.resolve()] = _read(folder)
    return list(runs.values()), others


def differing(runs: Sequence[Run]) -> list[str]:
    """The config keys in which some runs differ, those with the most values first."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in NOT_COMPARED)
    values = {key: len({run.compared(key) for run in runs}) for key in keys}
    return sorted((key for key in keys if values[key] > 1), key=lambda key: -values[key])


def values_at_best(runs: Sequence[Run], monitor: str) -> dict[str, list[float | None]]:
    """The other values of each run's best epoch: those of validation, and as "train reward" training values without."""
    found = charts([record for run in runs for record in run.records])
    names = [name for chart, lines in found.items() if chart != RATES for name in lines.values()]
    best = [run.at_best(monitor) for run in runs]
    values = {}
    for name in names:
        held_out = name.startswith("val_")
        if name != monitor.split()[1] and (held_out or f"val_{name}" not in names):
            values[name if held_out else f"train {name}"] = [record.get(name) for record in best]
    return values


def test_values(runs: Sequence[Run]) -> dict[str, list[float | None]]:
    """The values on the test data by run, as "test accuracy"."""
    names = dict.fromkeys(name for run in runs for name in run.test)
    return {f"test {name}": [run.test.get(name) for run in runs] for name in names}


def shown_value(value: Any) -> str:
    return "" if value is None else value_text(value)


class Repeats(NamedTuple):
    """Finished runs of one config, at least two, one for each seed and fold."""

    runs: list[Run]
    over: list[str]
    """What differs between them, as in ["seed"]."""

    def means(self, monitor: str) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation (n - 1) of the best monitored value, of each value on the test data and of the
        others of the best epoch. Values missing in some of the runs are left out."""
        best = {monitor: [run.best(monitor) for run in self.runs]}
        found = {**best, **test_values(self.runs), **values_at_best(self.runs, monitor)}
        whole = {name: [value for value in values if value is not None] for name, values in found.items()}
        return {
            name: (statistics.fmean(values), statistics.stdev(values))
            for name, values in whole.items()
            if len(values) == len(self.runs)
        }


def find_repeats(runs: Sequence[Run]) -> list[Repeats]:
    """In the order of the runs."""
    alike: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        rest = [key for key in run.config if key not in NOT_COMPARED and key not in REPEATS]
        alike.setdefault(tuple(sorted((key, run.compared(key)) for key in rest)), []).append(run)
    found = []
    for members in alike.values():
        finished = [run for run in members if run.state == "finished"]
        finished.sort(key=lambda run: start_order(RunFolder(run.path)))
        kept = {tuple(shown_value(run.config.get(key)) for key in REPEATS): run for run in finished}
        if len(kept) > 1:
            values = zip(*kept, strict=True)
            over = [key.split(".")[-1] for key, each in zip(REPEATS, values, strict=True) if len(set(each)) > 1]
            found.append(Repeats(list(kept.values()), over))
    return found


class RunGroup(NamedTuple):
    """Runs of one task, which can be ranked; the best first."""

    task: Task
    which: str
    """Arguments that distinguish the data from other data of the same type, as in data_dir=photos; may be empty."""
    monitor: str
    """What to rank by: "min NAME" or "max NAME"."""
    runs: list[Run]
    keys: list[str]
    """The config keys in which they differ."""
    repeats: list[Repeats]
    """Runs that differ only in their seed and fold."""

    @property
    def title(self) -> str:
        return "unknown task" if UNKNOWN in self.task[:2] else ", ".join(self.task[:2])

    @property
    def commit(self) -> str:
        """The commit of all runs; empty if it is not the same."""
        commits = {run.commit for run in self.runs}
        return commits.pop() if len(commits) == 1 else ""

    def short_name(self, run: Run) -> str:
        """A run's name, without the experiment's if that is the same for all."""
        same = len({run.name.rpartition("/")[0] for run in self.runs}) == 1
        return run.name.rpartition("/")[2] if same else run.name

    def settings(self, run: Run, keys: Iterable[str]) -> list[str]:
        """The values of these keys, as in ["lr=0.1"]."""
        return [f"{self.header(key)}={brief(run.config.get(key))}" for key in keys]

    def header(self, key: str) -> str:
        return short_key(key, self.keys, taken=("type", "epochs"))  # "epochs" is the number that a run has done


def group_runs(runs: Sequence[Run]) -> list[RunGroup]:
    """Group by task: the task with the most runs first, unreadable runs last."""
    groups = []
    tasks = Counter(run.task for run in runs)
    for task in sorted(tasks, key=lambda task: (UNKNOWN in task[:2], -tasks[task])):
        members = [run for run in runs if run.task == task]
        asked = Counter(run.monitor for run in members if run.monitor)
        held_out = any("val_loss" in record for run in members for record in run.records)
        monitor = asked.most_common(1)[0][0] if asked else "min val_loss" if held_out else "min loss"
        ranked = sorted(members, key=lambda run: _rank(run, monitor))
        groups.append(RunGroup(task, _which(task, tasks), monitor, ranked, differing(members), find_repeats(ranked)))
    return groups


def _which(task: Task, tasks: Iterable[Task]) -> str:
    others = [set(other.which) for other in tasks if other[:2] == task[:2]]
    distinct = [pair for pair in task.which if any(pair not in other for other in others)]
    return ", ".join(f"{name}={shortened(value, 40)}" for name, value in distinct)


def _rank(run: Run, monitor: str) -> tuple[bool, float, str]:
    best = run.best(monitor)
    value = 0.0 if best is None else best if monitor.startswith("min") else -best
    return best is None, value, run.name


def brief(value: Any) -> str:
    """A config value, numbers to four digits; the CSV file has all of them."""
    return f"{value:.4g}" if isinstance(value, float) else shown_value(value) or "-"


def _read(path: Path) -> Run:
    folder = RunFolder(path)
    run = Run(path, records=folder.epochs(), environment=folder.read_environment())
    config = read_json_object(folder.config)
    if config is None:
        run.damage = "config.json cannot be read"
    elif len(run.records) < _lines(path / "metrics.jsonl"):
        run.damage = f"metrics.jsonl cannot be read from line {len(run.records) + 1}"
    # a component without arguments is one value, its type
    run.config = {key: value for key, value in flat(_completed(config or {})) if value not in ({}, [])}
    test = read_json_object(path / "test" / "metrics.json") or {}
    numbers = {name: item for name, item in test.items() if isinstance(item, (int, float)) and math.isfinite(item)}
    values = {name: item for name, item in numbers.items() if name not in ABOUT_TEST}
    run.outdated = _outdated(run, test) if values else ""
    run.test = {} if run.outdated else values
    return run


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    """A config with the defaults of keys that its version did not have yet; unchanged if it is not valid today."""
    try:
        return Config.model_validate(config).model_dump(exclude={"schema_path"})
    except ValidationError:
        return config


def _lines(path: Path) -> int:
    """Whole lines: the last one may be in the process of being written."""
    try:
        return path.read_bytes().count(b"\n") if path.is_file() else 0
    except OSError:
        return 1


def _outdated(run: Run, test: dict[str, Any]) -> str:
    """Why a test's values must not stand beside the run's best value: of other data or another checkpoint."""
    found = test.get("overrides")
    overrides = found if isinstance(found, list) else []
    if changed := [each for each in map(str, overrides) if not each.startswith(ONLY_SPEED)]:
        return f"tested with {one_line(', '.join(changed))}; run test.py without it"
    best = run.at_best(run.monitor).get("epoch") if run.monitor else None
    ended = {record.get("epoch"): record.get("step") for record in run.records}.get(best or run.epochs)
    step = test.get("step")
    # without a best epoch, test.py takes the newest checkpoint, which may be later than the last epoch
    if ended is None or not isinstance(step, int) or (step == ended if best else step >= ended):
        return ""
    return f"tested at step {step}, but the {'best' if best else 'last'} epoch ended at step {ended}; run test.py again"
