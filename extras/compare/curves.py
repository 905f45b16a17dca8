"""The curves of several runs in one figure."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from extras.drawing import COLOURS, drawn, labels, new_figure, plain

STYLES = ("-", "--", ":", "-.")


class Curve(NamedTuple):
    """One line of a chart."""

    name: str
    steps: Sequence[float]
    values: Sequence[float | None]
    """None where there is none."""


@drawn
def curves(charts: dict[str, Sequence[Curve]], *, x: str = "epoch") -> Figure:
    """Charts below each other, one line per run. charts: by the y axis's label and, in further lines, the title."""
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
    """A logarithmic scale where a value is a thousand times another: on a linear one, most of a curve looks flat."""
    if values and min(values) > 0 and max(values) > 1000 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.grid(True)
    else:
        plain(axes)
