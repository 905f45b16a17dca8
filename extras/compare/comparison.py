"""``python test.py --compare RUN [RUN ...]``: runs side by side, as a table, as CSV and as curves."""

import csv
import io
import os
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from extras.compare.runs import ARGUMENT, HOW_FED, UNKNOWN, WHICH_DATA, Run, Task, differing, find_runs, shown_value
from extras.report.drawing import png
from extras.report.figures import Curve, curves
from extras.report.predictions import harmless
from utils.errors import CheckpointError, UserError
from utils.paths import display_path
from utils.run_folder import replace_bytes, replace_text
from utils.text import number

TABLE, PICTURE = "comparison.csv", "comparison.png"
MOST_CURVES = 14


@dataclass
class Group:
    """Runs of one task, which can be ranked: the best first."""

    task: Task
    which: str
    """The arguments by which the data differ from others of the same kind, as in data_dir=photos; empty if none are."""
    monitor: str
    """What they are ranked by: "min NAME" or "max NAME"."""
    runs: list[Run]
    keys: list[str]
    """Of the config, in which they differ."""

    @property
    def title(self) -> str:
        return "unknown task" if UNKNOWN in self.task[:2] else ", ".join(self.task[:2])

    @property
    def doubtful(self) -> list[str]:
        """Arguments of the data loader in which the runs differ, and which may stand for other data."""
        names = [key.removeprefix(ARGUMENT) for key in self.keys if key.startswith(ARGUMENT)]
        return [name for name in names if name.partition(".")[0] not in HOW_FED | WHICH_DATA]

    @property
    def commit(self) -> str:
        """The one of all runs, if it is one."""
        commits = {run.commit for run in self.runs}
        return commits.pop() if len(commits) == 1 else ""

    def short_name(self, run: Run) -> str:
        """A run's name, without the experiment's if it is the same for all."""
        same = len({run.name.rpartition("/")[0] for run in self.runs}) == 1
        return run.name.rpartition("/")[2] if same else run.name


def compare(paths: Sequence[Path], out: Path | None = None) -> Path:
    """Print the table, and write it and the curves into a folder. Returns the table's file.

    out: the folder; None: the one that holds all of these runs. Raises CheckpointError if there is no run.
    """
    runs, others = find_runs(paths)
    others = [path for path in others if path.name not in (TABLE, PICTURE)]  # ours, of the last time
    if not runs:
        names = ", ".join(map(str, others or paths))
        raise CheckpointError(f"there is no run to compare: no config.json in {names}")
    groups = _groups(runs)
    notes = [f"damaged: {display_path(run.path)}: {run.damage}" for run in runs if run.damage]
    notes += [f"no run: {display_path(path)}" for path in others]
    print("\n\n".join("\n".join(lines) for lines in [*map(_table, groups), notes] if lines))
    folder = out or Path(os.path.commonpath([run.path.absolute().parent for run in runs]))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}; for another folder: --out") from error
    replace_text(folder / TABLE, _csv(groups))
    replace_bytes(folder / PICTURE, png(curves(dict(_charts(groups)))))
    print(f"\nwritten: {display_path(folder / TABLE)}, {display_path(folder / PICTURE)}")
    return folder / TABLE


def _groups(runs: Sequence[Run]) -> list[Group]:
    """By task, the task with the most runs first, what cannot be read last."""
    groups, tasks = [], Counter(run.task for run in runs)
    for task in sorted(tasks, key=lambda task: (UNKNOWN in task[:2], -tasks[task])):
        members = [run for run in runs if run.task == task]
        asked = Counter(run.monitor for run in members if run.monitor)
        held_out = any("val_loss" in record for run in members for record in run.records)
        monitor = asked.most_common(1)[0][0] if asked else "min val_loss" if held_out else "min loss"
        ranked = sorted(members, key=lambda run: _rank(run, monitor))
        groups.append(Group(task, _which(task, tasks), monitor, ranked, differing(members)))
    return groups


def _which(task: Task, tasks: Iterable[Task]) -> str:
    others = [set(other.which) for other in tasks if other[:2] == task[:2]]
    told = [pair for pair in task.which if any(pair not in other for other in others)]
    return ", ".join(f"{name}={_short(value, 40)}" for name, value in told)


def _rank(run: Run, monitor: str) -> tuple[bool, float, str]:
    best = run.best(monitor)
    value = 0.0 if best is None else best[0] if monitor.startswith("min") else -best[0]
    return best is None, value, run.name


