"""The live display of a sweep: a line for each finished trial, and one for the running ones below."""

import sys
from collections.abc import Sequence

from tqdm import tqdm

from extras.sweep.sweep_folder import Spec, Trial, best_trial
from extras.sweep.trial_process import Running
from logger.console import styled, unstyled
from utils.streams import is_plain, say
from utils.text import duration, is_number, number, number_or_dash


class Display:
    """quiet: print only errors, for all but the first of a launcher's processes."""

    def __init__(self, spec: Spec, *, quiet: bool = False) -> None:
        self.spec = spec
        self.quiet = quiet
        self._bar: tqdm | None = None

    def finished(self, trial: Trial, trials: Sequence[Trial]) -> None:
        """Show a trial that has ended."""
        outcome = trial.outcome
        if self.quiet or outcome is None:
            return
        if self._bar is not None:
            self._bar.clear()
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
        line = f"{trial.name}  {values}  {result}"
        say(unstyled(line) if is_plain(sys.stdout) else line)

    def update(self, trials: Sequence[Trial], running: Sequence[Running], total: int) -> None:
        """Show the progress of the sweep and of its running trials in one line; only in a terminal."""
        if self.quiet or is_plain(sys.stdout):
            return
        done = sum(trial.outcome is not None for trial in trials)
        if self._bar is None:
            options = {"initial": done, "total": total, "unit": " trials", "leave": False, "dynamic_ncols": True}
            self._bar = tqdm(file=sys.stdout, **options)
        self._bar.n, self._bar.total = done, total  # --trials may have raised the number
        best = best_trial(trials, self.spec)
        texts = [f"best {number(best.value)} ({best.name})"] if best else []
        for one in sorted(running, key=lambda one: one.trial.number):
            epochs = one.trial.values.get("trainer.epochs", self.spec.epochs)
            texts.append(f"{one.trial.name} {one.epochs}/{epochs} {number_or_dash(one.value)}")
        self._bar.set_postfix_str(", ".join(texts))

    def close(self) -> None:
        """Erase what ``update`` has drawn."""
        if self._bar is not None:
            self._bar.close()


def short_value(text: str) -> str:
    """A value for a table: numbers with four digits, long texts truncated."""
    if is_number(text):
        return text if text.lstrip("-").isdigit() else f"{float(text):.4g}"
    return text if len(text) <= 24 else f"{text[:23]}…"
