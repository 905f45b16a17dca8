"""Pictures of an evaluation, for TensorBoard and the report, drawn with Pillow: importing matplotlib takes 0.3 s."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from extras.pen import BLACK, COLOURS, GREY, SCALE, antialiased, axis_of, grid, legible, opacity, png, write
from extras.picture_grid import Cell, file_label, picture_grid
from extras.report.statistics import Counts, Mistake, Regression
from utils.text import number

# in pixels
MATRIX = 520
MARGIN = 8
PLOT = 440
# viridis at 0, 1/9 ... 1
MAP = np.array([
    (68, 1, 84), (72, 40, 120), (62, 73, 137), (49, 104, 142), (38, 130, 142), (31, 158, 137), (53, 183, 121),
    (110, 206, 88), (181, 222, 43), (253, 231, 37),
])  # fmt: skip


def confusion_matrix(counts: Counts, names: Sequence[str], *, totals: bool = False) -> bytes:
    """Per cent of each true class (row) by predicted class. counts: int64 (C, C). Above 12 classes, without numbers.

    totals: with counts and totals, up to 30 classes.
    """
    classes = len(counts)
    totals = totals and classes <= 30
    names = _legible(names, longest=10)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cell = min(max(44, MATRIX // classes), 120) if totals else max(1, MATRIX // classes)
    side, size, every = cell * classes, 17 if classes <= 12 else 14, math.ceil(classes / 20)
    whole, small = side + cell * totals, 17 if cell >= 80 else 13
    left, top = 8 * size, 34  # names are shortened to ten letters
    picture = Image.new("RGB", (left + whole + MARGIN, top + whole + left), "white")
    pen = ImageDraw.Draw(picture)
    title = "% of a true class (row) predicted as (column)"
    write(pen, (left + whole, 8), f"samples and {title}" if totals else title, size=17, anchor="ra")
    picture.paste(Image.fromarray(_coloured(share)).resize((side, side), Image.Resampling.NEAREST), (left, top))
    room = max(0, min(MARGIN, size - cell))  # for the first and the last label, which are larger than a small cell
    beside = Image.new("RGB", (left, whole + 2 * room), "white")
    labels = ImageDraw.Draw(beside)
    for place, name in [*list(enumerate(names))[:: 1 if totals else every], *[(classes, "total")] * totals]:
        write(labels, (left - MARGIN, room + (place + 0.5) * cell), name, size=size, anchor="rm")
    picture.paste(beside, (0, top - room))
    below = beside.transpose(Image.Transpose.ROTATE_90)  # the same, read upwards
    picture.paste(below, (left - room, top + whole))
    table = np.block([[counts, counts.sum(1, keepdims=True)], [counts.sum(0), counts.sum()]]) if totals else counts
    for row, column in np.ndindex(table.shape) if totals or classes <= 12 else ():
        x, y, count = left + (column + 0.5) * cell, top + (row + 0.5) * cell, _short(int(table[row, column]))
        if classes in (row, column):
            write(pen, (x, y), count, size=small, colour=GREY, anchor="mm")
        elif counts[row, column]:
            colour = BLACK if share[row, column] > 0.3 else "white"
            percent = str(round(100 * share[row, column]))
            if totals:
                write(pen, (x, y - 8), count, size=small, colour=colour, anchor="mm")
                write(pen, (x, y + 8), f"{percent}%", size=small - 1, colour=colour, anchor="mm")
            else:
                write(pen, (x, y), percent, size=size, colour=colour, anchor="mm")
    return png(picture)


def _short(count: int) -> str:
    """A count in at most five characters."""
    return str(count) if count < 10_000 else f"{count / 1e3:.0f}k" if count < 1e6 - 500 else f"{count / 1e6:.3g}M"


def mistakes(
    found: Sequence[Mistake], names: Sequence[str], files: Sequence[str] | None = None, *, columns: int
) -> bytes | None:
    """The mistakes that have pictures, worst first; None if none has. files: the names of the samples."""
    names = _legible(names, longest=14)
    cells = []
    for sample, true, predicted, probability, picture, _ in found:
        if picture is not None:
            label = f"sample {sample}"
            file = label if files is None else file_label(files[sample], label)
            cells.append(Cell(picture, [f"{names[predicted]} {probability:.0%}"], [f"true: {names[true]}", file]))
    if not cells:
        return None
    title = "Most confident mistakes: predicted class above, true class below"
    return picture_grid(cells, columns=columns, colour=COLOURS[1], title=title)


def scatter(found: Regression) -> bytes:
    """Predicted over true values, with the identity line."""
    predicted, true = found.pairs.tolist()
    across, up, values = axis_of(true), axis_of(predicted), found.residuals()
    if 0.2 < (up.high - up.low) / (across.high - across.low) < 5:  # else one would collapse to a line
        across = up = axis_of(predicted + true)
    left, top = 100, 62
    box = left, top, left + PLOT, top + PLOT
    picture = Image.new("RGB", (left + PLOT + 20, top + PLOT + 56), "white")
    pen = ImageDraw.Draw(picture)
    title = f"R² {number(values.r2)}, root mean squared error {number(values.rmse)}"
    write(pen, (left + PLOT / 2, 8), title, size=15, anchor="ma")
    write(pen, (left + PLOT, top - 22), found.extent(), size=13, colour=GREY, anchor="ra")
    grid(pen, box, across, up, size=13)
    write(pen, (left + PLOT, top + PLOT + 34), "true value (target units)", size=13, anchor="rt")
    write(pen, (MARGIN, top - 22), "predicted value (target units)", size=13)
    low, high = max(across.low, up.low), min(across.high, up.high)
    if low < high:
        ends = [(left + PLOT * across.share(end), top + PLOT * (1 - up.share(end))) for end in (low, high)]
        pen.line(ends, fill=GREY)
        write(pen, (left + 10, top + 8), "line: predicted = true", size=12, colour=GREY)
    radius = 7 if len(true) <= 500 else 4
    colour = f"{COLOURS[0]}{round(255 * opacity(len(true))):02x}"
    with antialiased(picture, box) as dots:
        for along, height in zip(true, predicted, strict=True):
            x, y = across.share(along) * PLOT * SCALE, (1 - up.share(height)) * PLOT * SCALE
            dots.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    pen.rectangle(box, outline=GREY)
    return png(picture)


def _legible(names: Sequence[str], *, longest: int) -> list[str]:
    """Names of classes in letters that a font has, or else their numbers."""
    return [legible(name, size=15, longest=longest, otherwise=f"class {place}") for place, name in enumerate(names)]


def _coloured(share: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Colours of fractions, uint8 (C, C, 3). Their square roots, so that a confusion of 5% is visible."""
    places = np.linspace(0, 1, len(MAP))
    return np.stack([np.interp(np.sqrt(share), places, channel) for channel in MAP.T], -1).round().astype(np.uint8)
