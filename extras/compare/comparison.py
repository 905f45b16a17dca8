"""``python test.py --compare RUN [RUN ...]``: ranks runs, prints a table, and writes it as CSV next to the curves."""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from extras.compare.curves import curves
from extras.compare.runs import (
    REPEATS,
    Run,
    RunGroup,
    brief,
    find_runs,
    group_runs,
    shown_value,
    test_values,
    values_at_best,
)
from extras.drawing import png
from extras.letters import shortened
from extras.spreadsheets import csv_table
from utils.errors import CheckpointError, TrainingError, UserError
from utils.paths import display_path
from utils.run_folder import replace_files
from utils.streams import say
from utils.text import count, duration, number, number_or_dash, table, width

TABLE = "comparison.csv"
MEANS = "comparison_means.csv"
PICTURE = "comparison.png"


class Column(NamedTuple):
    """A value of each run, or of each repeated experiment."""

    name: str
    values: Sequence[object]
    """As in the CSV file."""
    shown: Sequence[str] = ()
    """As printed; empty: only in the CSV file."""
    header: str = ""
    """The name in print, if it is another."""


def compare(paths: Sequence[Path], out: Path | None = None) -> Path:
    """Print the table, and write it and the curves to a folder. Returns the table's file.

    out: the folder; None: the one that contains all of these runs. Raises CheckpointError without a run.
    """
    runs, others = find_runs(paths)
    others = [path for path in others if path.name not in (TABLE, MEANS, PICTURE)]  # from an earlier comparison
    if not runs:
        names = ", ".join(map(str, others or paths))
        raise CheckpointError(f"no run to compare: no config.json in {names}")
    groups = group_runs(runs)
    folder = out or _folder_of(runs)
    files: dict[str, str | bytes] = {TABLE: _csv([_columns(group) for group in groups]), PICTURE: png(curves(groups))}
    if any(group.repeats for group in groups):
        files[MEANS] = _csv([_means(group) for group in groups])
    _write(folder, files)
    notes = [f"damaged: {display_path(run.path)}: {run.damage}" for run in runs if run.damage]
    for run in runs:
        state, _, reason = run.state.partition(": ")
        notes += [f"{state}: {display_path(run.path)}: {reason}"] if reason else []
    notes += [f"test values left out: {display_path(run.path)}: {run.outdated}" for run in runs if run.outdated]
    notes += [f"not a run: {display_path(path)}" for path in others]
    say("\n\n".join("\n".join(lines) for lines in [*map(_printed, groups), notes] if lines))
    say(f"\nwritten: {', '.join(display_path(folder / name) for name in files)}")
    return folder / TABLE


def _folder_of(runs: Sequence[Run]) -> Path:
    try:
        return Path(os.path.commonpath([run.path.absolute().parent for run in runs]))
    except ValueError as error:
        raise UserError("the runs are on different drives; choose a folder for the comparison with --out") from error


