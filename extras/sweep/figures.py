"""The figures of a sweep's report."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from extras.drawing import BESIDE, GREY, MAP, drawn, label_axes, labels, scale_values
from extras.pen import COLOURS
from extras.records import needs_log_scale
from extras.sweep.spaces import Space
from extras.sweep.sweep_folder import Spec, Trial

MOST_LABELS = 12
WIDE = 30  # values that differ by this factor are shown on a logarithmic scale


@drawn
def history(spec: Spec, trials: Sequence[Trial]) -> Figure:
    """The value of each trial in order of start, and the best so far."""
    figure = Figure(figsize=(8.5, 3.6))
    axes = figure.add_subplot()
    for state, face, text in (("complete", COLOURS[0], "complete"), ("pruned", "none", "pruned")):
        chosen = [trial for trial in trials if trial.state == state]
        if chosen:
            points = [trial.number for trial in chosen], [trial.value for trial in chosen]
            axes.scatter(*points, s=28, facecolors=face, edgecolors=COLOURS[0], label=text, zorder=3)
    values = [trial.value if trial.state == "complete" else math.nan for trial in trials]
    best = (np.fmin if spec.minimise else np.fmax).accumulate(values)  # NaN only before the first value
    axes.step([trial.number for trial in trials], best, where="post", color=COLOURS[1], label="best so far")
    for trial in trials:
        if trial.state == "failed":
            axes.axvline(trial.number, color=GREY, linestyle=":", zorder=0)
    label_axes(axes, "trial", f"best {spec.value_name}", [trial.value for trial in trials], factor=WIDE)
    axes.legend(**BESIDE)
    return figure


@drawn
def epochs(spec: Spec, ranked: Sequence[Trial]) -> Figure:
    """The monitored value of every trial by epoch, the best ones in colour."""
    figure = Figure(figsize=(8.5, 3.6))
    axes = figure.add_subplot()
    everything: list[float] = []
    for place, trial in reversed(list(enumerate(ranked))):
        values = trial.measured(spec.value_name)
        values = values[: trial.outcome.epochs] if trial.outcome else values
        everything += values
        best = place < 5
        colour = COLOURS[place] if best else "#c8c8c8"
        marker = "o" if len(values) <= 25 else None
        axes.plot(
            range(1, len(values) + 1), values, marker=marker, ms=3, linewidth=1.6 if best else 0.9,
            label=trial.name if best else None, color=colour, zorder=3 if best else 1,
        )  # fmt: skip
    label_axes(axes, "epoch", spec.value_name, everything, factor=WIDE)
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], names[::-1], **BESIDE)
    return figure


@drawn
def importances(shares: Mapping[str, float], spec: Spec) -> Figure:
    """A bar for each key, the most important on top. shares: sum to 1."""
    figure = Figure(figsize=(8.5, 0.8 + 0.4 * len(shares)))
    axes = figure.add_subplot()
    ordered = sorted(shares.items(), key=lambda pair: pair[1])
    bars = axes.barh([spec.short(key) for key, _ in ordered], [share for _, share in ordered], color=COLOURS[0])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set(xlabel="share of the importance", xlim=(0, 1.08 * max(shares.values())))
    return figure


@drawn
def parallel_coordinates(spec: Spec, ranked: Sequence[Trial]) -> Figure:
    """A line for each trial through its values and its result, coloured by the result, the best on top."""
    trials = [trial for trial in ranked if math.isfinite(trial.value)]
    results = [trial.value for trial in trials]
    wide = needs_log_scale(results, WIDE)
    norm = (LogNorm if wide else Normalize)(min(results), max(results))
    figure = Figure(figsize=(8.5, 4.2))
    axes = figure.add_subplot()
    map_ = colormaps[MAP]
    colours = ScalarMappable(norm, map_.reversed() if spec.minimise else map_)
    columns = [_places(space, [trial.values[space.key] for trial in trials]) for space in spec.spaces]
    result_scale = np.log(results) if wide else np.asarray(results)
    columns.append(_normalised(result_scale, float(result_scale.min()), float(result_scale.max())))
    for index in reversed(range(len(trials))):
        line = [column[index] for column in columns]
        axes.plot(
            line,
            color=tuple(colours.to_rgba(np.asarray(results[index]))),
            linewidth=2.2 if index == 0 else 1.0,
            alpha=0.9,
        )
    for place, space in enumerate(spec.spaces):
        axes.axvline(place, color=GREY, linewidth=0.8)
        for at, text in _ticks(space):
            behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}  # of it are lines
            axes.text(place + 0.02, at, labels([text], longest=12)[0], fontsize=8, va="center", bbox=behind, zorder=4)
    names = [*map(spec.short, spec.keys), f"best {spec.value_name}"]
    axes.axvline(len(names) - 1, color=GREY, linewidth=0.8)
    axes.set(xticks=range(len(names)), xticklabels=labels(names, longest=22), yticks=[], ylim=(-0.05, 1.05))
    axes.spines[["left", "bottom"]].set_visible(False)
    # the default formatter of a logarithmic scale needs mathematical text
    bar = figure.colorbar(colours, ax=axes, label=f"best {spec.value_name}", format="{x:g}")
    bar.ax.yaxis.set_minor_formatter("")
    return figure


@drawn
def slices(spec: Spec, trials: Sequence[Trial]) -> Figure:
    """The result over each key separately; later trials are darker."""
    trials = [trial for trial in trials if math.isfinite(trial.value)]
    results = [trial.value for trial in trials]
    columns = min(3, len(spec.spaces))
    rows = math.ceil(len(spec.spaces) / columns)
    figure = Figure(figsize=(8.5, 0.5 + 2.8 * rows))
    for place, space in enumerate(spec.spaces):
        axes = figure.add_subplot(rows, columns, place + 1)
        texts = [trial.values[space.key] for trial in trials]
        if space.finite:
            positions = [float(space.values.index(text)) for text in texts]
            shown = range(0, len(space.values), math.ceil(len(space.values) / MOST_LABELS))
            axes.set_xticks(list(shown), labels([space.values[index] for index in shown], longest=12))
            axes.set_xlim(-0.5, len(space.values) - 0.5)
        else:
            positions = [float(text) for text in texts]
            if space.log:
                axes.set_xscale("log")
                axes.xaxis.set_major_formatter("{x:g}")  # the default one needs mathematical text
                axes.xaxis.set_minor_formatter("")
        axes.scatter(
            positions, results, c=[trial.number for trial in trials], cmap="Blues", vmin=-len(trials) / 2, s=26,
            edgecolors=COLOURS[0], linewidths=0.5,
        )  # fmt: skip
        axes.set(xlabel=labels([spec.short(space.key)], longest=28)[0])
        if place % columns == 0:
            axes.set(ylabel=f"best {spec.value_name}")
        scale_values(axes, results, factor=WIDE)
    return figure


def _places(space: Space, texts: Sequence[str]) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Positions of values on an axis from 0 to 1."""
    if space.finite:
        indices = np.asarray([space.values.index(text) for text in texts], dtype=np.float64)
        return _normalised(indices, 0.0, len(space.values) - 1.0)
    values = np.asarray([float(text) for text in texts])
    if space.log:
        return _normalised(np.log(values), math.log(space.low), math.log(space.high))
    return _normalised(values, space.low, space.high)


def _ticks(space: Space) -> list[tuple[float, str]]:
    """Labels for an axis from 0 to 1."""
    if space.finite:
        last = len(space.values) - 1
        every = math.ceil(len(space.values) / MOST_LABELS)
        return [(index / last if last else 0.5, space.values[index]) for index in range(0, last + 1, every)]
    middle = math.sqrt(space.low * space.high) if space.log else (space.low + space.high) / 2
    return [(at, f"{value:.3g}") for at, value in ((0.0, space.low), (0.5, middle), (1.0, space.high))]


def _normalised(
    values: "np.ndarray[tuple[int], np.dtype[np.float64]]", low: float, high: float
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    return (values - low) / (high - low) if high > low else np.full(len(values), 0.5)
