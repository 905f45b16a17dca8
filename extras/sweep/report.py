"""report.md and report.html of a sweep: the same text, tables and figures."""

import base64
import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from extras.sweep.display import first_line
from extras.sweep.ranking import Repeated, repeated_rows, result_rows, train_command
from extras.sweep.search import INSTALL
from extras.sweep.sweep_folder import Spec, Trial
from utils.run_folder import replace_bytes, replace_text
from utils.text import markdown_table

ENOUGH = 8
"""Trials below which importances mean nothing."""
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:62em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0;display:block;overflow-x:auto}"
    "th,td{padding:.25em .8em;border-bottom:1px solid #ddd;text-align:left}"
    ".n{text-align:right;font-variant-numeric:tabular-nums}"
    "img{max-width:100%}pre{background:#f5f5f5;padding:.6em;overflow-x:auto}"
)


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Command:
    text: str


@dataclass(frozen=True)
class Table:
    header: list[str]
    rows: list[list[str]]
    right: list[int]
    """Columns of numbers."""


@dataclass(frozen=True)
class Picture:
    name: str
    about: str
    png: bytes


Block = Heading | Paragraph | Command | Table | Picture


def write_report(
    folder: Path,
    spec: Spec,
    trials: Sequence[Trial],
    ranked: Sequence[Trial],
    best: Trial | None,
    groups: Sequence[Repeated],
) -> None:
    """Write both files and the figures. Raises TrainingError if one cannot be written."""
    blocks = list(_blocks(folder, spec, trials, ranked, best, groups))
    for block in blocks:
        if isinstance(block, Picture):
            replace_bytes(folder / block.name, block.png)
    title = f"Sweep of {spec.name}"
    replace_text(folder / "report.md", f"# {title}\n\n" + "\n\n".join(map(_markdown, blocks)) + "\n")
    body = "\n".join(map(_html, blocks))
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    replace_text(folder / "report.html", f"<!doctype html>\n{head}\n<h1>{html.escape(title)}</h1>\n{body}\n")


def _blocks(
    folder: Path,
    spec: Spec,
    trials: Sequence[Trial],
    ranked: Sequence[Trial],
    best: Trial | None,
    groups: Sequence[Repeated],
) -> Iterator[Block]:
    states = [trial.outcome.state for trial in trials if trial.outcome]
    counts = ", ".join(
        f"{states.count(state)} {state}" for state in ("complete", "pruned", "failed") if state in states
    )
    how = f"chosen by {spec.sampler} (seed {spec.seed})" if spec.sampler else "a grid"
    pruned = f", pruned by {spec.pruner}" if spec.pruner else ""
    yield Paragraph(f"{len(trials)} trials ({counts}), {how}{pruned}, compared by {spec.monitor}.")
    yield Table(["key", "space"], [[space.key, space.text] for space in spec.spaces], [])
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
            "The standard deviation is that of a sample (n - 1); the interval is the 95 % confidence interval of the "
            "mean by Student's t distribution."
        )
        header, rows = repeated_rows(groups, spec)
        yield Table(header, rows, list(range(len(header))))
    yield from _pictures(spec, trials, ranked)
    yield Heading("Trials")
    header, rows = result_rows(ranked, spec)
    yield Table(header, rows, list(range(1, len(header) - 1)))
    failed = [trial for trial in trials if trial.outcome and trial.outcome.state == "failed"]
    if failed:
        yield Heading("Failed")
        reasons = [[trial.name, first_line(trial.outcome.reason)] for trial in failed if trial.outcome]
        yield Table(["trial", "reason"], reasons, [])


def _pictures(spec: Spec, trials: Sequence[Trial], ranked: Sequence[Trial]) -> Iterator[Block]:
    from extras.drawing import png
    from extras.sweep import figures

    shown = [trial for trial in ranked if trial.outcome and math.isfinite(_number(trial.outcome.value))]
    if not shown:
        return
    yield Heading("History")
    yield Picture(
        "history.png", "The best value of each trial, and the best so far.", png(figures.history(spec, trials))
    )
    yield Picture("epochs.png", "The monitored value by epoch.", png(figures.epochs(spec, shown)))
    complete = [trial for trial in shown if trial.outcome and trial.outcome.state == "complete"]
    if len(spec.spaces) > 1:
        yield Heading("Importances")
        yield from _importances(spec, complete)
        yield Heading("Parallel coordinates")
        about = "A line for each trial through its values to its result; the best is the thick one."
        yield Picture("parallel_coordinates.png", about, png(figures.parallel_coordinates(spec, shown)))
    yield Heading("Slices")
    yield Picture(
        "slices.png",
        "The result against each key by itself; later trials are darker.",
        png(figures.slices(spec, shown)),
    )


def _importances(spec: Spec, complete: Sequence[Trial]) -> Iterator[Block]:
    from extras.drawing import png
    from extras.sweep import figures

    if len(complete) < ENOUGH:
        yield Paragraph(f"{ENOUGH} complete trials are needed; there are {len(complete)}.")
        return
    try:
        import optuna
    except ModuleNotFoundError:
        yield Paragraph(f"These are computed by Optuna, which is not installed: {INSTALL}")
        return
    from extras.sweep.search import direction, frozen

    study = optuna.create_study(direction=direction(spec))
    study.add_trials([frozen(spec, trial) for trial in complete])
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    if not sum(shares.values()) > 0:
        yield Paragraph("No key has an influence that these trials show.")
        return
    about = f"How much each key decides whether a trial is a good one (PED-ANOVA over {len(complete)} complete trials)."
    yield Picture("importances.png", about, png(figures.importances(shares, spec)))


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"## {block.text}"
    if isinstance(block, Command):
        return f"    {block.text}"
    if isinstance(block, Table):
        header, *rows = ([cell.replace("|", "\\|") for cell in row] for row in (block.header, *block.rows))
        return "\n".join(markdown_table(header, rows, right=block.right, padded=True))
    if isinstance(block, Picture):
        return f"{block.about}\n\n![{block.about}]({block.name})"
    return block.text


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h2>{html.escape(block.text)}</h2>"
    if isinstance(block, Command):
        return f"<pre>{html.escape(block.text)}</pre>"
    if isinstance(block, Picture):
        data = base64.b64encode(block.png).decode()
        text = html.escape(block.about)
        return f'<p>{text}</p>\n<img alt="{text}" src="data:image/png;base64,{data}">'
    if isinstance(block, Table):
        rows = [_row(block.header, "th", block.right), *(_row(row, "td", block.right) for row in block.rows)]
        return "<table>\n" + "\n".join(rows) + "\n</table>"
    return f"<p>{html.escape(block.text)}</p>"


def _row(cells: Sequence[str], tag: str, right: Sequence[int]) -> str:
    marked = (
        f"<{tag}{' class=n' if place in right else ''}>{html.escape(cell)}</{tag}>" for place, cell in enumerate(cells)
    )
    return f"<tr>{''.join(marked)}</tr>"
