"""Pictures in a grid, each with texts above and below, drawn with Pillow."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from extras.pen import BLACK, GREY, legible, png, write

# in pixels
SIDE = 120  # of a picture
COLUMN, LINE = 168, 20
TITLE = 34


class Cell(NamedTuple):
    """A picture with texts."""

    picture: npt.NDArray[np.uint8]
    """Of shape (H, W, 1 or 3)."""
    above: Sequence[str]
    below: Sequence[str]
    """The last one is small."""
    overlay: npt.NDArray[np.uint8] | None = None
    """RGBA of shape (H, W, 4), drawn on top of the picture."""


def picture_grid(cells: Sequence[Cell], *, columns: int, colour: str, title: str) -> bytes:
    """At least one picture, as a PNG file. colour: of the texts above the pictures."""
    above = max(len(cell.above) for cell in cells)
    below = max(len(cell.below) for cell in cells)
    row = LINE * (above + below) + SIDE + 16
    image = Image.new("RGB", (columns * COLUMN, TITLE + math.ceil(len(cells) / columns) * row), "white")
    pen = ImageDraw.Draw(image)
    write(pen, (image.width / 2, 8), title, size=17, anchor="ma")
    for place, cell in enumerate(cells):
        middle, top = (place % columns + 0.5) * COLUMN, TITLE + place // columns * row
        for line, text in enumerate(cell.above):
            write(pen, (middle, top + LINE * line + 4), text, size=15, colour=colour, anchor="ma")
        top += LINE * above
        _paste(image, cell, middle, top + 4)
        top += SIDE
        for line, text in enumerate(cell.below):
            size, ink = (15, BLACK) if line + 1 < len(cell.below) else (11, GREY)
            write(pen, (middle, top + LINE * line + 8), text, size=size, colour=ink, anchor="ma")
    return png(image)


def file_label(name: str, otherwise: str) -> str:
    """The end of a file name, which distinguishes it from others; ``otherwise`` if no font has its characters."""
    name = name if len(name) <= 24 else f"…{name[-23:]}"
    return legible(name, size=11, longest=24, otherwise=otherwise)


def _paste(image: Image.Image, cell: Cell, middle: float, top: float) -> None:
    """Draw a picture as large as fits in a square."""
    height, width, channels = cell.picture.shape
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    corner = round(middle - size[0] / 2), round(top + (SIDE - size[1]) / 2)
    picture = Image.fromarray(cell.picture[:, :, 0] if channels == 1 else cell.picture)
    image.paste(picture.resize(size, Image.Resampling.NEAREST), corner)
    if cell.overlay is not None:
        overlay = Image.fromarray(cell.overlay).resize(size, Image.Resampling.NEAREST)
        image.paste(overlay, corner, overlay)
