"""Pictures of an evaluation, for TensorBoard and the report, drawn with Pillow: importing matplotlib takes 0.3 s."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from extras.pen import BLACK, COLOURS, GREY, GRID, Axis, labelled, legible, opacity, png, ticks, write
from extras.picture_grid import Cell, file_label, picture_grid
from extras.report.statistics import Counts, Mistake, Regression
from utils.text import number

# in pixels
MATRIX = 520
MARGIN = 8
PLOT = 440
DOTS = (5, 9)  # diameters at twice the size, of many and of few
# viridis at 0, 1/4 ... 1, as in the report
SCALE = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], np.float64)


def confusion_matrix(counts: Counts, names: Sequence[str]) -> bytes:
    """Per cent of each true class (row) by predicted class. counts: int64 (C, C). Above 12 classes, without numbers."""
    classes = len(counts)
    names = _legible(names, longest=10)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cell = max(1, MATRIX // classes)
    side, size, every = cell * classes, 17 if classes <= 12 else 14, math.ceil(classes / 20)
    left, top = 8 * size, 34  # names are shortened to ten letters
    picture = Image.new("RGB", (left + side + MARGIN, top + side + left), "white")
    pen = ImageDraw.Draw(picture)
    write(pen, (left + side, 8), "% of a true class (row) predicted as (column)", size=17, anchor="ra")
    picture.paste(Image.fromarray(_coloured(share)).resize((side, side), Image.Resampling.NEAREST), (left, top))
    beside = Image.new("RGB", (left, side), "white")
    labels = ImageDraw.Draw(beside)
    for place in range(0, classes, every):
        write(labels, (left - MARGIN, (place + 0.5) * cell), names[place], size=size, anchor="rm")
    picture.paste(beside, (0, top))
    picture.paste(beside.transpose(Image.Transpose.ROTATE_90), (left, top + side))  # the same below, read upwards
    for row, column in np.argwhere(counts) if classes <= 12 else ():
        at = left + (column + 0.5) * cell, top + (row + 0.5) * cell
        colour = BLACK if share[row, column] > 0.3 else "white"
        write(pen, at, str(round(100 * share[row, column])), size=size, colour=colour, anchor="mm")
    return png(picture)


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
    predicted, true = found.pairs
    across, up, values = _axis(true), _axis(predicted), found.residuals()
    if 0.2 < (up.high - up.low) / (across.high - across.low) < 5:  # else one would collapse to a line
        across = up = _axis(found.pairs)
    left, top = 100, 62
    picture = Image.new("RGB", (left + PLOT + 20, top + PLOT + 56), "white")
    pen = ImageDraw.Draw(picture)
    title = f"R² {number(values.r2)}, root mean squared error {number(values.rmse)}"
    write(pen, (left + PLOT / 2, 8), title, size=15, anchor="ma")
    write(pen, (left + PLOT, top - 22), found.extent(), size=13, colour=GREY, anchor="ra")
    for tick, label in labelled(ticks(up)):
        y = top + PLOT * (1 - up.share(tick))
        pen.line([(left, y), (left + PLOT, y)], fill=GRID)
        write(pen, (left - 6, y), label, size=13, colour=GREY, anchor="rm")
    for tick, label in labelled(ticks(across)):
        x = left + PLOT * across.share(tick)
        pen.line([(x, top), (x, top + PLOT)], fill=GRID)
        write(pen, (x, top + PLOT + 6), label, size=13, colour=GREY, anchor="mt")
    write(pen, (left + PLOT, top + PLOT + 34), "true value (target units)", size=13, anchor="rt")
    write(pen, (MARGIN, top - 22), "predicted value (target units)", size=13)
    low, high = max(across.low, up.low), min(across.high, up.high)
    if low < high:
        ends = [(left + PLOT * across.share(end), top + PLOT * (1 - up.share(end))) for end in (low, high)]
        pen.line(ends, fill=GREY)
        write(pen, (left + 10, top + 8), "line: predicted = true", size=12, colour=GREY)
    dots = _dots((true - across.low) / (across.high - across.low), (up.high - predicted) / (up.high - up.low))
    picture.paste(Image.new("RGB", dots.size, COLOURS[0]), (left, top), dots)
    pen.rectangle((left, top, left + PLOT, top + PLOT), outline=GREY)
    return png(picture)


def _axis(values: npt.NDArray[np.float64]) -> Axis:
    """An axis with room for these values."""
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    if high - low > max(1e-9 * max(abs(low), abs(high)), 1e-200):
        room = (high - low) * 0.04
    else:
        room = max(abs(high) * 0.04, 1e-6)
    return Axis(low - room, high + room)


def _dots(across: npt.NDArray[np.float64], down: npt.NDArray[np.float64]) -> Image.Image:
    """How much of each pixel is covered by dots at these fractions of the plot's width and height, as a mask.

    Dots are translucent where there are many.
    """
    dot = DOTS[len(across) <= 500]
    covered = np.zeros((2 * PLOT + dot, 2 * PLOT + dot), np.int64)
    columns, rows = ((2 * PLOT * place).astype(int) for place in (across, down))
    for row, column in np.ndindex(dot, dot):
        if (row - dot // 2) ** 2 + (column - dot // 2) ** 2 <= (dot / 2) ** 2:
            np.add.at(covered, (rows + row, columns + column), 1)
    mask = (255 * (1 - (1 - opacity(len(across))) ** covered)).astype(np.uint8)
    return Image.fromarray(mask[dot // 2 :, dot // 2 :][: 2 * PLOT, : 2 * PLOT]).reduce(2)


def _legible(names: Sequence[str], *, longest: int) -> list[str]:
    """Names of classes in letters that a font has, or else their numbers."""
    return [legible(name, size=15, longest=longest, otherwise=f"class {place}") for place, name in enumerate(names)]


def _coloured(share: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Colours of fractions, uint8 (C, C, 3). Their square roots, so that a confusion of 5% is visible."""
    place = np.sqrt(share) * (len(SCALE) - 1)
    low = np.minimum(place.astype(int), len(SCALE) - 2)
    part = (place - low)[..., None]
    colours: npt.NDArray[np.uint8] = (SCALE[low] * (1 - part) + SCALE[low + 1] * part).round().astype(np.uint8)
    return colours
