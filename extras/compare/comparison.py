"""``python test.py --compare RUN [RUN ...]``: ranks runs, prints a table, and writes it as CSV beside the curves."""

import csv
import io
import os
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from extras.compare.curves import Curve, curves
from extras.compare.runs import ARGUMENT, HOW_FED, UNKNOWN, WHICH_DATA, Run, Task, differing, find_runs, shown_value
from extras.drawing import png
from utils.errors import CheckpointError, UserError
from utils.paths import display_path
from utils.run_folder import replace_bytes, replace_text
from utils.streams import say
from utils.text import count, duration, number, spreadsheet_safe, table

TABLE = "comparison.csv"
PICTURE = "comparison.png"
MOST_CURVES = 14


@dataclass
class RunGroup:
    """Runs of one task, which can be ranked, the best first."""

    task: Task
    which: str
    """The arguments that distinguish the data from others of the same kind, as in data_dir=photos; may be empty."""
    monitor: str
    """What they are ranked by: "min NAME" or "max NAME"."""
    runs: list[Run]
    keys: list[str]
    """The keys of the config in which they differ."""

    @property
    def title(self) -> str:
        return "unknown task" if UNKNOWN in self.task[:2] else ", ".join(self.task[:2])

    @property
    def doubtful(self) -> list[str]:
        """Arguments of the data loader in which the runs differ, and which may mean other data."""
        names = [key.removeprefix(ARGUMENT) for key in self.keys if key.startswith(ARGUMENT)]
        return [name for name in names if name.partition(".")[0] not in HOW_FED | WHICH_DATA]

    @property
    def commit(self) -> str:
        """The commit that all runs have in common; empty if they do not."""
        commits = {run.commit for run in self.runs}
        return commits.pop() if len(commits) == 1 else ""

    def short_name(self, run: Run) -> str:
        """A run's name, without the experiment's if all have the same."""
        same = len({run.name.rpartition("/")[0] for run in self.runs}) == 1
        return run.name.rpartition("/")[2] if same else run.name


def compare(paths: Sequence[Path], out: Path | None = None) -> Path:
    """Print the table, and write it and the curves into a folder. Returns the table's file.

    out: the folder; None: the one that holds all of these runs. Raises CheckpointError if none of the paths is a run.
    """
    runs, others = find_runs(paths)
    others = [path for path in others if path.name not in (TABLE, PICTURE)]  # those of an earlier comparison
    if not runs:
        names = ", ".join(map(str, others or paths))
        raise CheckpointError(f"no run to compare: no config.json in {names}")
    groups = _groups(runs)
    notes = [f"damaged: {display_path(run.path)}: {run.damage}" for run in runs if run.damage]
    notes += [f"not a run: {display_path(path)}" for path in others]
    say("\n\n".join("\n".join(lines) for lines in [*map(_table, groups), notes] if lines))
    folder = out or Path(os.path.commonpath([run.path.absolute().parent for run in runs]))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be created: {error.strerror}; choose another folder by --out") from error
    replace_text(folder / TABLE, _csv(groups))
    replace_bytes(folder / PICTURE, png(curves(dict(_charts(groups)))))
    say(f"\nwritten: {display_path(folder / TABLE)}, {display_path(folder / PICTURE)}")
    return folder / TABLE


def _groups(runs: Sequence[Run]) -> list[RunGroup]:
    """By task, the task with the most runs first, runs that cannot be read last."""
    groups = []
    tasks = Counter(run.task for run in runs)
    for task in sorted(tasks, key=lambda task: (UNKNOWN in task[:2], -tasks[task])):
        members = [run for run in runs if run.task == task]
        asked = Counter(run.monitor for run in members if run.monitor)
        held_out = any("val_loss" in record for run in members for record in run.records)
        monitor = asked.most_common(1)[0][0] if asked else "min val_loss" if held_out else "min loss"
        ranked = sorted(members, key=lambda run: _rank(run, monitor))
        groups.append(RunGroup(task, _which(task, tasks), monitor, ranked, differing(members)))
    return groups


def _which(task: Task, tasks: Iterable[Task]) -> str:
    others = [set(other.which) for other in tasks if other[:2] == task[:2]]
    distinct = [pair for pair in task.which if any(pair not in other for other in others)]
    return ", ".join(f"{name}={_short(value, 40)}" for name, value in distinct)


def _rank(run: Run, monitor: str) -> tuple[bool, float, str]:
    best = run.best(monitor)
    value = 0.0 if best is None else best[0] if monitor.startswith("min") else -best[0]
    return best is None, value, run.name


