"""Statistics of a classification or a regression, accumulated batch by batch.

By NumPy: importing torchmetrics takes seconds, and its metrics of single samples store all outputs.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from utils.distributed.process_group import ProcessGroup
from utils.text import count

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Picture = npt.NDArray[np.uint8]


class Mistake(NamedTuple):
    """A misclassified sample."""

    sample: int
    """Index in the evaluated data."""
    true: int
    predicted: int
    probability: float
    """Probability of the predicted class."""
    picture: Picture | None = None
    """Of shape (H, W, 1 or 3); None if not drawn yet, or if the input is not a picture."""
    input: Tensor | None = None
    """What to draw the picture from, on the CPU."""


class ClassScores(NamedTuple):
    """Scores per class, float64 of shape (C,); NaN if undefined."""

    precision: Doubles
    """Fraction of the samples predicted as this class that belong to it."""
    recall: Doubles
    """Fraction of this class's samples that were predicted as it."""
    f1: Doubles
    support: Counts
    """Number of samples in this class."""


class Classification:
    """Statistics of classified samples in C * C numbers, without storing the outputs.

    classes: C. keep: number of most confident mistakes to keep, with their inputs.
    """

    BINS = 15
    """Bins of the probability, for calibration."""
    THRESHOLDS = 127
    """Thresholds of the probability for precision-recall curves, as in TensorBoard by default."""

    def __init__(self, classes: int, *, keep: int = 24) -> None:
        self.classes, self.keep = classes, keep
        self.samples = 0
        self.not_finite = 0
        """Samples whose probabilities are NaN."""
        self.beyond = 0
        """Samples whose target is C or more."""
        self.confusion: Counts = np.zeros((classes, classes), np.int64)
        """Counts by true class (row) and predicted class (column)."""
        self.mistakes: list[Mistake] = []
        """The most confident mistakes, worst first."""
        self.bins: Doubles = np.zeros((3, self.BINS))
        """Samples, sum of the predicted class's probability, and correct samples, per bin of that probability."""
        self.scored: Counts = np.zeros((2, classes, self.THRESHOLDS), np.int64)
        """For [0] samples of other classes and [1] samples of the class: the number with each probability, rounded down
        to i / (THRESHOLDS - 1)."""

    def add(self, start: int, probabilities: Tensor, targets: Tensor, inputs: Tensor | None = None) -> None:
        """Add a batch. start: index of its first sample. inputs: (B, ...), to keep those of mistakes; None: none.

        probabilities: float32 of shape (B, C), on the CPU. targets: int64 of shape (B,); targets that are not a class,
        such as a loss's ``ignore_index``, are skipped, and so are probabilities that are NaN, which are counted.
        """
        chances, true = probabilities.numpy(), targets.numpy()
        finite = np.isfinite(chances).all(1)
        self.not_finite += int((~finite).sum())
        self.beyond += int((true >= self.classes).sum())
        rows = np.flatnonzero((true >= 0) & (true < self.classes) & finite)
        chances, true = chances[rows], true[rows]
        predicted = chances.argmax(1)  # (B,)
        confidence = chances[np.arange(len(rows)), predicted]  # (B,)
        right = predicted == true
        self.samples += len(rows)
        np.add.at(self.confusion.reshape(-1), true * self.classes + predicted, 1)
        bins = np.minimum((confidence * self.BINS).astype(np.int64), self.BINS - 1)
        for row, weights in enumerate((None, confidence, right)):
            self.bins[row] += np.bincount(bins, weights, self.BINS)
        self._add_scores(chances, true)
        least = self.mistakes[-1].probability if len(self.mistakes) == self.keep else -1.0
        wrong = np.flatnonzero(~right & (confidence > least))
        if not len(wrong):
            return
        worst = wrong[np.argsort(-confidence[wrong], kind="stable")[: self.keep]]
        new = [Mistake(start + int(rows[i]), int(true[i]), int(predicted[i]), float(confidence[i])) for i in worst]
        if inputs is not None:
            kept = inputs[torch.from_numpy(rows[worst])].cpu()
            # each in memory of its own, so that those dropped later are freed
            new = [mistake._replace(input=each.clone()) for mistake, each in zip(new, kept, strict=True)]
        self.mistakes = sorted([*self.mistakes, *new], key=_badness)[: self.keep]

    def gather(self, processes: ProcessGroup) -> None:
        """Collect the sums of all processes, and the mistakes to keep, in the main process."""
        own_sums = (self.confusion, self.bins, self.scored, self.not_finite)
        self.beyond = int(processes.all_reduce_sum([self.beyond])[0])
        for confusion, bins, scored, not_finite in processes.gather(own_sums)[1:]:  # the first are this process's own
            self.not_finite += not_finite
            self.confusion += confusion
            self.bins += bins
            self.scored += scored
        self.samples = int(self.confusion.sum())
        everyone = processes.all_gather([_badness(mistake) for mistake in self.mistakes])
        worst = set(sorted(mistake for part in everyone for mistake in part)[: self.keep])
        own = [mistake for mistake in self.mistakes if _badness(mistake) in worst]
        self.mistakes = sorted((mistake for part in processes.gather(own) for mistake in part), key=_badness)

    def accuracy(self) -> float:
        return float(np.trace(self.confusion)) / self.samples if self.samples else math.nan

    def only_prediction(self) -> int | None:
        """The class that is predicted for every sample; None if there are several, or if it is always correct."""
        predicted = np.flatnonzero(self.confusion.any(0))
        return int(predicted[0]) if len(predicted) == 1 and self.accuracy() < 1 else None

    def near_chance(self) -> bool:
        """Whether the accuracy is within two standard deviations of always predicting the most common class."""
        if not self.samples:
            return False
        chance = float(self.confusion.sum(1).max()) / self.samples
        return self.accuracy() <= chance + 2 * math.sqrt(chance * (1 - chance) / self.samples)

    def calibration_error(self) -> float:
        """Expected calibration error (Guo et al. 2017), between 0 and 1: the mean of |confidence - accuracy| per bin,
        weighted by samples."""
        _, confidence, right = self.bins
        return float(np.abs(confidence - right).sum()) / self.samples if self.samples else math.nan

    def scores(self) -> ClassScores:
        right = np.diag(self.confusion).astype(np.float64)
        support, predicted = self.confusion.sum(1), self.confusion.sum(0)
        with np.errstate(invalid="ignore"):  # 0 / 0 if a class never occurred or was never predicted
            return ClassScores(right / predicted, right / support, 2 * right / (support + predicted), support)

    def curve(self, label: int) -> tuple[Counts, Counts]:
        """True and false positives of a class at thresholds i / (THRESHOLDS - 1), int64 of (THRESHOLDS,)."""
        false, true = self.scored[:, label, ::-1].cumsum(1)[:, ::-1]
        return true, false

    def _add_scores(self, chances: Floats, true: Counts) -> None:
        level = (chances * (self.THRESHOLDS - 1)).astype(np.int64)  # (B, C)
        level += np.arange(self.classes) * self.THRESHOLDS
        flat = self.scored.reshape(2, -1)
        of_class = level[np.arange(len(true)), true]
        np.add.at(flat[0], level.reshape(-1), 1)
        np.subtract.at(flat[0], of_class, 1)
        np.add.at(flat[1], of_class, 1)


