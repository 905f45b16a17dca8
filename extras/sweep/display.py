"""The live display of a sweep: a line for each finished trial, and the running ones below."""

import contextlib
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from extras.sweep.sweep_folder import Spec, Trial
from logger.console import styled
from utils.streams import is_plain, say
from utils.text import duration, number, printable, table

MOST_ROWS = 16


@dataclass(frozen=True)
class Row:
    """A running trial."""

    trial: Trial
    epochs: int
    value: float | None
    """Its best value so far."""
    seconds: float
    """Seconds since this coordinator started or continued it."""


class Display:
    """quiet: print only errors, for all but the first of a launcher's processes."""

    def __init__(self, spec: Spec, *, jobs: int, quiet: bool = False) -> None:
        self.spec = spec
        self.jobs = jobs
        self.quiet = quiet
        self.live = not quiet and not is_plain(sys.stdout)
        self._drawn: list[str] = []

    def finished(self, trial: Trial, trials: Sequence[Trial]) -> None:
        """Show a trial that has ended."""
        outcome = trial.outcome
        if self.quiet or outcome is None:
            return
        self.clear()
        values = ", ".join(f"{short_key(key, self.spec)}={short_value(text)}" for key, text in trial.values.items())
        if outcome.state == "failed":
            result = f"{styled('failed', 'warning')}: {first_line(outcome.reason)}"
        else:
            shown = "none" if outcome.value is None else number(outcome.value)
            result = f"{self.spec.value_name} {shown} in epoch {outcome.epoch}"
            result += f", pruned after {outcome.epochs}" if outcome.state == "pruned" else ""
            result += f" ({duration(outcome.seconds, fine=True)})"
            if best_trial(trials, self.spec) is trial:
                result += f"  {styled('best', 'good')}"
        self._say(f"{trial.name}  {values}  {result}")

    def update(self, trials: Sequence[Trial], rows: Sequence[Row], total: int) -> None:
        """Redraw the running trials; only in a terminal."""
        if not self.live:
            return
        lines = self._lines(trials, rows, total)
        if lines == self._drawn:
            return
        width = shutil.get_terminal_size().columns - 1
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.write(self._erase() + "".join(f"{printable(line)[:width]}\n" for line in lines))
            sys.stdout.flush()
        self._drawn = lines

    def clear(self) -> None:
        """Erase what ``update`` has drawn."""
        if self._drawn:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.write(self._erase())
                sys.stdout.flush()
            self._drawn = []

    def stopped(self, count: int) -> None:
        if not self.quiet and count:
            self._say(f"{count} running {'trial has' if count == 1 else 'trials have'} stopped and will continue")

    def _erase(self) -> str:
        return f"\x1b[{len(self._drawn)}A\x1b[J" if self._drawn else ""

    def _lines(self, trials: Sequence[Trial], rows: Sequence[Row], total: int) -> list[str]:
        name = self.spec.value_name
        keys = [space.key for space in self.spec.spaces]
        cells = [["running", "epoch", name, "time", *(short_key(key, self.spec) for key in keys)]]
        for row in sorted(rows, key=lambda row: row.trial.number)[:MOST_ROWS]:
            value = "-" if row.value is None else number(row.value)
            epochs = f"{row.epochs}/{row.trial.values.get('trainer.epochs', self.spec.epochs)}"
            cells.append(
                [
                    row.trial.name,
                    epochs,
                    value,
                    duration(row.seconds),
                    *(short_value(row.trial.values[key]) for key in keys),
                ]
            )
        done = sum(trial.outcome is not None for trial in trials)
        summary = f"{done} of {total} trials"
        if best := best_trial(trials, self.spec):
            assert best.outcome is not None
            summary += f", best {name} {number(best.outcome.value or 0.0)} ({best.name})"
        if (left := self._seconds_left(trials, rows, total)) is not None:
            summary += f", {duration(left)} left"
        return [*table(cells, right=range(1, len(cells[0]))), summary]

    def _seconds_left(self, trials: Sequence[Trial], rows: Sequence[Row], total: int) -> float | None:
        """Estimate from the mean duration of finished trials."""
        times = [trial.outcome.seconds for trial in trials if trial.outcome and trial.outcome.state != "failed"]
        if not times:
            return None
        mean = sum(times) / len(times)
        open_trials = total - sum(trial.outcome is not None for trial in trials)
        spent = sum(min(row.seconds, mean) for row in rows)
        return max(0.0, open_trials * mean - spent) / max(1, min(self.jobs, open_trials))

    def _say(self, text: str) -> None:
        say(text if not is_plain(sys.stdout) else _plain(text))


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""


def short_key(key: str, spec: Spec) -> str:
    """The last word of a key, or as many as distinguish it from the others."""
    words = key.split(".")
    others = [space.key for space in spec.spaces if space.key != key]
    for count in range(1, len(words)):
        end = ".".join(words[-count:])
        if not any(f".{other}".endswith(f".{end}") for other in others):
            return end
    return key


def short_value(text: str) -> str:
    """A value for a table: numbers with four digits, long texts truncated."""
    try:
        return text if text.lstrip("-").isdigit() else f"{float(text):.4g}"
    except ValueError:
        return text if len(text) <= 24 else f"{text[:23]}…"


def best_trial(trials: Sequence[Trial], spec: Spec) -> Trial | None:
    """The complete trial with the best value, the first of equal ones."""
    best: Trial | None = None
    value = 0.0
    for trial in trials:
        outcome = trial.outcome
        if outcome is None or outcome.state != "complete" or outcome.value is None:
            continue
        if best is None or spec.better(outcome.value, value):
            best, value = trial, outcome.value
    return best