def _table(group: RunGroup) -> list[str]:
    """Lines of 80 columns, or of as many as the terminal has. Columns without room are in the CSV alone."""
    width = max(80, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 80
    taken = 0
    kept = list[list[str]]()
    left_out = list[str]()
    for column in _columns(group):
        needed = max(map(len, column)) + 2
        if taken + needed <= width:
            taken += needed
            kept.append(column)
        else:
            left_out.append(column[0])

    commit = f", commit {group.commit}" if group.commit else ""
    lines = [f"{group.title}: {count(len(group.runs), 'run')}, by {group.monitor}{commit}"]
    lines += _wrapped(group.which, width)
    numbers = [index for index, column in enumerate(kept) if column[0] not in ("run", "state")]
    lines += [f"  {line}" for line in table(zip(*kept, strict=True), right=numbers)]
    if group.doubtful:
        lines += _wrapped(f"ranked as the same data although these differ: {', '.join(group.doubtful)}", width)
    if left_out:
        lines += _wrapped(f"also in {TABLE}: {', '.join(left_out)}", width)
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="    ")


def _columns(group: RunGroup) -> Iterator[list[str]]:
    """Each with its header, the most important first."""
    runs = group.runs
    keys = group.keys
    yield ["run", *(_short(group.short_name(run), 34) for run in runs)]
    name = group.monitor.split()[1]
    best = [run.best(group.monitor) for run in runs]
    yield ["best", *(number(pair[0]) if pair else "-" for pair in best)]
    yield ["last", *(_last(run, name) for run in runs)]
    states = [run.state() for run in runs]
    if set(states) != {"done"}:
        yield ["state", *states]
    yield ["epochs", *(f"{run.epochs}/{run.config.get('trainer.epochs', '?')}" for run in runs)]
    for key in keys[:1]:
        yield _key_column(key, group)
    yield ["time", *(duration(run.seconds) for run in runs)]
    if not group.commit:
        yield ["commit", *(run.commit or "-" for run in runs)]
    if any(run.when.replace("-", "")[:8] != run.path.resolve().name[:8] for run in runs):
        yield ["when", *(run.when[:16] or "-" for run in runs)]
    for key in keys[1:]:
        yield _key_column(key, group)


def _key_column(key: str, group: RunGroup) -> list[str]:
    """Under the last word of a key, or as many as distinguish it from the others."""
    return [_header(key, group), *(_short(shown_value(run.config.get(key)) or "-", 16) for run in group.runs)]


def _header(key: str, group: RunGroup) -> str:
    words = key.split(".")
    ends = (".".join(words[-count:]) for count in range(1, len(words) + 1))
    alone = (end for end in ends if sum(f".{other}".endswith(f".{end}") for other in group.keys) == 1)
    return next(
        (end for end in alone if end not in ("type", "epochs")), key
    )  # "epochs" is the number that a run has done


def _last(run: Run, name: str) -> str:
    value = run.records[-1].get(name) if run.records else None
    return "-" if value is None else number(value)


def _short(text: str, longest: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= longest else f"…{text[1 - longest :]}"


def _csv(groups: Sequence[RunGroup]) -> str:
    """All runs and all columns. A key in which runs of one task differ is a column for all tasks."""
    keys = list(dict.fromkeys(key for group in groups for key in group.keys))
    metrics = list(
        dict.fromkeys(name for group in groups for run in group.runs for record in run.records for name in record)
    )
    metrics = [name for name in metrics if name not in ("epoch", "seconds")]
    header = ["run", "folder", "when", "data", "loss", "state", "monitor", "best", "best_epoch", "epochs", "seconds"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*header, "commit", *(f"last_{name}" for name in metrics), *keys])
    for group in groups:
        data = f"{group.task.data} ({group.which})" if group.which else group.task.data
        for run in group.runs:
            best = run.best(group.monitor) or ("", "")
            last = run.records[-1] if run.records else {}
            cells = [run.name, display_path(run.path), run.when, data, run.task.loss, run.state(), group.monitor, *best]
            cells += [run.epochs, round(run.seconds, 3), run.commit, *(last.get(name, "") for name in metrics)]
            cells += [shown_value(run.config.get(key)) for key in keys]
            writer.writerow([spreadsheet_safe(cell) if isinstance(cell, str) else cell for cell in cells])
    return file.getvalue()


def _charts(groups: Sequence[RunGroup]) -> Iterator[tuple[str, list[Curve]]]:
    """The value that the runs are ranked by and, below it, the training loss."""
    for group in groups:
        best = group.runs[:MOST_CURVES]
        limit = f"\nthe best {MOST_CURVES} of {len(group.runs)} runs" if len(best) < len(group.runs) else ""
        for name in dict.fromkeys([group.monitor.split()[1], "loss"]):
            lines = [
                Curve(_legend(run, group), [record["epoch"] for record in run.records], run.values(name))
                for run in best
            ]
            yield "\n".join(filter(None, [name, group.title, *textwrap.wrap(group.which, 70)])) + limit, lines


def _legend(run: Run, group: RunGroup) -> str:
    keys = [f"{_header(key, group)}={shown_value(run.config.get(key)) or '-'}" for key in group.keys[:2]]
    return "\n".join([group.short_name(run), *keys]).strip()
