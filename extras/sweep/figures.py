"""The figures of a sweep's report."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from extras.drawing import BESIDE, GREY, MAP, drawn, label_axes, labels, scale_values
from extras.pen import COLOURS
from extras.sweep.spaces import Space
from extras.sweep.sweep_folder import Spec, Trial

MOST_LABELS = 12
WIDE = 30  # values that differ by this factor are shown on a logarithmic scale


@drawn
def history(spec: Spec, trials: Sequence[Trial]) -> Figure:
    """The value of each trial in order of start, and the best so far."""
    figure = Figure(figsize=(8.5, 3.6))
    axes = figure.add_subplot()
    for state, face in (("complete", COLOURS[0]), ("pruned", "none")):
        chosen = [trial for trial in trials if trial.state == state]
        if chosen:
            points = [trial.number for trial in chosen], [trial.value for trial in chosen]
            axes.scatter(*points, s=28, facecolors=face, edgecolors=COLOURS[0], label=state, zorder=3)
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
    """A line for each trial through its values to its rank, the best on top and darkest."""
    figure = Figure(figsize=(8.5, 4.2))
    axes = figure.add_subplot()
    last = max(1, len(ranked) - 1)
    for rank, trial in reversed(list(enumerate(ranked))):
        line = [*(_place(space, trial.values[space.key]) for space in spec.spaces), 1 - rank / last]
        axes.plot(line, color=colormaps[MAP](rank / last), linewidth=1.0 if rank else 2.2, alpha=0.9)
    for place, space in enumerate(spec.spaces):
        axes.axvline(place, color=GREY, linewidth=0.8)
        for at, text in _ticks(space):
            behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}  # of it are lines
            axes.text(place + 0.02, at, text, fontsize=8, va="center", bbox=behind, zorder=4)
    axes.axvline(len(spec.spaces), color=GREY, linewidth=0.8)
    names = [*map(spec.short, spec.keys), f"rank by {spec.value_name}"]
    axes.set(xticks=range(len(names)), xticklabels=labels(names, longest=22), yticks=[], ylim=(-0.05, 1.05))
    axes.spines[["left", "bottom"]].set_visible(False)
    return figure


@drawn
def slices(spec: Spec, trials: Sequence[Trial]) -> Figure:
    """The result over each key separately; later trials are darker."""
    results = [trial.value for trial in trials]
    columns = min(3, len(spec.spaces))
    rows = math.ceil(len(spec.spaces) / columns)
    figure = Figure(figsize=(8.5, 0.5 + 2.8 * rows))
    for place, space in enumerate(spec.spaces):
        axes = figure.add_subplot(rows, columns, place + 1)
        positions = [_place(space, trial.values[space.key]) for trial in trials]
        axes.scatter(
            positions, results, c=[trial.number for trial in trials], cmap="Blues", vmin=-len(trials) / 2, s=26,
            edgecolors=COLOURS[0], linewidths=0.5,
        )  # fmt: skip
        ticks = _ticks(space)
        axes.set_xticks([at for at, _ in ticks], [text for _, text in ticks])
        axes.set(xlabel=labels([spec.short(space.key)], longest=28)[0], xlim=(-0.1, 1.1))
        if place % columns == 0:
            axes.set(ylabel=f"best {spec.value_name}")
        scale_values(axes, results, factor=WIDE)
    return figure


def _place(space: Space, text: str) -> float:
    """The position of a value on an axis from 0 to 1."""
    if space.finite:
        return space.values.index(text) / max(1, len(space.values) - 1)
    scale = math.log if space.log else float
    return (scale(float(text)) - scale(space.low)) / (scale(space.high) - scale(space.low))


def _ticks(space: Space) -> list[tuple[float, str]]:
    """Positions on that axis, with their labels."""
    if space.finite:
        shown = space.values[:: math.ceil(len(space.values) / MOST_LABELS)]
        return [(_place(space, text), label) for text, label in zip(shown, labels(shown, longest=12), strict=True)]
    middle = math.sqrt(space.low * space.high) if space.log else (space.low + space.high) / 2
    return [(_place(space, str(value)), f"{value:.3g}") for value in (space.low, middle, space.high)]
