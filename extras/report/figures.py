"""The figures of a report that TensorBoard does not show, or not with all numbers."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from extras.drawing import GREY, MAP, drawn, labels, plain
from extras.pen import COLOURS, opacity
from extras.report.statistics import Classification, Counts, Doubles, Regression

MOST_WRITTEN = 30
"""Maximum number of classes for which a confusion matrix's cells have room for numbers."""


@drawn
def confusion_matrix(counts: Counts, names: Sequence[str]) -> Figure:
    """counts: int64 (C, C), true by predicted. Colours show fractions of a true class.

    For up to 30 classes, cells have counts and percentages, and totals are shown beside them.
    """
    classes = len(counts)
    cell = 0.52 if classes <= 14 else 0.3 if classes <= 30 else 0.1  # inches
    side = min(max((classes + 1) * cell, 1.5), 11)
    shown = labels(names)
    text = 9 if classes <= 14 else 7 if classes <= 30 else 5
    margin = 0.9 + max(map(len, shown)) * text / 72 * 0.62
    figure = Figure(figsize=(max(side + margin + 0.6, 4), max(side + margin, 3.2)))
    axes = figure.add_subplot()
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    # square root, so that a confusion of 5 % is visible
    image = axes.imshow(share, cmap=MAP, norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    every = math.ceil(classes / 100)  # with more classes than lines of text, some are not labelled
    places = range(0, classes, every)
    ticks = [shown[place] for place in places]
    if classes <= MOST_WRITTEN:
        _write_counts(axes, counts, share, size=text - 1 if classes <= 14 else 5)
        axes.set(xlim=(-0.5, classes + 0.5), ylim=(classes + 0.5, -0.5))
        places, ticks = range(classes + 1), [*ticks, "total"]
    axes.set_xticks(places, ticks, rotation=0 if classes == 1 else 90 if classes > 14 else 45, fontsize=text)
    for label in axes.get_xticklabels() if 1 < classes <= 14 else []:
        label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(places, ticks, fontsize=text)
    axes.tick_params(length=0 if classes <= 100 else 2)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted class", ylabel="true class", title="Confusion matrix")
    bar = figure.colorbar(image, ax=axes, shrink=min(1, 4 / side + 0.3), aspect=30, pad=0.02)
    bar.set_label("fraction of the true class", fontsize=9)
    bar.outline.set_visible(False)
    return figure


def _write_counts(axes: Axes, counts: Counts, share: Doubles, *, size: float) -> None:
    """Write counts with percentages of the true class, and totals of rows and columns outside."""
    colour_of = ScalarMappable(PowerNorm(0.5, 0, 1), MAP)
    for row, column in np.argwhere(counts):
        dark = np.dot(colour_of.to_rgba(share[row, column])[:3], (0.299, 0.587, 0.114)) < 0.55
        percent = f"{share[row, column]:.0%}" if share[row, column] >= 0.005 else "<1%"
        text = f"{_short_count(counts[row, column])}\n{percent}"
        _write(axes, column, row, text, size, "white" if dark else "black")
    classes = len(counts)
    for place in range(classes):
        _write(axes, classes, place, _short_count(int(counts[place].sum())), size, GREY)
        _write(axes, place, classes, _short_count(int(counts[:, place].sum())), size, GREY)
    _write(axes, classes, classes, _short_count(int(counts.sum())), size, "black")


def _write(axes: Axes, x: float, y: float, text: str, size: float, colour: str) -> None:
    axes.text(x, y, text, ha="center", va="center", fontsize=size, color=colour, linespacing=1.0)


def _short_count(count: int) -> str:
    """A count in at most five characters."""
    return str(count) if count < 10_000 else f"{count / 1e3:.0f}k" if count < 1e6 - 500 else f"{count / 1e6:.3g}M"


@drawn
def reliability(found: Classification) -> Figure:
    """Accuracy by confidence, and a histogram of the confidence."""
    figure = Figure(figsize=(5, 5.4))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    count, confidence, right = found.bins
    there = count > 0
    edges = np.arange(found.BINS) / found.BINS
    width = 1 / found.BINS
    upper.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="perfect calibration")
    upper.bar(edges[there], (right / np.maximum(count, 1))[there], width, align="edge", color=COLOURS[4], ec="white")
    means = (confidence / np.maximum(count, 1))[there], (right / np.maximum(count, 1))[there]
    upper.plot(*means, "o", color=COLOURS[0], markersize=4, label="mean of each bin")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy (fraction correct)")
    upper.set_title(f"Expected calibration error {found.calibration_error():.1%}, accuracy {found.accuracy():.1%}")
    upper.legend(loc="upper left", frameon=True, edgecolor="none")
    lower.bar(edges, 100 * count / max(found.samples, 1), width, align="edge", color=COLOURS[0], ec="white")
    lower.set(xlabel="confidence (probability of the predicted class)", ylabel="% of samples")
    plain(upper)
    plain(lower)
    return figure


@drawn
def residuals(found: Regression) -> Figure:
    """Residuals by predicted value, and their histogram."""
    figure = Figure(figsize=(7, 4.2))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1])
    predicted, true = found.pairs
    values = found.residuals()
    left.axhline(0, color=GREY, linestyle="--")
    left.plot(predicted, predicted - true, "o", color=COLOURS[0], markersize=3, alpha=opacity(len(true)), mec="none")
    left.set(xlabel="predicted value (target units)", ylabel="predicted - true (target units)")
    left.set_title(f"Residuals: mean {values.mean:.3g}, standard deviation {values.deviation:.3g}\n{found.extent()}")
    if len(true):
        right.hist(predicted - true, bins=40, orientation="horizontal", color=COLOURS[0])
    right.axhline(0, color=GREY, linestyle="--")
    right.set(xlabel="number of values")
    plain(left)
    plain(right)
    return figure
