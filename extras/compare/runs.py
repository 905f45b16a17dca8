"""Reads run folders in any state, without building anything or needing the run's code."""

import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from extras.records import RATES, best_of, charts, flat, value_text
from utils.errors import CheckpointError
from utils.files import read_json_object, read_text
from utils.paths import display_path, project_path
from utils.run_folder import NAME, RunFolder, start_order
from utils.text import one_line

# where a run is saved and how much it prints: not part of the experiment
NOT_COMPARED = {"$schema", "name", "trainer.save_dir", "trainer.verbosity"}

UNKNOWN = "unknown"
LOSS_TYPE = re.compile(r"loss\.([^.]+\.)?type")  # of a single loss, or of one of several by name

# data loader arguments that determine which samples there are, and which are held out
WHICH_DATA = {
    "data_dir", "folds", "input_shape", "linear", "num_classes", "num_samples", "seed", "target_shape",
    "validation_split",
}  # fmt: skip
# and those that determine how they are read and fed; of other arguments, this is unknown
HOW_FED = {
    "balanced", "batch_size", "cache_dir", "crop", "device_cache", "download", "drop_last", "eval_batch_size", "flip",
    "in_memory", "mean", "num_test_samples", "num_workers", "shuffle", "size", "std", "white",
}  # fmt: skip
# of these, the ones that change what a test measures, if it is given others than the run
IN_TEST = {"mean", "num_test_samples", "size", "std", "white"}
ARGUMENT = "data_loader.args."
# runs that differ only in these repeat one experiment
FOLD = "fold"
REPEATS = ("seed", f"{ARGUMENT}{FOLD}")

# what test/metrics.json contains besides the values
ABOUT_TEST = {"checkpoint", "epoch", "step", "samples", "overrides"}
# words in a metric's name that mean smaller is better
LOWER_IS_BETTER = re.compile(
    r"loss|error|perplexity|distance|divergence|reconstruction|(?<![a-z])(mae|mse|rmse|mape|nll|kl|fid|wer|cer|elbo_gap)(?![a-z])"
)


def _changes_test(override: str) -> bool:
    """Whether an override of a test may change its values: other data, another loss or metric under the same name."""
    key = override.partition("=")[0]
    fed = key.startswith(ARGUMENT) and key.removeprefix(ARGUMENT) in HOW_FED - IN_TEST
    return not fed and not key.startswith("runtime.")


class Task(NamedTuple):
    """What runs must have in common to be ranked together."""

    data: str
    loss: str
    which: tuple[tuple[str, str], ...] = ()
    """Arguments that determine the data, by name."""


