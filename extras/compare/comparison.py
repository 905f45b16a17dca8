"""``python test.py --compare RUN [RUN ...]``: ranks runs, prints a table, and writes it as CSV next to the curves."""

import os
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extras.compare.curves import Curve, curves
from extras.compare.runs import (
    ARGUMENT,
    FOLD,
    HOW_FED,
    REPEATS,
    UNKNOWN,
    WHICH_DATA,
    Repeats,
    Run,
    Task,
    differing,
    direction,
    find_repeats,
    find_runs,
    held_out_metrics,
    metrics,
    shown_value,
)
from extras.drawing import png
from extras.letters import short_key, shortened
from extras.records import RATES, TRAIN, VALID, charts
from extras.spreadsheets import csv_table
from utils.errors import CheckpointError, TrainingError, UserError
from utils.paths import display_path
from utils.run_folder import replace_file, replace_files
from utils.streams import say
from utils.text import count, duration, number, number_or_dash, table

TABLE = "comparison.csv"
MEANS = "comparison_means.csv"
PICTURE = "comparison.png"
MOST_CURVES = 14
MOST_CHARTS = 40
TEXTS = ("run", "state", "note")
"""Columns that are not numeric."""


@dataclass
class RunGroup:
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
    def doubtful(self) -> list[str]:
        """Data loader arguments in which the runs differ, and which may mean different data."""
        names = [key.removeprefix(ARGUMENT) for key in self.keys if key.startswith(ARGUMENT)]
        return [name for name in names if name.partition(".")[0] not in HOW_FED | WHICH_DATA | {FOLD}]

    @property
    def commit(self) -> str:
        """The commit of all runs; empty if it is not the same."""
        commits = {run.commit for run in self.runs}
        return commits.pop() if len(commits) == 1 else ""

    def short_name(self, run: Run) -> str:
        """A run's name, without the experiment's if that is the same for all."""
        same = len({run.name.rpartition("/")[0] for run in self.runs}) == 1
        return run.name.rpartition("/")[2] if same else run.name


