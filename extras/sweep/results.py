"""The results of a sweep: the table, sorted by the monitored value, sweep.csv, best.json, report.md and report.html."""

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from extras.document import Block, Command, Heading, Paragraph, Picture, Table, as_html, as_markdown
from extras.spreadsheets import csv_table
from extras.sweep.ranking import Repeated, best_setting, repeated, repeated_rows, result_rows, train_command
from extras.sweep.search import direction, frozen
from extras.sweep.sweep_folder import Spec, SweepFolder, Trial, best_trial, rank
from utils.config import as_json
from utils.errors import TrainingError, UserError
from utils.extras import need_package
from utils.files import read_text
from utils.paths import PROJECT, display_path, shell_path
from utils.run_folder import replace_files
from utils.streams import say
from utils.text import count, duration, number, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PRINTED = 20
ENOUGH = 8
"""Minimum number of trials for importances."""


@dataclass(frozen=True)
class Result:
    """The return value of ``sweep.main``."""

    folder: Path
    trials: list[Trial]
    best: Trial | None
    """The complete trial with the best value; of a grid over seeds or folds, the first of the setting with the best
    mean."""


def conclude(folder: SweepFolder, spec: Spec, trials: Sequence[Trial], *, quiet: bool, seconds: float) -> Result:
    """Write and print the results of the sweep. Raises TrainingError if no trial has any."""
    ranked = rank(trials, spec)
    setting = best_setting(trials, spec)
    best = setting.trials[0] if setting else best_trial(trials, spec)
    try:
        with folder.locked():
            files = {"sweep.csv": _csv(ranked, spec), **_Report(folder.path, spec, trials, ranked).files(best, setting)}
            if best is not None:
                files["best.json"] = _best_config(best, folder.path)
            replace_files(folder.path, files)
    except TrainingError as error:
        raise UserError(f"{error}. The trials are intact; continue the sweep to write its report") from error
    if not quiet:
        say(*_lines(folder.path, spec, ranked, best, setting, seconds))
    if best is None:
        raise TrainingError(f"no trial of {display_path(folder.path)} has a result; {_first_reason(trials)}")
    return Result(folder.path, list(trials), best)


def _csv(ranked: Sequence[Trial], spec: Spec) -> str:
    """All trials, with the values of their best epoch."""
    outcomes = [trial.outcome for trial in ranked if trial.outcome]
    records = [
        next((record for record in trial.run.epochs() if record.get("epoch") == outcome.epoch), {})
        for trial, outcome in zip(ranked, outcomes, strict=True)
    ]
    logged = dict.fromkeys(name for record in records for name in record if name not in ("epoch", "step", "seconds"))
    header = ["rank", "trial", "state", *spec.keys, f"best {spec.value_name}", "epoch", "epochs", "seconds"]
    rows: list[list[object]] = [[*header, *logged, "reason"]]
    for place, (trial, outcome, record) in enumerate(zip(ranked, outcomes, records, strict=True), start=1):
        cells: list[object] = [place, trial.name, outcome.state, *(trial.values[key] for key in spec.keys)]
        cells += ["" if outcome.value is None else outcome.value, outcome.epoch or "", outcome.epochs]
        cells += [round(outcome.seconds, 3), *(record.get(name, "") for name in logged), outcome.reason]
        rows.append(cells)
    return csv_table(rows)


def _best_config(best: Trial, folder: Path) -> str:
    """The best trial's config, in the form that ``train.py -c`` reads from the sweep's folder."""
    try:
        config = json.loads(read_text(best.run.config))
    except (OSError, ValueError) as error:
        raise UserError(f"{best.run.config} is damaged: {error}") from error
    return as_json(config, folder)


def _lines(
    path: Path, spec: Spec, ranked: Sequence[Trial], best: Trial | None, setting: Repeated | None, seconds: float
) -> list[str]:
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
    if best is not None:
        what = f"mean {number(setting.mean)} over {len(setting.trials)}, as {best.name}" if setting else best.name
        lines.append(f"  best      {what}; to train it again: {train_command(path)}")
    lines.append(f"  report    {display_path(path / 'report.html')}, report.md, sweep.csv")
    lines.append(f"  compare   python {shell_path(PROJECT / 'test.py')} --compare {shell_path(path)}")
    lines.append(f"  view      tensorboard --logdir {shell_path(path)}")
    return lines


def _first_reason(trials: Sequence[Trial]) -> str:
    reasons = [f"{trial.name}: {trial.outcome.reason}" for trial in trials if trial.outcome and trial.outcome.reason]
    return reasons[0] if reasons else "all were pruned"


