"""report.md and report.html of a sweep, with the same text, tables and figures."""

import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from extras.document import Block, Command, Heading, Paragraph, Picture, Table, as_html, as_markdown
from extras.sweep.display import first_line
from extras.sweep.ranking import Repeated, repeated_rows, result_rows, train_command
from extras.sweep.search import INSTALL
from extras.sweep.sweep_folder import Spec, Trial
from utils.run_folder import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENOUGH = 8
"""Minimum number of trials for importances."""


def write_report(
    folder: Path,
    spec: Spec,
    trials: Sequence[Trial],
    ranked: Sequence[Trial],
    best: Trial | None,
    groups: Sequence[Repeated],
) -> None:
    """Write both files and the figures. Raises TrainingError if one cannot be written."""
    pictures: dict[str, bytes] = {}
    blocks = list(_blocks(folder, spec, trials, ranked, best, groups, pictures))
    for name, content in pictures.items():
        replace_file(folder / name, content)
    replace_file(folder / "report.md", as_markdown(blocks))
    replace_file(folder / "report.html", as_html(blocks, pictures))


def _blocks(
    folder: Path,
    spec: Spec,
    trials: Sequence[Trial],
    ranked: Sequence[Trial],
    best: Trial | None,
    groups: Sequence[Repeated],
    pictures: dict[str, bytes],
) -> Iterator[Block]:
    """pictures: receives the content of each picture's file."""
    yield Heading(f"Sweep of {spec.name}", level=1)
    states = [trial.outcome.state for trial in trials if trial.outcome]
    counts = ", ".join(
        f"{states.count(state)} {state}" for state in ("complete", "pruned", "failed") if state in states
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
        assert best.outcome is not None
        yield Paragraph(
            f"{best.name}: {spec.value_name} {best.outcome.value:.6g} in epoch {best.outcome.epoch}; {values}."
        )
        yield Command(train_command(folder))
    if groups:
        yield Heading("Over seeds and folds")
        yield Paragraph(
            "The standard deviation is that of the sample (n - 1); the interval is the 95 % confidence interval of the "
            "mean, from Student's t distribution."
        )
        header, rows = repeated_rows(groups, spec)
        yield Table(header, rows, texts=())
    yield from _pictures(spec, trials, ranked, pictures)
    yield Heading("Trials")
    header, rows = result_rows(ranked, spec)
    yield Table(header, rows, texts=(0, len(header) - 1))
    failed = [trial for trial in trials if trial.outcome and trial.outcome.state == "failed"]
    if failed:
        yield Heading("Failed")
        reasons = [[trial.name, first_line(trial.outcome.reason)] for trial in failed if trial.outcome]
        yield Table(["trial", "reason"], reasons, texts=(0, 1))


def _pictures(
    spec: Spec, trials: Sequence[Trial], ranked: Sequence[Trial], pictures: dict[str, bytes]
) -> Iterator[Block]:
    from extras.sweep import figures

    shown = [trial for trial in ranked if trial.outcome and math.isfinite(_number(trial.outcome.value))]
    if not shown:
        return
    yield Heading("History")
    yield from _picture(
        pictures, "history.png", "The best value of each trial, and the best so far.", figures.history(spec, trials)
    )
    if any(trial.outcome and trial.outcome.epochs > 1 for trial in shown):
        yield from _picture(pictures, "epochs.png", "The monitored value by epoch.", figures.epochs(spec, shown))
    complete = [trial for trial in shown if trial.outcome and trial.outcome.state == "complete"]
    if len(spec.spaces) > 1:
        yield Heading("Importances")
        yield from _importances(spec, complete, pictures)
        yield Heading("Parallel coordinates")
        about = "A line for each trial through its values to its result; the best is the thick one."
        yield from _picture(pictures, "parallel_coordinates.png", about, figures.parallel_coordinates(spec, shown))
    yield Heading("Slices")
    yield from _picture(
        pictures,
        "slices.png",
        "The result over each key separately; later trials are darker.",
        figures.slices(spec, shown),
    )


def _importances(spec: Spec, complete: Sequence[Trial], pictures: dict[str, bytes]) -> Iterator[Block]:
    from extras.sweep import figures

    if len(complete) < ENOUGH:
        yield Paragraph(f"{ENOUGH} complete trials are needed; there are {len(complete)}.")
        return
    try:
        import optuna
    except ModuleNotFoundError:
        yield Paragraph(f"Importances need Optuna, which is not installed: {INSTALL}")
        return
    from extras.sweep.search import direction, frozen

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=direction(spec))
    study.add_trials([frozen(spec, trial) for trial in complete])
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):  # before Optuna 5
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    if not sum(shares.values()) > 0:
        yield Paragraph("These trials do not show an influence of any key.")
        return
    about = f"How much each key determines whether a trial is good (PED-ANOVA over {len(complete)} complete trials)."
    yield from _picture(pictures, "importances.png", about, figures.importances(shares, spec))


def _picture(pictures: dict[str, bytes], name: str, about: str, figure: "Figure") -> Iterator[Block]:
    from extras.drawing import png

    pictures[name] = png(figure)
    yield Paragraph(about)
    yield Picture(about, name)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
