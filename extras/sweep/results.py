"""The results of a sweep: the table, sorted by the monitored value, sweep.csv, best.json and the report."""

import csv
import io
import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from extras.spreadsheets import spreadsheet_safe
from extras.sweep.display import best_trial, first_line
from extras.sweep.ranking import rank, repeated, repeated_rows, result_rows, train_command
from extras.sweep.report import write_report
from extras.sweep.sweep_folder import Spec, SweepFolder, Trial
from utils.errors import TrainingError, UserError
from utils.files import read_text
from utils.paths import PROJECT, display_path
from utils.run_folder import replace_file
from utils.streams import say
from utils.text import count, duration, table

MOST_PRINTED = 20


@dataclass(frozen=True)
class Result:
    """The return value of ``sweep.main``."""

    folder: Path
    trials: list[Trial]
    best: Trial | None


def conclude(folder: SweepFolder, spec: Spec, trials: Sequence[Trial], *, quiet: bool, seconds: float) -> Result:
    """Write and print the results of the sweep. Raises TrainingError if no trial has any."""
    ranked = rank(trials, spec)
    best = best_trial(trials, spec)
    try:
        with folder.locked():
            replace_file(folder.path / "sweep.csv", csv_text(ranked, spec))
            if best is not None:
                replace_file(folder.path / "best.json", _best_config(best, folder.path))
            write_report(folder.path, spec, trials, ranked, best, repeated(trials, spec))
    except TrainingError as error:
        raise UserError(f"{error}. The trials are intact; continue the sweep to write its report") from error
    if not quiet:
        say(*_lines(folder.path, spec, ranked, best, seconds), sep="\n")
    if best is None:
        raise TrainingError(f"no trial of {display_path(folder.path)} has a result; {_first_reason(trials)}")
    return Result(folder.path, list(trials), best)


def csv_text(ranked: Sequence[Trial], spec: Spec) -> str:
    """All trials, with the values of their best epoch."""
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
    """The best trial's config, in the form that ``train.py -c`` reads from the sweep's folder."""
    try:
        config = json.loads(read_text(best.run.config))
    except (OSError, ValueError) as error:
        raise UserError(f"{best.run.config} is damaged: {error}") from error
    if "$schema" in config:
        config["$schema"] = Path(os.path.relpath(PROJECT / "config.schema.json", folder)).as_posix()
    return json.dumps(config, indent=2) + "\n"


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