def _write(folder: Path, files: Mapping[str, str | bytes]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if MEANS not in files:
            (folder / MEANS).unlink(missing_ok=True)  # from an earlier comparison
        replace_files(folder, files)
    except (OSError, TrainingError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{folder} cannot be written: {reason}; choose another folder with --out") from error


def _columns(group: RunGroup) -> list[Column]:
    """Every column of the runs, the most important first."""
    runs = group.runs
    name = group.monitor.split()[1]
    epochs = [f"{run.epochs}/{run.config.get('trainer.epochs', '?')}" for run in runs]
    keys = [_key_column(key, group) for key in group.keys]
    tests = [_numbers(test, values) for test, values in test_values(runs).items()]
    tests.sort(key=lambda column: column.name != f"test {name.removeprefix('val_')}")
    others = [_numbers(name, values) for name, values in values_at_best(runs, group.monitor).items()]
    important = [
        Column("run", [run.name for run in runs], [shortened(group.short_name(run), 34) for run in runs]),
        _numbers("best", [run.best(group.monitor) for run in runs]),
        _numbers("last", [run.records[-1].get(name) if run.records else None for run in runs]),
        Column("state", [run.state for run in runs], [run.state.partition(": ")[0] for run in runs]),
        Column("epochs", [run.epochs for run in runs], epochs),
        *keys[:1],
        *tests[:1],
        _texts("note", [run.note for run in runs], 24),
        *tests[1:],
        Column("seconds", [round(run.seconds, 3) for run in runs], [duration(run.seconds) for run in runs], "time"),
        _texts("commit", [run.commit for run in runs], 8),
    ]
    rest = [*keys[1:3], *others, *keys[3:]]
    only_in_file = [
        Column("best_epoch", [run.at_best(group.monitor).get("epoch") for run in runs]),
        Column("when", [str(run.environment.get("time", "")) for run in runs]),
        Column("folder", [display_path(run.path) for run in runs]),
        Column("data", [_data(group)] * len(runs)),
        Column("loss", [group.task.loss] * len(runs)),
        Column("monitor", [group.monitor] * len(runs)),
    ]
    return [*important, *rest, *only_in_file]


def _means(group: RunGroup) -> list[Column]:
    """The columns of the repeated experiments, the most important first."""
    keys = [key for key in group.keys if key not in REPEATS]
    experiments = [", ".join(group.settings(each.runs[0], keys)) or "all" for each in group.repeats]
    counts = [len(each.runs) for each in group.repeats]
    found = [each.means(group.monitor) for each in group.repeats]
    columns = [
        Column("experiment", experiments, [shortened(each, 34) for each in experiments]),
        Column("runs", counts, list(map(str, counts))),
    ]
    names = dict.fromkeys(name for means in found for name in means)
    for name in names:
        pairs = [means.get(name) for means in found]
        shown = ["-" if pair is None else f"{number(pair[0])} ± {pair[1]:.2g}" for pair in pairs]
        columns.append(Column(f"mean of {name}", [pair and pair[0] for pair in pairs], shown, name))
        columns.append(Column(f"deviation of {name}", [pair and pair[1] for pair in pairs]))
    return [
        *columns,
        Column("over", [", ".join(each.over) for each in group.repeats]),
        Column("members", [" ".join(run.name for run in each.runs) for each in group.repeats]),
        Column("data", [_data(group)] * len(counts)),
        Column("loss", [group.task.loss] * len(counts)),
    ]


def _numbers(name: str, values: Sequence[float | None]) -> Column:
    return Column(name, values, list(map(number_or_dash, values)))


def _texts(name: str, values: Sequence[str], longest: int) -> Column:
    return Column(name, values, [shortened(value, longest) or "-" for value in values])


def _key_column(key: str, group: RunGroup) -> Column:
    values = [run.config.get(key) for run in group.runs]
    shown = [shortened(brief(value), 16) for value in values]
    return Column(key, list(map(shown_value, values)), shown, group.header(key))


def _data(group: RunGroup) -> str:
    return f"{group.task.data} ({group.which})" if group.which else group.task.data


def _printed(group: RunGroup) -> list[str]:
    commit = f", commit {group.commit}" if group.commit else ""
    lines = [f"{group.title}: {count(len(group.runs), 'run')}, by {group.monitor}{commit}"]
    lines += _wrapped(group.which) + _printed_table(_columns(group), TABLE, usual=("-", "finished", group.commit))
    if group.repeats:
        over = " and ".join(dict.fromkeys(f"{name}s" for repeats in group.repeats for name in repeats.over))
        lines += [f"  mean ± standard deviation over {over}", *_printed_table(_means(group), MEANS)]
    return lines


def _printed_table(columns: Iterable[Column], file: str, usual: Sequence[str] = ()) -> list[str]:
    """The columns that fit, from the first on, and the names of the others. usual: texts not worth a column of them."""
    taken = 0
    fitting, others = list[list[str]](), list[str]()
    for column in columns:
        if not column.shown or (set(column.shown) <= {*usual} and len(set(column.shown)) == 1):
            continue
        cells = [column.header or column.name, *column.shown]
        if taken + 2 + max(map(width, cells)) <= _width():
            taken += 2 + max(map(width, cells))
            fitting.append(cells)
        else:
            others.append(cells[0])
    texts = ("run", "state", "note", "experiment")
    right = [index for index, cells in enumerate(fitting) if cells[0] not in texts]
    lines = [f"  {line}" for line in table(zip(*fitting, strict=True), right=right)]
    return lines + (_wrapped(f"also in {file}: {', '.join(others)}") if others else [])


def _width() -> int:
    return max(80, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 80


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _width(), initial_indent="  ", subsequent_indent="    ")


def _csv(tables: Sequence[Sequence[Column]]) -> str:
    """Tables below each other, with the columns of all."""
    names = list(dict.fromkeys(column.name for columns in tables for column in columns))
    rows: list[list[object]] = [list(names)]
    for columns in tables:
        values = {column.name: column.values for column in columns}
        rows += [
            [values[name][row] if name in values else "" for name in names] for row in range(len(columns[0].values))
        ]
    return csv_table(rows)
