"""The trials of a sweep as table rows, and grouped over seeds and folds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from extras.sweep.display import short_value
from extras.sweep.sweep_folder import Spec, Trial
from utils.paths import PROJECT, shell_path
from utils.text import duration, number, number_or_dash

# 97.5% quantiles of Student's t distribution with 1, 2, 3 ... degrees of freedom
T_QUANTILES = (12.706, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


@dataclass(frozen=True)
class Repeated:
    """Trials that differ only in seed or fold."""

    values: dict[str, str]
    """The searched values they have in common."""
    trials: list[Trial]

    @property
    def results(self) -> list[float]:
        return [trial.value for trial in self.trials]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.results)

    @property
    def deviation(self) -> float:
        """The sample standard deviation (n - 1); NaN for a single result."""
        return statistics.stdev(self.results) if len(self.results) > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% confidence interval of the mean, by Student's t distribution."""
        if len(self.results) < 2:
            return math.nan, math.nan
        half = t_quantile(len(self.results) - 1) * self.deviation / math.sqrt(len(self.results))
        return self.mean - half, self.mean + half

    def row(self) -> list[str]:
        low, high = self.interval
        several = len(self.results) > 1
        cells = [str(len(self.results)), number(self.mean), number(self.deviation) if several else "-"]
        return [*map(short_value, self.values.values()), *cells, f"{number(low)} to {number(high)}" if several else "-"]


def t_quantile(freedom: int) -> float:
    """The 97.5% quantile of Student's t distribution, to three digits."""
    if freedom <= len(T_QUANTILES):
        return T_QUANTILES[freedom - 1]
    # the Cornish-Fisher expansion (Abramowitz and Stegun 26.7.5) at the normal distribution's quantile
    return 1.959964 + 2.3723 / freedom + 2.8225 / freedom**2 + 2.5558 / freedom**3


def repeated(trials: Sequence[Trial], spec: Spec) -> list[Repeated]:
    """The complete trials grouped by everything but seed and fold, best mean first; empty if neither is searched.

    In whatever order the trials are given: of equal means, the setting that was tried first comes first.
    Of a grid, settings without some of their trials come last: those that failed or were pruned might have been worse.
    """
    keys = [space.key for space in spec.spaces if space.replicates]
    if not keys:
        return []
    groups: dict[tuple[str, ...], Repeated] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.state == "complete":
            common = {key: value for key, value in trial.values.items() if key not in keys}
            groups.setdefault(tuple(common.values()), Repeated(common, [])).trials.append(trial)
    most = 0 if spec.sampler else max((len(group.trials) for group in groups.values()), default=0)

    def key(group: Repeated) -> tuple[bool, float]:  # of a grid, settings of which trials failed come last
        return len(group.trials) < most, group.mean if spec.minimise else -group.mean

    return sorted(groups.values(), key=key)


def best_setting(trials: Sequence[Trial], spec: Spec) -> Repeated | None:
    """Of a grid over seeds or folds: the trials of the setting with the best mean, of those with the most results.

    None if no setting has several: a single seed or fold may be lucky.
    """
    groups = [] if spec.sampler else repeated(trials, spec)
    return groups[0] if groups and len(groups[0].trials) > 1 else None


def train_command(folder: Path) -> str:
    return f"python {shell_path(PROJECT / 'train.py')} -c {shell_path(folder / 'best.json')}"


def result_rows(ranked: Sequence[Trial], spec: Spec) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the final table."""
    header = ["trial", f"best {spec.value_name}", "epoch", "epochs", "time", *map(spec.short, spec.keys), "state"]
    rows = []
    for trial in ranked:
        outcome = trial.outcome
        assert outcome is not None
        epochs = [str(outcome.epoch or "-"), str(outcome.epochs)]
        values = [short_value(trial.values[key]) for key in spec.keys]
        seconds = duration(outcome.seconds, fine=True) if outcome.epochs else "-"  # only those of epochs are known
        rows.append([trial.name, number_or_dash(outcome.value), *epochs, seconds, *values, outcome.state])
    return header, rows


def repeated_rows(groups: Sequence[Repeated], spec: Spec) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table over seeds and folds."""
    keys = map(spec.short, groups[0].values)
    header = [*keys, "n", f"mean {spec.value_name}", "deviation", "95% interval"]
    return header, [group.row() for group in groups]
