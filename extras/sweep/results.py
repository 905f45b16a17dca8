"""The results of a sweep: tables of trials and of repetitions, sweep.csv, best.json, report.md and report.html."""

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from extras.document import Block, Command, Heading, Paragraph, Picture, Table, as_html, as_markdown
from extras.spreadsheets import csv_table
from extras.sweep.display import short_value
from extras.sweep.search import importances, study_of, write_journal
from extras.sweep.sweep_folder import Spec, SweepFolder, Trial, best_trial, rank
from utils.config import as_json
from utils.errors import TrainingError, UserError
from utils.files import read_text
from utils.paths import PROJECT, display_path, shell_path
from utils.run_folder import replace_files
from utils.streams import say
from utils.text import count, duration, number, number_or_dash, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from optuna.study import Study

MOST_PRINTED = 20
ENOUGH = 8
"""Minimum number of trials for importances."""
# 97.5% quantiles of Student's t distribution with 1, 2, 3 ... degrees of freedom
T_QUANTILES = (12.706, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


@dataclass(frozen=True)
class Repeated:
    """Trials that differ only in seed or fold."""

    values: dict[str, str]
    """The searched values they have in common."""
    trials: list[Trial]

    @property
    def results(self) -> list[float]:
        return [trial.value for trial in self.trials]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.results)

    @property
    def deviation(self) -> float:
        """The sample standard deviation (n - 1); NaN for a single result."""
        return statistics.stdev(self.results) if len(self.results) > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% confidence interval of the mean, by Student's t distribution."""
        if len(self.results) < 2:
            return math.nan, math.nan
        half = t_quantile(len(self.results) - 1) * self.deviation / math.sqrt(len(self.results))
        return self.mean - half, self.mean + half

    def row(self) -> list[str]:
        """Its cells in the table over seeds and folds."""
        low, high = self.interval
        several = len(self.results) > 1
        cells = [str(len(self.results)), number(self.mean), number(self.deviation) if several else "-"]
        return [*map(short_value, self.values.values()), *cells, f"{number(low)} to {number(high)}" if several else "-"]


@dataclass(frozen=True)
class Result:
    """The return value of ``sweep.main``."""

    folder: Path
    trials: list[Trial]
    best: Trial | None
    """The complete trial with the best value; of a grid over seeds or folds, the first of the setting with the best
    mean."""
    setting: Repeated | None
    """That setting."""
    ranked: list[Trial]
    """The trials that have ended, the best first."""
    spec: Spec


def conclude(folder: SweepFolder, spec: Spec, trials: Sequence[Trial], *, quiet: bool, seconds: float) -> Result:
    """Write and print the results of the sweep. Raises TrainingError if no trial has any."""
    setting = best_setting(trials, spec)
    best = setting.trials[0] if setting else best_trial(trials, spec)
    result = Result(folder.path, list(trials), best, setting, rank(trials, spec), spec)
    study = study_of(spec, trials) if find_spec("optuna") else None
    pictures: dict[str, bytes] = {}
    blocks = list(_blocks(result, study, pictures))
    files: dict[str, str | bytes] = {
        "sweep.csv": _csv(result),
        "report.md": as_markdown(blocks),
        "report.html": as_html(blocks, pictures),
        **pictures,
    }
    if best is not None:
        files["best.json"] = _best_config(best, folder.path)
    try:
        with folder.locked():
            replace_files(folder.path, files)
            if study is not None:
                write_journal(folder.path / "journal.log", study)
    except TrainingError as error:
        raise UserError(f"{error}. The trials are intact; continue the sweep to write its report") from error
    if not quiet:
        say(*_lines(result, seconds))
    if best is None:
        raise TrainingError(f"no trial of {display_path(folder.path)} has a result; {_first_reason(trials)}")
    return result


def repeated(trials: Sequence[Trial], spec: Spec) -> list[Repeated]:
    """The complete trials grouped by everything but seed and fold, best mean first; empty if neither is searched.

    In whatever order the trials are given: of equal means, the setting that was tried first comes first.
    Of a grid, settings without some of their trials come last: those that failed or were pruned might have been worse.
    """
    keys = [space.key for space in spec.spaces if space.replicates]
    if not keys:
        return []
    groups: dict[tuple[str, ...], Repeated] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.state == "complete":
            common = {key: value for key, value in trial.values.items() if key not in keys}
            groups.setdefault(tuple(common.values()), Repeated(common, [])).trials.append(trial)
    most = 0 if spec.sampler else max((len(group.trials) for group in groups.values()), default=0)

    def key(group: Repeated) -> tuple[bool, float]:  # of a grid, settings of which trials failed come last
        return len(group.trials) < most, group.mean if spec.minimise else -group.mean

    return sorted(groups.values(), key=key)


