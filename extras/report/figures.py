"""The figures of a report that TensorBoard does not show, or not with all numbers."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from extras.drawing import GREY, drawn
from extras.pen import COLOURS, opacity
from extras.report.statistics import Classification, Regression


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
    upper.grid(True)
    lower.grid(True)
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
    left.grid(True)
    left.locator_params(axis="x", nbins=5)  # room for labels such as 2019.25
    right.grid(True)
    right.xaxis.set_major_locator(MaxNLocator(3, integer=True, min_n_ticks=1))
    return figure