def _badness(mistake: Mistake) -> tuple[float, int]:
    """Sort key for mistakes, worst first."""
    return -mistake.probability, mistake.sample


def as_probabilities(outputs: Tensor, *, given: bool) -> Tensor:
    """Outputs of shape (B, C) as probabilities, float32. given: they already are probabilities.

    Both logits and log-probabilities (for NLLLoss) go through softmax, which is exp for the latter. So do scores of a
    margin loss: their order is then right, but they are not calibrated. A row with NaN is NaN throughout.
    """
    outputs = outputs.detach().float()
    probabilities = outputs if given else outputs.softmax(1)
    return torch.where(probabilities.isnan().any(1, keepdim=True), torch.nan, probabilities.clamp(0, 1))


def of_two_classes(outputs: Tensor, *, given: bool) -> Tensor:
    """Outputs for the second of two classes, (B,) or (B, 1), as probabilities of both, float32 (B, 2).

    given: they already are probabilities, else logits. NaN stays.
    """
    outputs = outputs.detach().float().reshape(-1)
    second = (outputs if given else outputs.sigmoid()).clamp(0, 1)
    return torch.stack([1 - second, second], 1)


# ------------------------------------------------------------------ regression


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
    """Explained fraction of the targets' variance, the mean over the outputs whose targets vary; NaN without any."""