def best_setting(trials: Sequence[Trial], spec: Spec) -> Repeated | None:
    """Of a grid over seeds or folds: the trials of the setting with the best mean, of those with the most results.

    None if no setting has several: a single seed or fold may be lucky.
    """
    groups = [] if spec.sampler else repeated(trials, spec)
    return groups[0] if groups and len(groups[0].trials) > 1 else None


def t_quantile(freedom: int) -> float:
    """The 97.5% quantile of Student's t distribution, to three digits."""
    if freedom <= len(T_QUANTILES):
        return T_QUANTILES[freedom - 1]
    # the Cornish-Fisher expansion (Abramowitz and Stegun 26.7.5) at the normal distribution's quantile
    return 1.959964 + 2.3723 / freedom + 2.8225 / freedom**2 + 2.5558 / freedom**3


def result_rows(ranked: Sequence[Trial], spec: Spec) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the final table."""
    header = ["trial", f"best {spec.value_name}", "epoch", "epochs", "time", *map(spec.short, spec.keys), "state"]
    rows = []
    for trial in ranked:
        outcome = trial.outcome
        assert outcome is not None
        epochs = [str(outcome.epoch or "-"), str(outcome.epochs)]
        values = [short_value(trial.values[key]) for key in spec.keys]
        seconds = duration(outcome.seconds, fine=True) if outcome.epochs else "-"  # only those of epochs are known
        rows.append([trial.name, number_or_dash(outcome.value), *epochs, seconds, *values, outcome.state])
    return header, rows


def repeated_rows(groups: Sequence[Repeated], spec: Spec) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table over seeds and folds."""
    keys = map(spec.short, groups[0].values)
    header = [*keys, "n", f"mean {spec.value_name}", "deviation", "95% interval"]
    return header, [group.row() for group in groups]


def train_command(folder: Path) -> str:
    return f"python {shell_path(PROJECT / 'train.py')} -c {shell_path(folder / 'best.json')}"


def _csv(result: Result) -> str:
    spec = result.spec
    rows: list[list[object]] = [
        ["rank", "trial", "state", *spec.keys, f"best {spec.value_name}", "epoch", "epochs", "seconds", "reason"]
    ]
    for place, trial in enumerate(result.ranked, start=1):
        outcome = trial.outcome
        assert outcome is not None
        values = [trial.values[key] for key in spec.keys]
        value = "" if outcome.value is None else outcome.value
        figures = [value, outcome.epoch or "", outcome.epochs, round(outcome.seconds, 3)]
        rows.append([place, trial.name, outcome.state, *values, *figures, outcome.reason])
    return csv_table(rows)


def _best_config(best: Trial, folder: Path) -> str:
    """The best trial's config, in the form that ``train.py -c`` reads from the sweep's folder."""
    try:
        config = json.loads(read_text(best.run.config))
    except (OSError, ValueError) as error:
        raise UserError(f"{best.run.config} is damaged: {error}") from error
    return as_json(config, folder)