def _table(group: Group) -> list[str]:
    """Lines of 80 columns, or of as many as the terminal has. What finds no place is in the CSV."""
    width = max(80, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 80
    columns = list(_columns(group))
    taken, left_out, kept = 0, list[str](), list[list[str]]()
    for column in columns:
        needed = max(map(len, column)) + 2
        if taken + needed <= width:
            taken += needed
            kept.append(column)
        else:
            left_out.append(column[0])
    count = f"{len(group.runs)} run{'s' if len(group.runs) > 1 else ''}"
    lines = [f"{group.title}: {count}, by {group.monitor}{f', commit {group.commit}' if group.commit else ''}"]
    lines += textwrap.wrap(group.which, width, initial_indent="  ", subsequent_indent="    ")
    for row in zip(*kept, strict=True):
        cells = [
            cell.ljust(max(map(len, column))) if column[0] in ("run", "state") else cell.rjust(max(map(len, column)))
            for cell, column in zip(row, kept, strict=True)
        ]
        lines.append(f"  {'  '.join(cells)}".rstrip())
    if group.doubtful:
        doubt = f"ranked as if the data were the same, whatever this says: {', '.join(group.doubtful)}"
        lines += textwrap.wrap(doubt, width, initial_indent="  ", subsequent_indent="    ")
    if left_out:
        further = f"further in {TABLE}: {', '.join(left_out)}"
        lines += textwrap.wrap(further, width, initial_indent="  ", subsequent_indent="    ")
    return lines


def _columns(group: Group) -> Iterator[list[str]]:
    """Each with its head, the most important first."""
    runs, keys = group.runs, group.keys
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
    yield ["time", *(str(timedelta(seconds=round(run.seconds))) for run in runs)]
    if not group.commit:
        yield ["commit", *(run.commit or "-" for run in runs)]
    if any(run.when.replace("-", "")[:8] != run.path.resolve().name[:8] for run in runs):
        yield ["when", *(run.when[:16] or "-" for run in runs)]
    for key in keys[1:]:
        yield _key_column(key, group)


def _key_column(key: str, group: Group) -> list[str]:
    """Under the last word of a key, or as many as tell it from the others."""
    return [_head(key, group), *(_short(shown_value(run.config.get(key)) or "-", 16) for run in group.runs)]


def _head(key: str, group: Group) -> str:
    words = key.split(".")
    ends = (".".join(words[-count:]) for count in range(1, len(words) + 1))
    alone = (end for end in ends if sum(f".{other}".endswith(f".{end}") for other in group.keys) == 1)
    return next((end for end in alone if end not in ("type", "epochs")), key)  # "epochs" is how far a run came


def _last(run: Run, name: str) -> str:
    value = run.records[-1].get(name) if run.records else None
    return "-" if value is None else number(value)


def _short(text: str, longest: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= longest else f"…{text[1 - longest :]}"


def _csv(groups: Sequence[Group]) -> str:
    """All of it. A key in which runs of one task differ has a column for all."""
    keys = list(dict.fromkeys(key for group in groups for key in group.keys))
    metrics = list(
        dict.fromkeys(name for group in groups for run in group.runs for record in run.records for name in record)
    )
    metrics = [name for name in metrics if name not in ("epoch", "seconds")]
    head = ["run", "folder", "when", "data", "loss", "state", "monitor", "best", "best_epoch", "epochs", "seconds"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*head, "commit", *(f"last_{name}" for name in metrics), *keys])
    for group in groups:
        data = f"{group.task.data} ({group.which})" if group.which else group.task.data
        for run in group.runs:
            best = run.best(group.monitor) or ("", "")
            last = run.records[-1] if run.records else {}
            cells = [run.name, display_path(run.path), run.when, data, run.task.loss, run.state(), group.monitor, *best]
            cells += [run.epochs, round(run.seconds, 3), run.commit, *(last.get(name, "") for name in metrics)]
            cells += [shown_value(run.config.get(key)) for key in keys]
            writer.writerow([harmless(cell) if isinstance(cell, str) else cell for cell in cells])
    return file.getvalue()


def _charts(groups: Sequence[Group]) -> Iterator[tuple[str, list[Curve]]]:
    """What the runs are ranked by and, below it, the loss in training."""
    for group in groups:
        best = group.runs[:MOST_CURVES]
        those = f"\nthe best {MOST_CURVES} of {len(group.runs)} runs" if len(best) < len(group.runs) else ""
        for name in dict.fromkeys([group.monitor.split()[1], "loss"]):
            lines = [
                Curve(_legend(run, group), [record["epoch"] for record in run.records], run.values(name))
                for run in best
            ]
            yield "\n".join(filter(None, [name, group.title, *textwrap.wrap(group.which, 70)])) + those, lines


def _legend(run: Run, group: Group) -> str:
    keys = [f"{_head(key, group)}={shown_value(run.config.get(key)) or '-'}" for key in group.keys[:2]]
    return "\n".join([group.short_name(run), *keys]).strip()
