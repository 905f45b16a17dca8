"""Statistics of a regression, accumulated batch by batch."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from utils.distributed.process_group import ProcessGroup

Doubles = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


class Residuals(NamedTuple):
    """Statistics of predicted - true, over all numbers."""

    mean: float
    """Bias."""
    deviation: float
    """Standard deviation."""
    rmse: float
    mae: float
    largest: float
    """Largest absolute value."""
    r2: float
    """Explained fraction of the targets' variance; NaN if the targets are constant."""


class Regression:
    """Statistics of predicted numbers, and a subset of them spread evenly over the data.

    samples: total number of samples. width: numbers per sample.
    """

    KEPT = 5000
    """Maximum number of pairs to keep."""

    def __init__(self, samples: int, width: int) -> None:
        self.width, self.numbers = width, 0
        self.pairs: Doubles = np.empty((2, 0))
        """The subset: predicted and true numbers, (2, at most KEPT)."""
        # coprime to the width, or only some of a sample's numbers would ever be kept
        self._places: Counts = np.empty(0, np.int64)  # positions of the kept pairs among the numbers of all samples
        self._every = max(1, math.ceil(samples * width / self.KEPT))
        while math.gcd(self._every, width) > 1:
            self._every += 1
        self._sum = self._square = self._absolute = self._largest = 0.0
        self._mean = self._spread = 0.0  # of the targets: mean, and sum of squared deviations from it

    def add(self, start: int, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch: floats of the same shape, (B, ...), on the CPU. start: index of its first sample.

        Skips numbers that are not finite.
        """
        pair = np.stack([outputs.reshape(-1).double().numpy(), targets.reshape(-1).double().numpy()])
        places = np.arange(start * self.width, start * self.width + pair.shape[1])
        finite = np.isfinite(pair).all(0)
        if not finite.all():
            pair, places = pair[:, finite], places[finite]
        count = pair.shape[1]
        if not count:
            return
        kept = places % self._every == 0
        self._keep(pair[:, kept], places[kept])
        residual = pair[0] - pair[1]
        self._sum += float(residual.sum())
        self._square += float(np.square(residual).sum())
        self._absolute += float(np.abs(residual).sum())
        self._largest = max(self._largest, float(np.abs(residual).max()))
        mean = float(pair[1].mean())
        self._vary(count, mean, float(np.square(pair[1] - mean).sum()))

    def gather(self, processes: ProcessGroup) -> None:
        """Collect the sums of all processes in the main process."""
        for number, other in enumerate(processes.one_by_one(self)):
            if number:
                self._keep(other.pairs, other._places)
                self._sum += other._sum
                self._square += other._square
                self._absolute += other._absolute
                self._largest = max(self._largest, other._largest)
                self._vary(other.numbers, other._mean, other._spread)

    def _keep(self, pairs: Doubles, places: Counts) -> None:
        places = np.concatenate([self._places, places])
        order = np.argsort(places, kind="stable")[: self.KEPT]
        self._places, self.pairs = places[order], np.concatenate([self.pairs, pairs], 1)[:, order]

    def _vary(self, count: int, mean: float, spread: float) -> None:
        """Add more targets, given by their count, mean, and sum of squared deviations from it."""
        total = self.numbers + count
        if not total:
            return
        apart = mean - self._mean  # combines the spreads of two sets (Chan et al. 1979) without cancellation
        self._spread += spread + apart**2 * self.numbers * count / total
        self._mean += apart * count / total
        self.numbers = total

    def residuals(self) -> Residuals:
        if not self.numbers:
            return Residuals(*[math.nan] * 6)
        mean, square = self._sum / self.numbers, self._square / self.numbers
        return Residuals(
            mean,
            math.sqrt(max(0.0, square - mean**2)),
            math.sqrt(square),
            self._absolute / self.numbers,
            self._largest,
            1 - self._square / self._spread if self._spread else math.nan,
        )
