"""What a sweep came to: the table, sorted by the monitored value, sweep.csv, best.json and the report."""

import csv
import io
import json
import math
import os
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from extras.sweep.display import best_trial, first_line, short_key, short_value
from extras.sweep.report import write_report
from extras.sweep.sweep_folder import Spec, SweepFolder, Trial
from utils.errors import TrainingError, UserError
from utils.files import read_text
from utils.paths import PROJECT, display_path
from utils.run_folder import replace_text
from utils.streams import say
from utils.text import count, duration, number, spreadsheet_safe, table

REPLICATES = ("seed", "fold")
"""The last words of keys whose values are repetitions of one experiment."""
# 97.5 % quantiles of Student's t distribution with 1, 2, 3 ... degrees of freedom
T_QUANTILES = (12.706, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
NORMAL_QUANTILE = 1.959964
MOST_PRINTED = 20


@dataclass(frozen=True)
class Result:
    """What ``sweep.main`` returns."""

    folder: Path
    trials: list[Trial]
    best: Trial | None


@dataclass(frozen=True)
class Repeated:
    """Trials that differ in seed or fold alone."""

    values: dict[str, str]
    """What they have in common of the values that were searched."""
    results: list[float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.results)

    @property
    def deviation(self) -> float:
        """The standard deviation of a sample (n - 1); NaN of a single result."""
        return statistics.stdev(self.results) if len(self.results) > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the mean, by Student's t distribution."""
        if len(self.results) < 2:
            return math.nan, math.nan
        half = t_quantile(len(self.results) - 1) * self.deviation / math.sqrt(len(self.results))
        return self.mean - half, self.mean + half

    def row(self, spec: Spec) -> list[str]:
        low, high = self.interval
        several = len(self.results) > 1
        cells = [str(len(self.results)), number(self.mean), number(self.deviation) if several else "-"]
        return [*map(short_value, self.values.values()), *cells, f"{number(low)} to {number(high)}" if several else "-"]


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t distribution, to three digits."""
    if freedom <= len(T_QUANTILES):
        return T_QUANTILES[freedom - 1]
    z = NORMAL_QUANTILE
    # the Cornish-Fisher expansion (Abramowitz and Stegun 26.7.5)
    first = (z**3 + z) / (4 * freedom)
    return z + first + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def conclude(folder: SweepFolder, spec: Spec, trials: Sequence[Trial], *, quiet: bool, seconds: float) -> Result:
    """Write what the sweep came to, and print it. Raises TrainingError if no trial has a result."""
    ranked = rank(trials, spec)
    best = best_trial(trials, spec)
    try:
        with folder.locked():
            replace_text(folder.path / "sweep.csv", csv_text(ranked, spec))
            if best is not None:
                replace_text(folder.path / "best.json", _best_config(best, folder.path))
            write_report(folder.path, spec, trials, ranked, best, repeated(trials, spec))
    except TrainingError as error:
        raise UserError(f"{error}. The trials are intact; continue the sweep to write its report") from error
    if not quiet:
        say(*_lines(folder.path, spec, ranked, best, seconds), sep="\n")
    if best is None:
        raise TrainingError(f"no trial of {display_path(folder.path)} has a result; {_first_reason(trials)}")
    return Result(folder.path, list(trials), best)


def rank(trials: Sequence[Trial], spec: Spec) -> list[Trial]:
    """The best first, pruned ones below those that are complete, failed ones last."""
    states = ("complete", "pruned", "failed")

    def key(trial: Trial) -> tuple[int, float, int]:
        outcome = trial.outcome
        assert outcome is not None
        value = math.inf if outcome.value is None else outcome.value if spec.minimise else -outcome.value
        return states.index(outcome.state), value, trial.number

    return sorted(trials, key=key)


def repeated(trials: Sequence[Trial], spec: Spec) -> list[Repeated]:
    """The complete trials grouped by what is no seed or fold, the best mean first; empty if neither is searched."""
    keys = [space.key for space in spec.spaces if space.key.rpartition(".")[2] in REPLICATES]
    if not keys:
        return []
    groups: dict[tuple[str, ...], Repeated] = {}
    for trial in trials:
        if trial.outcome is None or trial.outcome.state != "complete" or trial.outcome.value is None:
            continue
        common = {key: value for key, value in trial.values.items() if key not in keys}
        groups.setdefault(tuple(common.values()), Repeated(common, [])).results.append(trial.outcome.value)
    return sorted(groups.values(), key=lambda group: group.mean if spec.minimise else -group.mean)


def csv_text(ranked: Sequence[Trial], spec: Spec) -> str:
    """All trials, with the values of the epoch that counts."""
    names: dict[str, None] = {}
    records = []
    for trial in ranked:
        assert trial.outcome is not None
        epoch = trial.outcome.epoch
        record = next((one for one in trial.run.epochs() if one.get("epoch") == epoch), {})
        records.append(record)
        names |= dict.fromkeys(name for name in record if name not in ("epoch", "step", "seconds"))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    keys = [space.key for space in spec.spaces]
    writer.writerow(
        ["rank", "trial", "state", *keys, f"best {spec.value_name}", "epoch", "epochs", "seconds", *names, "reason"]
    )
    for place, (trial, record) in enumerate(zip(ranked, records, strict=True), start=1):
        outcome = trial.outcome
        assert outcome is not None
        cells = [place, trial.name, outcome.state, *(trial.values[key] for key in keys)]
        cells += ["" if outcome.value is None else outcome.value, outcome.epoch or "", outcome.epochs]
        cells += [round(outcome.seconds, 3), *(record.get(name, "") for name in names), outcome.reason]
        writer.writerow([spreadsheet_safe(cell) if isinstance(cell, str) else cell for cell in cells])
    return file.getvalue()


def _best_config(best: Trial, folder: Path) -> str:
    """The config of the best trial, as ``train.py -c`` takes it from the sweep's folder."""
    try:
        config = json.loads(read_text(best.run.config))
    except (OSError, ValueError) as error:
        raise UserError(f"{best.run.config} is damaged: {error}") from error
    if "$schema" in config:
        config["$schema"] = Path(os.path.relpath(PROJECT / "config.schema.json", folder)).as_posix()
    return json.dumps(config, indent=2) + "\n"


def train_command(folder: Path) -> str:
    script, config = (shlex.quote(display_path(path)) for path in (PROJECT / "train.py", folder / "best.json"))
    return f"python {script} -c {config}"


def result_rows(ranked: Sequence[Trial], spec: Spec) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the final table."""
    keys = [space.key for space in spec.spaces]
    header = [
        "trial",
        f"best {spec.value_name}",
        "epoch",
        "epochs",
        "time",
        *(short_key(key, spec) for key in keys),
        "state",
    ]
    rows = []
    for trial in ranked:
        outcome = trial.outcome
        assert outcome is not None
        value = "-" if outcome.value is None else number(outcome.value)
        cells = [
            trial.name,
            value,
            str(outcome.epoch or "-"),
            str(outcome.epochs),
            duration(outcome.seconds, fine=True),
        ]
        rows.append([*cells, *(short_value(trial.values[key]) for key in keys), outcome.state])
    return header, rows


def repeated_rows(groups: Sequence[Repeated], spec: Spec) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the table of seeds and folds."""
    keys = list(groups[0].values)
    header = [*(short_key(key, spec) for key in keys), "n", f"mean {spec.value_name}", "deviation", "95 % interval"]
    return header, [group.row(spec) for group in groups]


def _lines(path: Path, spec: Spec, ranked: Sequence[Trial], best: Trial | None, seconds: float) -> list[str]:
    header, rows = result_rows(ranked[:MOST_PRINTED], spec)
    if all(row[-1] == "complete" for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    lines = ["", *table([header, *rows], right=range(1, len(header) - (header[-1] == "state")))]
    if len(ranked) > MOST_PRINTED:
        lines.append(f"... and {len(ranked) - MOST_PRINTED} more in sweep.csv")
    if groups := repeated(ranked, spec):
        header, rows = repeated_rows(groups[:MOST_PRINTED], spec)
        lines += ["", *table([header, *rows], right=range(len(header)))]
    states = [trial.outcome.state for trial in ranked if trial.outcome]
    failed = [trial for trial in ranked if trial.outcome and trial.outcome.state == "failed"]
    parts = [f"{states.count(state)} {state}" for state in ("pruned", "failed") if state in states]
    lines += ["", f"done: {', '.join([count(len(ranked), 'trial'), *parts])}, in {duration(seconds, fine=True)}"]
    lines += [f"  {trial.name} failed: {first_line(trial.outcome.reason)}" for trial in failed[:5] if trial.outcome]
    if best is not None:
        lines.append(f"  best      {best.name}; to train it again: {train_command(path)}")
    lines.append(f"  report    {display_path(path / 'report.html')}, report.md, sweep.csv")
    compare = shlex.quote(display_path(PROJECT / "test.py"))
    lines.append(f"  compare   python {compare} --compare {shlex.quote(display_path(path))}")
    lines.append(f"  view      tensorboard --logdir {shlex.quote(display_path(path))}")
    return lines


def _first_reason(trials: Sequence[Trial]) -> str:
    reasons = [f"{trial.name}: {trial.outcome.reason}" for trial in trials if trial.outcome and trial.outcome.reason]
    return reasons[0] if reasons else "all were pruned"