def compare(paths: Sequence[Path], out: Path | None = None) -> Path:
    """Print the table, and write it and the curves to a folder. Returns the table's file.

    out: the folder; None: the one that contains all of these runs. Raises CheckpointError without a run.
    """
    runs, others = find_runs(paths)
    others = [path for path in others if path.name not in (TABLE, MEANS, PICTURE)]  # from an earlier comparison
    if not runs:
        names = ", ".join(map(str, others or paths))
        raise CheckpointError(f"no run to compare: no config.json in {names}")
    groups = _groups(runs)
    folder = out or Path(os.path.commonpath([run.path.absolute().parent for run in runs]))
    files = {TABLE: _csv(groups).encode()}
    if any(group.repeats for group in groups):
        files[MEANS] = _means_csv(groups).encode()
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if MEANS not in files:
            (folder / MEANS).unlink(missing_ok=True)  # from an earlier comparison
        replace_files(folder, files)
    notes = [f"damaged: {display_path(run.path)}: {run.damage}" for run in runs if run.damage]
    notes += [f"test values left out: {display_path(run.path)}: {run.outdated}" for run in runs if run.outdated]
    notes += [f"not a run: {display_path(path)}" for path in others]
    say("\n\n".join("\n".join(lines) for lines in [*map(_table, groups), notes] if lines))
    with _writing(folder):
        replace_file(folder / PICTURE, png(curves(list(_charts(groups)))))
    say(f"\nwritten: {', '.join(display_path(folder / name) for name in [*files, PICTURE])}")
    return folder / TABLE


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Raise UserError if a file cannot be written inside the block."""
    try:
        yield
    except (OSError, TrainingError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{folder} cannot be written: {reason}; choose another folder with --out") from error


def _groups(runs: Sequence[Run]) -> list[RunGroup]:
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
    value = 0.0 if best is None else best[0] if monitor.startswith("min") else -best[0]
    return best is None, value, run.name


def _table(group: RunGroup) -> list[str]:
    """Lines as wide as the terminal, or 80 columns. Columns that do not fit are only in the CSV file."""
    width = max(80, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 80
    kept, left_out = _fitting(_columns(group), width)
    commit = f", commit {group.commit}" if group.commit else ""
    lines = [f"{group.title}: {count(len(group.runs), 'run')}, by {group.monitor}{commit}"]
    lines += _wrapped(group.which, width)
    numbers = [index for index, column in enumerate(kept) if column[0] not in TEXTS]
    lines += [f"  {line}" for line in table(zip(*kept, strict=True), right=numbers)]
    if group.doubtful:
        lines += _wrapped(f"ranked as the same data although these differ: {', '.join(group.doubtful)}", width)
    if left_out:
        lines += _wrapped(f"also in {TABLE}: {', '.join(left_out)}", width)
    return [*lines, *_means_table(group, width)]


def _fitting(columns: Iterable[list[str]], width: int) -> tuple[list[list[str]], list[str]]:
    """The columns that fit, from the first on, and the headers of the others."""
    taken = 2
    kept = list[list[str]]()
    left_out = list[str]()
    for column in columns:
        needed = max(map(len, column)) + (2 if kept else 0)
        if taken + needed <= width:
            taken += needed
            kept.append(column)
        else:
            left_out.append(column[0])
    return kept, left_out


def _means_table(group: RunGroup, width: int) -> list[str]:
    """A line for each repeated experiment."""
    if not group.repeats:
        return []
    over = " and ".join(dict.fromkeys(f"{name}s" for repeats in group.repeats for name in repeats.over))
    values = [repeats.values() for repeats in group.repeats]
    names = dict.fromkeys(name for each in values for name in each)
    shown = {f"{direction(name, group.runs)} {name}" for name in held_out_metrics(group.runs)}
    tested = [name for name in names if name.startswith("test ")]
    first = [group.monitor, *tested, *(name for name in names if name in shown)]
    columns = [["experiment", *(shortened(_experiment(repeats, group), 34) for repeats in group.repeats)]]
    columns.append(["runs", *(str(len(repeats.runs)) for repeats in group.repeats)])
    for name in dict.fromkeys(name for name in first if name in names):
        pairs = (each.get(name) for each in values)
        columns.append([name, *("-" if pair is None else f"{number(pair[0])} ± {pair[1]:.2g}" for pair in pairs)])
    kept, left_out = _fitting(columns, width)
    lines = [f"  mean ± standard deviation over {over}"]
    lines += [f"  {line}" for line in table(zip(*kept, strict=True), right=range(1, len(kept)))]
    if dropped := sum(repeats.left_out for repeats in group.repeats):
        lines += _wrapped(f"left out: {count(dropped, 'run')}, unfinished or repeated later", width)
    return lines + (_wrapped(f"also in {MEANS}: {', '.join(left_out)}", width) if left_out else [])


def _experiment(repeats: Repeats, group: RunGroup) -> str:
    """What distinguishes these runs from others in the group."""
    keys = [key for key in group.keys if key not in REPEATS]
    return ", ".join(f"{_header(key, group)}={_brief(repeats.runs[0].config.get(key))}" for key in keys) or "all"


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="    ")


def _columns(group: RunGroup) -> Iterator[list[str]]:
    """Each column with its header, the most important first."""
    runs = group.runs
    keys = group.keys
    yield ["run", *(shortened(group.short_name(run), 34) for run in runs)]
    name = group.monitor.split()[1]
    best = [run.best(group.monitor) for run in runs]
    yield ["best", *(number_or_dash(pair[0] if pair else None) for pair in best)]
    lasts = [run.records[-1].get(name) if run.records else None for run in runs]
    yield ["last", *map(number_or_dash, lasts)]
    states = [run.state() for run in runs]
    if set(states) != {"finished"}:
        yield ["state", *(shortened(state, 32) for state in states)]
    yield ["epochs", *(f"{run.epochs}/{run.config.get('trainer.epochs', '?')}" for run in runs)]
    for key in keys[:1]:
        yield _key_column(key, group)
    tested = list(dict.fromkeys(name for run in runs for name in run.test))
    tested.sort(key=lambda value: value != name.removeprefix("val_"))
    for value in tested[:1]:
        yield _test_column(value, runs)
    if any(run.note for run in runs):
        yield ["note", *(shortened(run.note, 24) or "-" for run in runs)]
    for value in tested[1:]:
        yield _test_column(value, runs)
    yield ["time", *(duration(run.seconds) for run in runs)]
    if not group.commit and any(run.commit for run in runs):
        yield ["commit", *(run.commit or "-" for run in runs)]
    for key in keys[1:3]:
        yield _key_column(key, group)
    if any(run.when.replace("-", "")[:8] != run.path.resolve().name[:8] for run in runs):
        yield ["when", *(run.when[:16] or "-" for run in runs)]
    for metric in held_out_metrics(runs):
        if metric != name:
            monitor = f"{direction(metric, runs)} {metric}"
            bests = [run.best(monitor) for run in runs]
            yield [monitor, *(number_or_dash(pair[0] if pair else None) for pair in bests)]
    for key in keys[3:]:
        yield _key_column(key, group)


def _test_column(name: str, runs: Sequence[Run]) -> list[str]:
    return [f"test {name}", *(number_or_dash(run.test.get(name)) for run in runs)]


def _key_column(key: str, group: RunGroup) -> list[str]:
    return [_header(key, group), *(shortened(_brief(run.config.get(key)), 16) for run in group.runs)]


def _brief(value: Any) -> str:
    """A config value, numbers to four digits; the CSV file has all of them."""
    return f"{value:.4g}" if isinstance(value, float) else shown_value(value) or "-"


def _header(key: str, group: RunGroup) -> str:
    return short_key(key, group.keys, taken=("type", "epochs"))  # "epochs" is the number that a run has done


def _csv(groups: Sequence[RunGroup]) -> str:
    """All runs and columns. A key in which runs of one task differ is a column for all tasks."""
    keys = list(dict.fromkeys(key for group in groups for key in group.keys))
    runs = [run for group in groups for run in group.runs]
    logged = dict.fromkeys(name for run in runs for record in run.records for name in record)
    logged = {name: None for name in logged if name not in ("epoch", "seconds")}
    bests = metrics(runs)
    tested = list(dict.fromkeys(name for run in runs for name in run.test))
    header = ["run", "folder", "when", "note", "data", "loss", "state", "monitor", "best", "best_epoch", "epochs"]
    header += ["seconds", "commit", *(f"test_{name}" for name in tested), *(f"best_{name}" for name in bests)]
    rows: list[list[object]] = [[*header, *(f"last_{name}" for name in logged), *keys]]
    for group in groups:
        for run in group.runs:
            best = run.best(group.monitor) or ("", "")
            last = run.records[-1] if run.records else {}
            cells: list[object] = [
                run.name,
                display_path(run.path),
                run.when,
                run.note,
                _data(group),
                run.task.loss,
                run.state(),
            ]
            cells += [group.monitor, *best, run.epochs, round(run.seconds, 3), run.commit]
            cells += [run.test.get(name, "") for name in tested]
            cells += [(run.best(f"{direction(name, group.runs)} {name}") or [""])[0] for name in bests]
            cells += [last.get(name, "") for name in logged]
            rows.append([*cells, *(shown_value(run.config.get(key)) for key in keys)])
    return csv_table(rows)


def _means_csv(groups: Sequence[RunGroup]) -> str:
    """A line for each repeated experiment."""
    found = [(group, repeats, repeats.values()) for group in groups for repeats in group.repeats]
    names = list(dict.fromkeys(name for _, _, values in found for name in values))
    pairs = [f"{kind} of {name}" for name in names for kind in ("mean", "deviation")]
    rows: list[list[object]] = [["experiment", "data", "loss", "over", "runs", "left_out", "members", *pairs]]
    for group, repeats, values in found:
        about = [_experiment(repeats, group), _data(group), group.task.loss, ", ".join(repeats.over)]
        members = " ".join(run.name for run in repeats.runs)
        cells = [item for name in names for item in values.get(name, ("", ""))]
        rows.append([*about, len(repeats.runs), repeats.left_out, members, *cells])
    return csv_table(rows)


def _data(group: RunGroup) -> str:
    return f"{group.task.data} ({group.which})" if group.which else group.task.data


def _charts(groups: Sequence[RunGroup]) -> Iterator[tuple[str, list[Curve]]]:
    """A chart per metric, starting with the one used for ranking: validation, and training dashed."""
    for group in groups:
        best = group.runs[:MOST_CURVES]
        title = [group.title, *textwrap.wrap(group.which, 70)]
        if len(best) < len(group.runs):
            title.append(f"the best {MOST_CURVES} of {len(group.runs)} runs")
        found = charts([record for run in best for record in run.records])
        found.pop(RATES, None)
        ranked_by = group.monitor.split()[1]
        if any(TRAIN in keys and len(keys) > 1 for keys in found.values()):
            title.append("validation; training is dashed")
        for name, keys in sorted(found.items(), key=lambda item: ranked_by not in item[1].values())[:MOST_CHARTS]:
            both = TRAIN in keys and len(keys) > 1
            lines = [
                Curve(
                    _legend(run, group),
                    [r["epoch"] for r in run.records],
                    run.values(key),
                    place,
                    label == TRAIN and both,
                )
                for place, run in enumerate(best)
                for label, key in keys.items()
                if label in (TRAIN, VALID)
            ]
            yield "\n".join([name, *filter(None, title)]), lines
            title = []


def _legend(run: Run, group: RunGroup) -> str:
    keys = [f"{_header(key, group)}={_brief(run.config.get(key))}" for key in group.keys[:2]]
    return "\n".join(filter(None, [group.short_name(run), run.note, *keys]))
