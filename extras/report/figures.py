"""The pictures of an evaluation, as figures of matplotlib that stand for themselves."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from extras.report.classification import Classification, Counts, Mistake
from extras.report.drawing import COLOURS, GREY, MAP, drawn, labels, new_figure, plain
from extras.report.regression import Doubles, Regression
from utils.text import number

STYLES = ("-", "--", ":", "-.")


class Curve(NamedTuple):
    """One line of a chart."""

    name: str
    steps: Sequence[float]
    values: Sequence[float | None]
    """None where there is none."""


@drawn
def confusion_matrix(counts: Counts, names: Sequence[str], *, title: str = "Confusion matrix") -> Figure:
    """counts: int64 of (C, C), true by predicted. Colours are shares of a true class; counts stand where they fit."""
    classes = len(counts)
    cell = 0.52 if classes <= 14 else 0.3 if classes <= 30 else 0.1  # inches
    side = min(max(classes * cell, 1.5), 11)
    shown = labels(names)
    text = 9 if classes <= 14 else 7 if classes <= 30 else 5
    margin = 0.9 + max(map(len, shown)) * text / 72 * 0.62
    figure = new_figure(max(side + margin + 0.6, 4), max(side + margin, 3.2))
    axes = figure.add_subplot()
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    # the root of the share, or a class that is taken for another once in twenty times would not be seen
    image = axes.imshow(share, cmap=MAP, norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    every = math.ceil(classes / 100)  # with more classes than lines of text, some go without a name
    places = range(0, classes, every)
    ticks = [shown[place] for place in places]
    axes.set_xticks(places, ticks, rotation=0 if classes == 1 else 90 if classes > 14 else 45, fontsize=text)
    for label in axes.get_xticklabels() if 1 < classes <= 14 else []:
        label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(places, ticks, fontsize=text)
    axes.tick_params(length=0 if classes <= 100 else 2)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    if classes <= 30:
        _write_counts(axes, counts, share, size=text - 0.5 if classes <= 14 else 5.5)
    bar = figure.colorbar(image, ax=axes, shrink=min(1, 4 / side + 0.3), aspect=30, pad=0.02)
    bar.set_label("share of the true class's samples", fontsize=9)
    bar.outline.set_visible(False)
    return figure


def _write_counts(axes: Axes, counts: Counts, share: Doubles, *, size: float) -> None:
    for row, column in np.argwhere(counts):
        count = int(counts[row, column])
        text = str(count) if count < 10_000 else f"{count / 1000:.0f}k"
        colour = "black" if share[row, column] > 0.3 else "white"
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)


@drawn
def mistakes_grid(mistakes: Sequence[Mistake], names: Sequence[str], *, columns: int = 6) -> Figure | None:
    """The mistakes that have pictures, the worst first; None if none has."""
    shown, names = [mistake for mistake in mistakes if mistake.picture is not None], labels(names, longest=16)
    if not shown:
        return None
    columns = max(4, min(columns, len(shown)))
    rows = math.ceil(len(shown) / columns)
    figure = new_figure(columns * 1.5, rows * 2.0 + 0.45)
    axes = figure.add_subplot()  # one for all: each costs 10 ms
    for place, mistake in enumerate(shown):
        left, top = place % columns * 1.5, place // columns * 2.0
        _paste(axes, mistake, left + 0.15, top + 0.36, side=1.2)
        says = f"{names[mistake.predicted]} {mistake.probability:.0%}"
        axes.text(left + 0.75, top + 0.3, says, ha="center", fontsize=9, color=COLOURS[1])
        axes.text(left + 0.75, top + 1.74, f"is {names[mistake.true]}", ha="center", fontsize=9)
        axes.text(left + 0.75, top + 1.91, f"sample {mistake.sample}", ha="center", fontsize=7, color=GREY)
    axes.set(xlim=(0, columns * 1.5), ylim=(rows * 2.0, 0), aspect="equal")
    axes.set_axis_off()
    axes.set_title("Most confident mistakes: above what was predicted, below what it is", fontsize=10)
    return figure


def _paste(axes: Axes, mistake: Mistake, left: float, top: float, *, side: float) -> None:
    """Draw a picture as large as it fits into a square."""
    assert mistake.picture is not None
    height, width, channels = mistake.picture.shape
    scale = side / max(height, width)
    x, y = left + (side - width * scale) / 2, top + (side - height * scale) / 2
    axes.imshow(
        mistake.picture[:, :, 0] if channels == 1 else mistake.picture,
        cmap="gray", vmin=0, vmax=255, interpolation="nearest",
        extent=(x, x + width * scale, y + height * scale, y),
    )  # fmt: skip


@drawn
def reliability(found: Classification) -> Figure:
    """Accuracy by confidence, and how many samples had each."""
    figure = new_figure(5, 5.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    count, confidence, right = found.bins
    there = count > 0
    edges = np.arange(found.BINS) / found.BINS
    width = 1 / found.BINS
    upper.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="as confident as it is right")
    upper.bar(edges[there], (right / np.maximum(count, 1))[there], width, align="edge", color=COLOURS[4], ec="white")
    means = (confidence / np.maximum(count, 1))[there], (right / np.maximum(count, 1))[there]
    upper.plot(*means, "o", color=COLOURS[0], markersize=4, label="mean of a bin")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy (share that is right)")
    upper.set_title(f"Calibration: expected error {found.calibration_error():.1%}, accuracy {found.accuracy():.1%}")
    upper.legend(loc="upper left", frameon=True, edgecolor="none")
    lower.bar(edges, 100 * count / max(found.samples, 1), width, align="edge", color=COLOURS[0], ec="white")
    lower.set(xlabel="confidence (probability of the predicted class)", ylabel="% of samples")
    plain(upper)
    plain(lower)
    return figure


@drawn
def scatter(found: Regression) -> Figure:
    """Predicted over true values, with the line where they are equal."""
    figure = new_figure(5.2, 5)
    axes = figure.add_subplot()
    predicted, true = found.pairs
    if len(true):
        across, up, both = _ends(true), _ends(predicted), _ends(found.pairs)
        axes.plot(both, both, color=GREY, linestyle="--", label="predicted = true")
        axes.plot(true, predicted, "o", color=COLOURS[0], markersize=3, alpha=_opacity(len(true)), mec="none")
        if 0.2 < (up[1] - up[0]) / (across[1] - across[0]) < 5:
            axes.set(xlim=both, ylim=both, aspect="equal")
        else:  # on equal axes, one of the two would be a line
            axes.set(xlim=across, ylim=up)
        axes.legend(loc="upper left")
    values = found.residuals()
    axes.set(xlabel="true value (in units of the target)", ylabel="predicted value (in units of the target)")
    axes.set_title(f"R² {number(values.r2)}, root mean squared error {number(values.rmse)}\n{_of(found)}")
    plain(axes)
    return figure


@drawn
def residuals(found: Regression) -> Figure:
    """What is left over, by predicted value and by frequency."""
    figure = new_figure(7, 4.2)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1])
    predicted, true = found.pairs
    values = found.residuals()
    left.axhline(0, color=GREY, linestyle="--")
    left.plot(predicted, predicted - true, "o", color=COLOURS[0], markersize=3, alpha=_opacity(len(true)), mec="none")
    left.set(xlabel="predicted value (in units of the target)", ylabel="predicted - true (in units of the target)")
    left.set_title(f"Residuals: mean {values.mean:.3g}, standard deviation {values.deviation:.3g}\n{_of(found)}")
    if len(true):
        right.hist(predicted - true, bins=40, orientation="horizontal", color=COLOURS[0])
    right.axhline(0, color=GREY, linestyle="--")
    right.set(xlabel="number of values")
    plain(left)
    plain(right)
    return figure


@drawn
def curves(charts: dict[str, Sequence[Curve]], *, x: str = "epoch") -> Figure:
    """One chart below the other, by what its y axis is called and, in further lines, its title; one line a run."""
    figure = new_figure(8.5, 0.5 + 3.2 * len(charts))
    for row, (name, lines) in enumerate(charts.items(), start=1):
        axes = figure.add_subplot(len(charts), 1, row)
        for place, line in enumerate(lines):
            style = STYLES[place // len(COLOURS) % len(STYLES)]
            values = [math.nan if value is None else value for value in line.values]
            marker = "o" if len(values) <= 25 else None
            axes.plot(
                line.steps, values, style, color=COLOURS[place % len(COLOURS)], marker=marker, ms=3,
                linewidth=1.4 + 0.8 * max(0, min(len(lines), 4) - 1 - place),  # where two are the same, both are seen
                label="\n".join(labels([part], longest=32)[0] for part in line.name.split("\n")),
            )  # fmt: skip
        label, *above = name.split("\n")
        axes.set(xlabel=x, ylabel=labels([label], longest=40)[0])
        axes.set_title("\n".join(labels([text], longest=80)[0] for text in above))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _scale(axes, [value for line in lines for value in line.values if value is not None])
        if lines:
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), fontsize=8)
    return figure


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic scale where a value is a thousand times another: on a linear one, most of a curve were flat."""
    if values and min(values) > 0 and max(values) > 1000 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.grid(True)
    else:
        plain(axes)


def _ends(values: Doubles) -> tuple[float, float]:
    """From where to where an axis goes, with a little room."""
    low, high = float(values.min()), float(values.max())
    room = (high - low) * 0.04 or max(abs(high) * 0.04, 1e-6)
    return low - room, high + room


def _opacity(points: int) -> float:
    return max(0.2, min(0.8, 400 / max(points, 1)))


def _of(found: Regression) -> str:
    kept = found.pairs.shape[1]
    return f"{found.numbers:,} values" if kept == found.numbers else f"{kept:,} of {found.numbers:,} values are drawn"
