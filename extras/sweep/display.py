"""The live display of a sweep: a line for each finished trial, and the running ones below."""

import contextlib
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from extras.sweep.sweep_folder import Spec, Trial, best_trial
from logger.console import styled, unstyled
from utils.streams import is_plain, say
from utils.text import duration, number, number_or_dash, printable, table

MOST_ROWS = 16


@dataclass(kw_only=True)
class Row:
    """A running trial."""

    trial: Trial
    started: float = 0.0
    """When this coordinator started or continued it, by the monotonic clock."""
    epochs: int = 0
    value: float | None = None
    """Its best value so far."""


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
        values = ", ".join(f"{self.spec.short(key)}={short_value(text)}" for key, text in trial.values.items())
        if outcome.state == "failed":
            result = f"{styled('failed', 'warning')}: {outcome.headline}"
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

    def _erase(self) -> str:
        return f"\x1b[{len(self._drawn)}A\x1b[J" if self._drawn else ""

    def _lines(self, trials: Sequence[Trial], rows: Sequence[Row], total: int) -> list[str]:
        name = self.spec.value_name
        cells = [["running", "epoch", name, "time", *map(self.spec.short, self.spec.keys)]]
        for row in sorted(rows, key=lambda row: row.trial.number)[:MOST_ROWS]:
            value = number_or_dash(row.value)
            epochs = f"{row.epochs}/{row.trial.values.get('trainer.epochs', self.spec.epochs)}"
            values = [short_value(row.trial.values[key]) for key in self.spec.keys]
            cells.append([row.trial.name, epochs, value, duration(time.monotonic() - row.started), *values])
        done = sum(trial.outcome is not None for trial in trials)
        summary = f"{done} of {total} trials"
        if best := best_trial(trials, self.spec):
            summary += f", best {name} {number(best.value)} ({best.name})"
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
        spent = sum(min(time.monotonic() - row.started, mean) for row in rows)
        return max(0.0, open_trials * mean - spent) / max(1, min(self.jobs, open_trials))

    def _say(self, text: str) -> None:
        say(text if not is_plain(sys.stdout) else unstyled(text))


def short_value(text: str) -> str:
    """A value for a table: numbers with four digits, long texts truncated."""
    try:
        return text if text.lstrip("-").isdigit() else f"{float(text):.4g}"
    except ValueError:
        return text if len(text) <= 24 else f"{text[:23]}…"
