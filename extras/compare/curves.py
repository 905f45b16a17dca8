"""The curves of several runs in one figure."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from extras.drawing import BESIDE, drawn, label_axes, labels
from extras.pen import COLOURS

MARKERS = ("o", "^", "s", "x")
"""Each is used with all colours."""


class Curve(NamedTuple):
    """One line of a chart."""

    name: str
    steps: Sequence[float]
    values: Sequence[float | None]
    """None without a value."""
    run: int = 0
    """Index of its run: determines colour and marker."""
    training: bool = False
    """Drawn thin and dashed, without its own legend entry."""


@drawn
def curves(charts: Sequence[tuple[str, Sequence[Curve]]]) -> Figure:
    """Charts below each other, each with its y-axis label and, on further lines, its title.

    Charts with a title have a legend.
    """
    figure = Figure(figsize=(11, 0.5 + 3.2 * len(charts)))
    for row, (name, lines) in enumerate(charts, start=1):
        axes = figure.add_subplot(len(charts), 1, row)
        for line in sorted(lines, key=lambda line: not line.training):
            _draw(axes, line)
        label, *above = name.split("\n")
        values = [value for line in lines for value in line.values if value is not None]
        label_axes(axes, "epoch", labels([label], longest=40)[0], values)
        axes.set_title("\n".join(labels([text], longest=80)[0] for text in above))
        if above and any(not line.training for line in lines):
            axes.legend(**BESIDE)
    return figure


def _draw(axes: Axes, line: Curve) -> None:
    values = [math.nan if value is None else value for value in line.values]
    axes.plot(
        line.steps, values, "--" if line.training else "-", color=COLOURS[line.run % len(COLOURS)],
        marker=MARKERS[line.run // len(COLOURS) % len(MARKERS)], ms=3 if len(values) <= 25 else 4,
        markevery=1 if len(values) <= 25 else math.ceil(len(values) / 10), alpha=0.7 if line.training else 1,
        # keeps both visible if two coincide
        linewidth=0.9 if line.training else 1.4 + 0.8 * max(0, 3 - line.run),
        label=None if line.training else "  ".join(labels([part], longest=24)[0] for part in line.name.split("\n")),
    )  # fmt: skip
