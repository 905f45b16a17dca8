"""Draws the curves of a run with Pillow: a panel per metric, as a PNG file."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from extras.pen import BLACK, COLOURS, GREY, SCALE, Axis, Box, Point, antialiased, axis_of, grid, png, write
from extras.records import RATES, Record, best_of, charts, needs_log_scale
from utils.text import number, number_or_dash

# in pixels
PANEL = (500, 300)
LEFT, RIGHT, TOP, BOTTOM = 74, 18, 46, 34  # around the axes
HEADER = 34
MOST_DOTS = 25  # maximum number of marked points on a curve


class Chart(NamedTuple):
    """The content of a panel."""

    name: str
    epochs: Sequence[float]
    lines: dict[str, list[float | None]]
    """The values of each line by label; None: a gap."""
    best: tuple[int, float] | None
    """Index and value of the marked point."""


def draw(records: Sequence[Record], *, title: str, monitor: str | None = None) -> bytes:
    """The curves as a PNG file. records: the lines of metrics.jsonl, at least one; non-numbers are gaps.

    monitor: "min NAME" or "max NAME", whose best epoch is marked.
    """
    panels = {name: lines for name, lines in charts(records).items() if name != RATES or _varies(records, lines)}
    epochs = [float(record.get("epoch") or 0) for record in records]
    columns = min(len(panels), 2) or 1
    rows = math.ceil(len(panels) / columns)
    image = Image.new("RGB", (columns * PANEL[0], HEADER + max(rows, 1) * PANEL[1]), "white")
    pen = ImageDraw.Draw(image)
    write(pen, (14, 10), title, size=15, longest=52 * columns)
    for place, (name, lines) in enumerate(panels.items()):
        corner = place % columns * PANEL[0], HEADER + place // columns * PANEL[1]
        values = {label: [_finite(record.get(key)) for record in records] for label, key in lines.items()}
        marked = next((label for label, key in lines.items() if monitor and key == monitor.split()[1]), None)
        best = best_of(values[marked], monitor) if marked and monitor else None
        title = f"{name} (end of epoch)" if name == RATES else name  # of a schedule by steps, the rest is not shown
        _panel(image, corner, Chart(title, epochs, values, best))
    return png(image)


def _varies(records: Sequence[Record], lines: dict[str, str]) -> bool:
    return any(len({record.get(key) for record in records}) > 1 for key in lines.values())


def _finite(value: object) -> float | None:
    """Drop numbers too large for the arithmetic of an axis; those too small become 0."""
    if not isinstance(value, (int, float)) or not abs(value) < 1e200:
        return None
    return float(value) if abs(value) > 1e-200 else 0.0


def _panel(image: Image.Image, corner: tuple[int, int], chart: Chart) -> None:
    pen = ImageDraw.Draw(image)
    left, top = corner[0] + LEFT, corner[1] + TOP
    right, bottom = corner[0] + PANEL[0] - RIGHT, corner[1] + PANEL[1] - BOTTOM
    present = [value for line in chart.lines.values() for value in line if value is not None]
    across, up = Axis(min(chart.epochs), max(chart.epochs)), axis_of(present, log=needs_log_scale(present))
    if across.low == across.high:
        across = Axis(across.low - 0.5, across.high + 0.5)
    grid(pen, (left, top, right, bottom), across, up, size=11, whole=True)
    write(pen, (right, bottom + 20), "epoch", size=11, colour=GREY, anchor="rt")
    _curves(image, (left, top, right, bottom), across, up, chart)
    pen.line([(left, top), (left, bottom), (right, bottom)], fill=GREY)
    _captions(pen, (left, top), chart)
    if not present:
        write(pen, ((left + right) / 2, (top + bottom) / 2), "no finite value", size=12, colour=GREY, anchor="mm")


def _captions(pen: ImageDraw.ImageDraw, corner: tuple[int, int], chart: Chart) -> None:
    """Above the axes, the name and, below it, each line's label in its colour with its last value."""
    left, top = map(float, corner)
    end = write(pen, (left, top - 41), chart.name, size=13, longest=30)
    if chart.best is not None:
        place, value = chart.best
        about = f"best {number(value)} in epoch {chart.epochs[place]:.0f}"
        write(pen, (end + 12, top - 39), about, size=11, colour=GREY)
    x = left
    for place, (label, line) in enumerate(chart.lines.items()):
        text = f"{label} {number_or_dash(line[-1])}"
        if x + 7 * len(text) > left + PANEL[0] - LEFT - RIGHT:
            write(pen, (x, top - 22), "…", size=11, colour=GREY)
            break
        x = write(pen, (x, top - 22), text, size=11, colour=COLOURS[place % len(COLOURS)]) + 14


def _curves(image: Image.Image, box: Box, across: Axis, up: Axis, chart: Chart) -> None:
    left, top, right, bottom = box
    around = 6  # dots at the edge of the axes extend beyond it

    def place(epoch: float, value: float) -> Point:
        x = around + (right - left) * across.share(epoch)
        y = around + (bottom - top) * (1 - up.share(value))
        return x * SCALE, y * SCALE

    with antialiased(image, (left - around, top - around, right + around, bottom + around)) as pen:
        for line, colour in zip(chart.lines.values(), itertools.cycle(COLOURS)):
            for part in _parts(chart.epochs, line):
                points = [place(*point) for point in part]
                pen.line(points, fill=colour, width=5, joint="curve")
                for x, y in points if len(chart.epochs) <= MOST_DOTS or len(points) == 1 else ():
                    pen.ellipse((x - 8, y - 8, x + 8, y + 8), fill=colour)
        if chart.best is not None:
            x, y = place(chart.epochs[chart.best[0]], chart.best[1])
            pen.ellipse((x - 14, y - 14, x + 14, y + 14), outline=BLACK, width=4)


def _parts(epochs: Sequence[float], line: Sequence[float | None]) -> Iterator[list[Point]]:
    """The parts of a line between gaps."""
    pairs = zip(epochs, line, strict=True)
    for there, part in itertools.groupby(pairs, lambda pair: pair[1] is not None):
        if there:
            yield [(epoch, value) for epoch, value in part if value is not None]