class Moments:
    """Of each of W columns: the number of values, their mean, and the sum of squared deviations from it; all (W,).

    Sums of squares would lose a small deviation from a large mean.
    """

    def __init__(self, width: int) -> None:
        self.counts, self.means, self.spreads = (np.zeros(width) for _ in range(3))

    def add(self, values: Doubles, there: npt.NDArray[np.bool_]) -> None:
        """Add rows, (B, W). there: which values count."""
        new = Moments(0)
        new.counts = there.sum(0).astype(np.float64)
        new.means = np.where(there, values, 0.0).sum(0) / np.maximum(new.counts, 1)
        new.spreads = np.square(np.where(there, values - new.means, 0.0)).sum(0)
        self.merge(new)

    def merge(self, other: "Moments") -> None:
        """Add those of other values (Chan et al. 1979)."""
        totals = np.maximum(self.counts + other.counts, 1)
        apart = other.means - self.means
        self.spreads += other.spreads + apart**2 * self.counts * other.counts / totals
        self.means += apart * other.counts / totals
        self.counts += other.counts


class Regression:
    """Statistics of predicted numbers, and a subset of them spread evenly over the data.

    samples: total number of samples. width: numbers per sample.
    """

    KEPT = 5000
    """Maximum number of pairs to keep."""

    def __init__(self, samples: int, width: int) -> None:
        self.width, self.not_finite = width, 0
        """not_finite: numbers left out, as they or their targets are not finite."""
        self.uneven = False
        """Whether samples have different widths, such as numbers of frames: they have no columns, so none are added."""
        self.pairs: Doubles = np.empty((2, 0))
        """The subset: predicted and true numbers, (2, at most KEPT)."""
        # coprime to the width, or only some of a sample's numbers would ever be kept
        self._places: Counts = np.empty(0, np.int64)  # positions of the kept pairs among the numbers of all samples
        self._every = max(1, math.ceil(samples * width / self.KEPT))
        while math.gcd(self._every, width) > 1:
            self._every += 1
        self._absolute = self._largest = 0.0
        self._residuals, self._targets = Moments(width), Moments(width)

    @property
    def numbers(self) -> int:
        return int(self._targets.counts.sum())

    def add(self, start: int, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch: floats of the same shape, (B, ...), on the CPU. start: index of its first sample.

        Skips numbers that are not finite.
        """
        self.uneven |= outputs.numel() != len(outputs) * self.width
        if self.uneven:
            return
        pair = np.stack([each.reshape(-1, self.width).double().numpy() for each in (outputs, targets)])  # (2, B, W)
        finite = np.isfinite(pair).all(0)  # (B, W)
        self.not_finite += int((~finite).sum())
        if not finite.any():
            return
        places = np.arange(start * self.width, start * self.width + finite.size)
        kept = finite.reshape(-1) & (places % self._every == 0)
        self._keep(pair.reshape(2, -1)[:, kept], places[kept])
        predicted, true = np.where(finite, pair, 0.0)
        residual = predicted - true
        self._absolute += float(np.abs(residual).sum())
        self._largest = max(self._largest, float(np.abs(residual).max()))
        self._residuals.add(residual, finite)
        self._targets.add(true, finite)

    def gather(self, processes: ProcessGroup) -> None:
        """Collect the sums of all processes in the main process."""
        for other in processes.gather(self)[1:]:  # the first is this process's own
            self._keep(other.pairs, other._places)
            self._absolute += other._absolute
            self._largest = max(self._largest, other._largest)
            self.not_finite += other.not_finite
            self.uneven |= other.uneven
            self._residuals.merge(other._residuals)
            self._targets.merge(other._targets)

    def _keep(self, pairs: Doubles, places: Counts) -> None:
        places = np.concatenate([self._places, places])
        order = np.argsort(places, kind="stable")[: self.KEPT]
        self._places, self.pairs = places[order], np.concatenate([self.pairs, pairs], 1)[:, order]

    def extent(self) -> str:
        """How many numbers there are, and how many of them are kept: "5,000 of 12,000 values drawn"."""
        kept = self.pairs.shape[1]
        values = count(self.numbers, "value")
        return values if kept == self.numbers else f"{kept:,} of {values} drawn"

    def residuals(self) -> Residuals:
        if not self.numbers:
            return Residuals(*[math.nan] * 6)
        found = self._residuals
        mean = float(np.average(found.means, weights=found.counts))
        variance = float((found.spreads + found.counts * (found.means - mean) ** 2).sum()) / self.numbers
        return Residuals(
            mean,
            math.sqrt(variance),
            math.hypot(math.sqrt(variance), mean),
            self._absolute / self.numbers,
            self._largest,
            self._r2(),
        )

    def _r2(self) -> float:
        found, targets = self._residuals, self._targets
        # more than constant float64 targets do by the rounding of their mean
        varied = targets.spreads > targets.counts * (1e-14 * targets.means) ** 2
        squares = found.spreads + found.counts * found.means**2
        return float((1 - squares[varied] / targets.spreads[varied]).mean()) if varied.any() else math.nan