class _Report:
    """report.md and report.html, with the same text, tables and figures."""

    def __init__(self, folder: Path, spec: Spec, trials: Sequence[Trial], ranked: Sequence[Trial]) -> None:
        self.folder, self.spec, self.trials, self.ranked = folder, spec, trials, ranked
        self.pictures: dict[str, bytes] = {}

    def files(self, best: Trial | None, setting: Repeated | None) -> dict[str, str | bytes]:
        """The contents of both files and the figures, by name."""
        blocks = list(self._blocks(best, setting))
        return {**self.pictures, "report.md": as_markdown(blocks), "report.html": as_html(blocks, self.pictures)}

    def _blocks(self, best: Trial | None, setting: Repeated | None) -> Iterator[Block]:
        spec, trials = self.spec, self.trials
        yield Heading(f"Sweep of {spec.name}", level=1)
        states = [trial.state for trial in trials]
        counts = ", ".join(
            f"{states.count(each)} {each}" for each in ("complete", "pruned", "failed") if each in states
        )
        how = f"chosen by {spec.sampler} (seed {spec.seed})" if spec.sampler else "a grid"
        pruned = f", pruned by {spec.pruner}" if spec.pruner else ""
        yield Paragraph(f"{len(trials)} trials ({counts}), {how}{pruned}, compared by {spec.monitor}.")
        if spec.note:
            yield Paragraph(f"Note: {spec.note}")
        yield Table(["key", "space"], [[space.key, space.text] for space in spec.spaces], texts=(0, 1))
        if best is not None:
            yield Heading("Best")
            values = ", ".join(f"{key} = {value}" for key, value in best.values.items())
            epoch = best.outcome.epoch if best.outcome else 0
            if setting:
                over = f"The best mean, {setting.mean:.6g} over {len(setting.trials)} seeds or folds, is that of"
                yield Paragraph(f"{over} {best.name} and those like it; {values}.")
            else:
                yield Paragraph(f"{best.name}: {spec.value_name} {best.value:.6g} in epoch {epoch}; {values}.")
            yield Command(train_command(self.folder))
        if groups := repeated(trials, spec):
            yield Heading("Over seeds and folds")
            yield Paragraph(
                "The standard deviation is that of the sample (n - 1); the interval is the 95% confidence interval of "
                "the mean, from Student's t distribution."
            )
            header, rows = repeated_rows(groups, spec)
            yield Table(header, rows, texts=())
        yield from self._figures()
        yield Heading("Trials")
        header, rows = result_rows(self.ranked, spec)
        yield Table(header, rows, texts=(0, len(header) - 1))
        failed = [each for each in trials if each.state == "failed"]
        if failed:
            yield Heading("Failed")
            reasons = [[each.name, each.outcome.headline] for each in failed if each.outcome]
            yield Table(["trial", "reason"], reasons, texts=(0, 1))

    def _figures(self) -> Iterator[Block]:
        from extras.sweep import figures

        spec, shown = self.spec, [trial for trial in self.ranked if math.isfinite(trial.value)]
        if not shown:
            return
        yield Heading("History")
        about = "The best value of each trial, and the best so far."
        yield from self._picture("history.png", about, figures.history(spec, self.trials))
        if any(trial.outcome and trial.outcome.epochs > 1 for trial in shown):
            yield from self._picture("epochs.png", "The monitored value by epoch.", figures.epochs(spec, shown))
        if len(spec.spaces) > 1:
            yield Heading("Importances")
            yield from self._importances([trial for trial in shown if trial.state == "complete"])
            yield Heading("Parallel coordinates")
            about = "A line for each trial through its values to its result; the best is the thick one."
            yield from self._picture("parallel_coordinates.png", about, figures.parallel_coordinates(spec, shown))
        yield Heading("Slices")
        about = "The result over each key separately; later trials are darker."
        yield from self._picture("slices.png", about, figures.slices(spec, shown))

    def _importances(self, complete: Sequence[Trial]) -> Iterator[Block]:
        from extras.sweep import figures

        if len(complete) < ENOUGH:
            yield Paragraph(f"{ENOUGH} complete trials are needed; there are {len(complete)}.")
            return
        try:
            need_package("optuna", "Importances need Optuna, which is not installed")
        except UserError as error:
            yield Paragraph(str(error))
            return
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(direction=direction(self.spec))
        study.add_trials([frozen(self.spec, trial) for trial in complete])
        with warnings.catch_warnings(
            action="ignore", category=optuna.exceptions.ExperimentalWarning
        ):  # before Optuna 5
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
        if not sum(shares.values()) > 0:
            yield Paragraph("These trials do not show an influence of any key.")
            return
        about = (
            f"How much each key determines whether a trial is good (PED-ANOVA over {len(complete)} complete trials)."
        )
        yield from self._picture("importances.png", about, figures.importances(shares, self.spec))

    def _picture(self, name: str, about: str, figure: "Figure") -> Iterator[Block]:
        from extras.drawing import png

        self.pictures[name] = png(figure)
        yield Paragraph(about)
        yield Picture(about, name)
