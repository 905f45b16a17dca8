"""Statistics of a regression, accumulated batch by batch."""

import math
from typing import Any, NamedTuple

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
    """Explained fraction of the targets' variance, the mean over the outputs; NaN if all targets are constant."""


class Regression:
    """Statistics of predicted numbers, and a subset of them spread evenly over the data.

    samples: total number of samples. width: numbers per sample.
    """

    KEPT = 5000
    """Maximum number of pairs to keep."""

    def __init__(self, samples: int, width: int) -> None:
        self.width, self.not_finite = width, 0
        """not_finite: numbers left out, as they or their targets are not finite."""
        self.pairs: Doubles = np.empty((2, 0))
        """The subset: predicted and true numbers, (2, at most KEPT)."""
        # coprime to the width, or only some of a sample's numbers would ever be kept
        self._places: Counts = np.empty(0, np.int64)  # positions of the kept pairs among the numbers of all samples
        self._every = max(1, math.ceil(samples * width / self.KEPT))
        while math.gcd(self._every, width) > 1:
            self._every += 1
        self._sum = self._square = self._absolute = self._largest = 0.0
        # of each output: its numbers, squared residuals, and of its targets the mean and the squared deviations from it
        self._counts, self._squares, self._means, self._spreads = (np.zeros(width) for _ in range(4))

    @property
    def numbers(self) -> int:
        return int(self._counts.sum())

    def add(self, start: int, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch: floats of the same shape, (B, ...), on the CPU. start: index of its first sample.

        Skips numbers that are not finite.
        """
        pair = np.stack([each.reshape(-1, self.width).double().numpy() for each in (outputs, targets)])  # (2, B, W)
        finite = np.isfinite(pair).all(0)  # (B, W)
        self.not_finite += int((~finite).sum())
        if not finite.any():
            return
        places = np.arange(start * self.width, start * self.width + finite.size)
        kept = finite.reshape(-1) & (places % self._every == 0)
        self._keep(pair.reshape(2, -1)[:, kept], places[kept])
        residual = np.where(finite, pair[0] - pair[1], 0.0)
        self._sum += float(residual.sum())
        self._square += float(np.square(residual).sum())
        self._absolute += float(np.abs(residual).sum())
        self._largest = max(self._largest, float(np.abs(residual).max()))
        counts = finite.sum(0)
        means = np.where(finite, pair[1], 0.0).sum(0) / np.maximum(counts, 1)
        spreads = np.square(np.where(finite, pair[1] - means, 0.0)).sum(0)
        self._vary(counts, np.square(residual).sum(0), means, spreads)

    def gather(self, processes: ProcessGroup) -> None:
        """Collect the sums of all processes in the main process."""
        for number, other in enumerate(processes.gather(self)):
            if number:
                self._keep(other.pairs, other._places)
                self._sum += other._sum
                self._square += other._square
                self._absolute += other._absolute
                self._largest = max(self._largest, other._largest)
                self.not_finite += other.not_finite
                self._vary(other._counts, other._squares, other._means, other._spreads)

    def _keep(self, pairs: Doubles, places: Counts) -> None:
        places = np.concatenate([self._places, places])
        order = np.argsort(places, kind="stable")[: self.KEPT]
        self._places, self.pairs = places[order], np.concatenate([self.pairs, pairs], 1)[:, order]

    def _vary(self, counts: Any, squares: Doubles, means: Doubles, spreads: Doubles) -> None:
        """Add more numbers of each output, (W,): see the attributes."""
        totals = np.maximum(self._counts + counts, 1)
        apart = means - self._means  # combines the spreads of two sets (Chan et al. 1979) without cancellation
        self._spreads += spreads + apart**2 * self._counts * counts / totals
        self._means += apart * counts / totals
        self._counts += counts
        self._squares += squares

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
            self._r2(),
        )

    def _r2(self) -> float:
        varied = self._spreads > 0
        return float((1 - self._squares[varied] / self._spreads[varied]).mean()) if varied.any() else math.nan
