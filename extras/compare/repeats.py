"""Means and deviations over runs that repeat an experiment with other seeds or folds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from extras.compare.runs import NOT_COMPARED, REPEATS, Run, direction, metrics, shown_value


@dataclass
class Repeats:
    """Runs of one config, except for seed and fold, at least two of them finished."""

    runs: list[Run]
    """Finished runs, one for each seed and fold."""
    left_out: int
    """Others: unfinished, or with a seed and fold that a later run has too."""
    over: list[str]
    """What differs between them, as in ["seed"]."""

    def values(self) -> Mapping[str, tuple[float, float]]:
        """Mean and standard deviation (n - 1) of each metric's best value, as "min val_loss", and of each value on the
        test data, as "test loss". Values missing in some of the runs are left out."""
        found = {}
        for name in metrics(self.runs):
            best = f"{direction(name, self.runs)} {name}"
            found[best] = [None if pair is None else pair[0] for pair in (run.best(best) for run in self.runs)]
        for name in dict.fromkeys(name for run in self.runs for name in run.test):
            found[f"test {name}"] = [run.test.get(name) for run in self.runs]
        whole = {name: [value for value in values if value is not None] for name, values in found.items()}
        return {
            name: (statistics.fmean(values), _deviation(values))
            for name, values in whole.items()
            if len(values) == len(self.runs)
        }


def find_repeats(runs: Sequence[Run]) -> list[Repeats]:
    """In the order of the runs."""
    alike: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        rest = [key for key in run.config if key not in NOT_COMPARED and key not in REPEATS]
        alike.setdefault(tuple(sorted((key, run.compared(key)) for key in rest)), []).append(run)
    found = []
    for members in alike.values():
        newest = sorted((run for run in members if run.state() == "finished"), key=lambda run: run.path.name)
        kept = list({tuple(shown_value(run.config.get(key)) for key in REPEATS): run for run in newest}.values())
        if len(kept) > 1:
            differ = [key for key in REPEATS if len({shown_value(run.config.get(key)) for run in kept}) > 1]
            over = [key.rpartition(".")[2] for key in differ]
            found.append(Repeats(kept, len(members) - len(kept), over))
    return found


def _deviation(values: Sequence[float]) -> float:
    try:
        return statistics.stdev(values)
    except OverflowError:
        return math.inf