def _lines(result: Result, seconds: float) -> list[str]:
    """What is printed."""
    path, spec, ranked, setting = result.folder, result.spec, result.ranked, result.setting
    header, rows = result_rows(ranked[:MOST_PRINTED], spec)
    if all(row[-1] == "complete" for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    lines = ["", *table([header, *rows], right=range(1, len(header) - (header[-1] == "state")))]
    if len(ranked) > MOST_PRINTED:
        lines.append(f"... and {len(ranked) - MOST_PRINTED} more in sweep.csv")
    if groups := repeated(ranked, spec):
        header, rows = repeated_rows(groups[:MOST_PRINTED], spec)
        lines += ["", *table([header, *rows], right=range(len(header)))]
    states = [trial.state for trial in ranked]
    failed = [trial for trial in ranked if trial.state == "failed"]
    parts = [f"{states.count(state)} {state}" for state in ("pruned", "failed") if state in states]
    lines += ["", f"done: {', '.join([count(len(ranked), 'trial'), *parts])}, in {duration(seconds, fine=True)}"]
    lines += [f"  {trial.name} failed: {trial.outcome.headline}" for trial in failed[:5] if trial.outcome]
    if result.best is not None:
        name = result.best.name
        what = f"mean {number(setting.mean)} over {len(setting.trials)}, as {name}" if setting else name
        lines.append(f"  best      {what}; to train it again: {train_command(path)}")
    lines.append(f"  report    {display_path(path / 'report.html')}, report.md, sweep.csv")
    lines.append(f"  compare   python {shell_path(PROJECT / 'test.py')} --compare {shell_path(path)}")
    lines.append(f"  view      tensorboard --logdir {shell_path(path)}")
    return lines


def _first_reason(trials: Sequence[Trial]) -> str:
    reasons = [f"{trial.name}: {trial.outcome.reason}" for trial in trials if trial.outcome and trial.outcome.reason]
    return reasons[0] if reasons else "all were pruned"


def _blocks(result: Result, study: "Study | None", pictures: dict[str, bytes]) -> Iterator[Block]:
    """The report. pictures: gets the figures, by file name."""
    from extras.drawing import png

    spec, ranked, best, setting = result.spec, result.ranked, result.best, result.setting
    yield Heading(f"Sweep of {spec.name}", level=1)
    states = [trial.state for trial in ranked]
    counts = ", ".join(f"{states.count(each)} {each}" for each in ("complete", "pruned", "failed") if each in states)
    how = f"chosen by {spec.sampler} (seed {spec.seed})" if spec.sampler else "a grid"
    pruned = f", pruned by {spec.pruner}" if spec.pruner else ""
    yield Paragraph(f"{len(ranked)} trials ({counts}), {how}{pruned}, compared by {spec.monitor}.")
    if spec.note:
        yield Paragraph(f"Note: {spec.note}")
    yield Table(["key", "space"], [[space.key, space.text] for space in spec.spaces], texts=(0, 1))
    if best is not None:
        yield Heading("Best")
        values = ", ".join(f"{key} = {value}" for key, value in best.values.items())
        if setting:
            over = f"The best mean over {len(setting.trials)} seeds or folds, {setting.mean:.6g}, is that of"
            yield Paragraph(f"{over} {best.name} and those like it; {values}.")
        else:
            yield Paragraph(f"{best.name}: {spec.value_name} {best.value:.6g}; {values}.")
        yield Command(train_command(result.folder))
    yield from _over_seeds(repeated(ranked, spec), spec)
    for title, about, figure in _figures(spec, ranked, study):
        name = f"{title.lower().replace(' ', '_')}.png"
        pictures[name] = png(figure)
        yield from (Heading(title), Paragraph(about), Picture(about, name))
    yield Heading("Trials")
    header, rows = result_rows(ranked, spec)
    yield Table(header, rows, texts=(0, len(header) - 1))
    if "failed" in states:
        yield Heading("Failed")
        reasons = [[each.name, each.outcome.headline] for each in ranked if each.outcome and each.state == "failed"]
        yield Table(["trial", "reason"], reasons, texts=(0, 1))


def _over_seeds(groups: Sequence[Repeated], spec: Spec) -> Iterator[Block]:
    if not groups:
        return
    incomplete = not spec.sampler and len({len(group.trials) for group in groups}) > 1
    last = " Settings without some of their trials, which might have been worse, come last." if incomplete else ""
    yield Heading("Over seeds and folds")
    yield Paragraph(
        "The standard deviation is that of the sample (n - 1); the interval is the 95% confidence interval of "
        f"the mean, from Student's t distribution.{last}"
    )
    header, rows = repeated_rows(groups, spec)
    yield Table(header, rows, texts=())


def _figures(spec: Spec, ranked: Sequence[Trial], study: "Study | None") -> Iterator[tuple[str, str, "Figure"]]:
    """Title, text and figure."""
    from extras.sweep import figures

    shown = [trial for trial in ranked if math.isfinite(trial.value)]
    if not shown:
        return
    about = "The best value of each trial, and the best so far."
    yield "History", about, figures.history(spec, sorted(ranked, key=lambda trial: trial.number))
    if len(spec.spaces) > 1:
        complete = sum(trial.state == "complete" for trial in ranked)
        if study is not None and complete >= ENOUGH and (shares := importances(study)):
            about = f"How much each key determines whether a trial is good (PED-ANOVA over {complete} complete trials)."
            yield "Importances", about, figures.importances(shares, spec)
        about = "A line for each trial through its values to its rank; the best is the thick one."
        yield "Parallel coordinates", about, figures.parallel_coordinates(spec, shown)
    yield "Slices", "The result over each key separately; later trials are darker.", figures.slices(spec, shown)