@dataclass
class Run:
    """A run folder, as far as it can be read."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    """Config by dotted key, as in optimizer.args.lr."""
    records: list[dict[str, float]] = field(default_factory=list)
    """The lines of metrics.jsonl, without values that are not finite."""
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
        given = {name: self.config.get(f"{ARGUMENT}{name}") for name in sorted(WHICH_DATA)}
        if isinstance(folder := given["data_dir"], str):
            given["data_dir"] = display_path(project_path(folder))
        which = tuple((name, shown_value(value)) for name, value in given.items() if value is not None)
        losses = [str(value) for key, value in self.config.items() if LOSS_TYPE.fullmatch(key)]
        others = [key for key in sorted(self.config) if key.startswith(("loss.", "validation."))]
        which += tuple((key, self.compared(key)) for key in others if not LOSS_TYPE.fullmatch(key))
        loss = " + ".join(losses) if losses else UNKNOWN if self.config.get("loss", UNKNOWN) else "no loss"
        return Task(str(self.config.get("data_loader.type", UNKNOWN)), loss, which)

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
    def when(self) -> str:
        """When it started, as in 2026-11-22 00:37:12; empty if unknown."""
        if NAME.fullmatch(self.path.resolve().name):
            return str(datetime.strptime(self.path.resolve().name[:15], "%Y%m%d-%H%M%S"))
        return str(self.environment.get("time", ""))[:19].replace("T", " ")

    @property
    def commit(self) -> str:
        """The abbreviated commit, with + if files were changed; empty without git."""
        commit = self.environment.get("git_commit")
        return f"{commit[:7]}{'+' if self.environment.get('git_dirty') else ''}" if isinstance(commit, str) else ""

    @property
    def epochs(self) -> int:
        return int(self.records[-1].get("epoch", 0)) if self.records else 0

    @property
    def seconds(self) -> float:
        """Training time over all epochs."""
        return sum(record.get("seconds", 0.0) for record in self.records)

    def values(self, name: str) -> list[float | None]:
        return [record.get(name) for record in self.records]

    def best(self, monitor: str) -> tuple[float, int] | None:
        """The best value, and its epoch. monitor: "min NAME" or "max NAME"."""
        found = best_of(self.values(monitor.split()[1]), monitor)
        return None if found is None else (found[1], int(self.records[found[0]].get("epoch", 0)))

    def state(self) -> str:
        """How it ended: "finished", "stopped", "failed: REASON" or "diverged: REASON".

        If not recorded, "unfinished" (running or killed) or "no checkpoint"; "damaged" if a file cannot be read.
        """
        if self.damage:
            return "damaged"
        outcome = self.environment.get("outcome")
        if isinstance(outcome, str) and outcome:
            return re.sub(
                r"^(diverged|failed): the loss is (\S+) at step (\d+) .*", r"\1: loss \2 at step \3", one_line(outcome)
            )
        if not any(self.path.glob("checkpoints/*.pth")):
            return "no checkpoint"
        asked, patience, monitor = (self.config.get(f"trainer.{key}") for key in ("epochs", "early_stop", "monitor"))
        best = self.best(monitor) if self.monitor and isinstance(monitor, str) else None
        early = isinstance(patience, int) and best is not None and self.epochs - best[1] >= patience
        return "finished" if early or not isinstance(asked, int) or self.epochs >= asked else "unfinished"


def find_runs(paths: Sequence[Path]) -> tuple[list[Run], list[Path]]:
    """The runs at these paths, and the paths without any. A path is a run folder, or a folder above it, as
    saved/lenet/.

    Raises CheckpointError for a path that does not exist.
    """
    runs = dict[Path, Run]()
    others = list[Path]()
    for path in paths:
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


def metrics(runs: Iterable[Run]) -> list[str]:
    """The names of all logged values except time and speed, in the order of their charts."""
    found = charts([record for run in runs for record in run.records])
    return [name for chart, lines in found.items() if chart != RATES for name in lines.values()]


def held_out_metrics(runs: Sequence[Run]) -> list[str]:
    """The names of validation values, and of training values for metrics without one."""
    names = metrics(runs)
    return [name for name in names if name.startswith("val_") or f"val_{name}" not in names]


def direction(name: str, runs: Iterable[Run]) -> str:
    """ "min" or "max" for a value, as given by a run that monitors it, or else by words in its name."""
    for run in runs:
        if run.monitor is not None and run.monitor.split()[1] == name:
            return run.monitor.split()[0]
        if f"loss.{name.removeprefix('val_')}.type" in run.config:  # one of several losses
            return "min"
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    return "min" if LOWER_IS_BETTER.search(words) else "max"


def shown_value(value: Any) -> str:
    return "" if value is None else value_text(value)


@dataclass
class Repeats:
    """Runs of one config, except for seed and fold, at least two of them finished."""

    runs: list[Run]
    """Finished runs, one for each seed and fold."""
    left_out: int
    """Others: unfinished, or with a seed and fold of a run that started later."""
    over: list[str]
    """What differs between them, as in ["seed"]."""

    def values(self) -> Mapping[str, tuple[float, float]]:
        """Mean and standard deviation (n - 1) of each metric's best value, as "min val_loss", and of each value on the
        test data, as "test loss". Values missing in some of the runs are left out."""
        found = {}
        for name in metrics(self.runs):
            best = f"{direction(name, self.runs)} {name}"
            found[best] = [None if pair is None else pair[0] for pair in (run.best(best) for run in self.runs)]
        for name in dict.fromkeys(name for run in self.runs for name in run.test):
            found[f"test {name}"] = [run.test.get(name) for run in self.runs]
        whole = {name: [value for value in values if value is not None] for name, values in found.items()}
        return {
            name: (statistics.fmean(values), _deviation(values))
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
        finished = [run for run in members if run.state() == "finished"]
        finished.sort(key=lambda run: start_order(RunFolder(run.path)))
        kept = list({tuple(shown_value(run.config.get(key)) for key in REPEATS): run for run in finished}.values())
        if len(kept) > 1:
            differ = [key for key in REPEATS if len({shown_value(run.config.get(key)) for run in kept}) > 1]
            over = [key.rpartition(".")[2] for key in differ]
            found.append(Repeats(kept, len(members) - len(kept), over))
    return found


def _deviation(values: Sequence[float]) -> float:
    try:
        return statistics.stdev(values)
    except OverflowError:
        return math.inf


def _read(path: Path) -> Run:
    run = Run(path)
    problems = list[str]()
    config = read_json_object(path / "config.json")
    if config is None:
        problems.append("config.json cannot be read")
    # a component without arguments is one value, its type
    run.config = {key: value for key, value in flat(config or {}) if value not in ({}, [])}
    run.environment = read_json_object(path / "environment.json") or {}
    test = read_json_object(path / "test" / "metrics.json") or {}
    run.test = {name: item for name, item in test.items() if name not in ABOUT_TEST and _is_number(item)}
    overrides = test.get("overrides")
    changed = list(filter(_changes_test, map(str, overrides))) if isinstance(overrides, list) else []
    if run.test and changed:
        run.test, run.outdated = {}, f"tested with {one_line(', '.join(changed))}; run test.py without it"
    try:
        text = read_text(path / "metrics.jsonl")
    except FileNotFoundError:
        text = ""
    except (OSError, ValueError):
        text = ""
        problems.append("metrics.jsonl cannot be read")
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        record = _record(line)
        if record is not None:
            run.records.append(record)
        elif line.endswith("\n"):  # otherwise it is being written
            problems.append(f"metrics.jsonl, line {number} is not the record of an epoch")
    if run.test and (outdated := _outdated(run, test.get("step"))):
        run.test, run.outdated = {}, outdated
    run.damage = "; ".join(problems[:2])
    return run


def _outdated(run: Run, step: Any) -> str:
    """Why values of the checkpoint of this step must not stand beside the run's best value; empty if they may."""
    best = run.best(run.monitor) if run.monitor else None
    epoch = best[1] if best else run.epochs
    ended = next((record.get("step") for record in run.records if record.get("epoch") == epoch), None)
    # without a best epoch, test.py takes the newest checkpoint, which may be later than the last epoch
    if ended is None or not _is_number(step) or (step == ended if best else step >= ended):
        return ""
    return f"tested at step {step}, but the {'best' if best else 'last'} epoch ended at step {ended}; run test.py again"


def _record(line: str) -> dict[str, float] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or type(value.get("epoch")) is not int:
        return None
    return {name: item for name, item in value.items() if _is_number(item)}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
