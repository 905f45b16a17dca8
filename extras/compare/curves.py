"""The curves of several runs in one figure."""

import math
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from extras.compare.runs import Run, RunGroup
from extras.drawing import BESIDE, drawn, label_axes, labels
from extras.pen import COLOURS
from extras.records import RATES, TRAIN, VALID, charts

MARKERS = ("o", "^")
"""Each is used with all colours."""
MOST_RUNS = len(COLOURS) * len(MARKERS)
MOST_PANELS = 40
"""matplotlib takes minutes for 200 below each other."""


@drawn
def curves(groups: Sequence[RunGroup]) -> Figure:
    """A chart per metric, starting with the one used for ranking: validation, and training dashed."""
    panels = [(group, name, keys) for group in groups for name, keys in _charts(group).items()][:MOST_PANELS]
    figure = Figure(figsize=(11, 0.5 + 3.2 * len(panels)))
    before = None
    for row, (group, name, keys) in enumerate(panels, start=1):
        axes = figure.add_subplot(len(panels), 1, row)
        values: list[float] = []
        for place, run in enumerate(group.runs[:MOST_RUNS]):
            about = [group.short_name(run), run.note, *group.settings(run, group.keys[:2])]
            legend = "  ".join(labels([text], longest=24)[0] for text in about if text)
            for label, key in keys.items():
                values += _draw(axes, run, key, place, legend, dashed=label == TRAIN and len(keys) > 1)
        label_axes(axes, "epoch", labels([name], longest=40)[0], values)
        if group is not before:
            title = [group.title, *textwrap.wrap(group.which, 70)]
            if any(len(lines) > 1 for lines in _charts(group).values()):
                title.append("validation; training is dashed")
            if len(group.runs) > MOST_RUNS:
                title.append(f"the best {MOST_RUNS} of {len(group.runs)} runs")
            axes.set_title("\n".join(labels(title, longest=80)))
            axes.legend(**BESIDE)
        before = group
    return figure


def _charts(group: RunGroup) -> dict[str, dict[str, str]]:
    """The keys of each chart's lines by label."""
    found = charts([record for run in group.runs[:MOST_RUNS] for record in run.records])
    found.pop(RATES, None)
    monitored = group.monitor.split()[1]
    ranked = sorted(found.items(), key=lambda item: monitored not in item[1].values())
    return {name: {label: key for label, key in keys.items() if label in (TRAIN, VALID)} for name, keys in ranked}


def _draw(axes: Axes, run: Run, key: str, place: int, legend: str, *, dashed: bool) -> list[float]:
    """Draw a line, and return its values. place: determines colour and marker."""
    values = [math.nan if value is None else value for value in run.values(key)]
    axes.plot(
        [record.get("epoch") or 0 for record in run.records],
        values,
        "--" if dashed else "-",
        color=COLOURS[place % len(COLOURS)],
        marker=MARKERS[place // len(COLOURS)],
        markersize=3,
        markevery=max(1, len(values) // 10),
        linewidth=0.9 if dashed else 1.6,
        label=None if dashed else legend,
    )
    return values
