"""The image for --show: the first inputs with their predictions."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from extras.drawing import COLOURS, GREY, drawable, drawn, labels, new_figure
from extras.predict.outputs import Field

MOST = 24
CELL, SIDE = 1.6, 1.3  # size in inches of a cell and of the picture in it


class Shown(NamedTuple):
    """An input and its prediction."""

    picture: np.ndarray[Any, Any]
    """uint8 of shape (H, W, 1 or 3)."""
    name: str
    lines: list[str]
    mask: np.ndarray[Any, Any] | None
    """Class indices of shape (H, W), drawn over the picture."""


def shown(pictures: torch.Tensor, names: Sequence[str], fields: Sequence[Field]) -> list[Shown]:
    """Pictures, uint8 of shape (B, H, W, 1 or 3), with the predictions for them."""
    masks = next((field.values for field in fields if field.name.endswith("mask")), None)
    return [
        Shown(picture.numpy(), name, _lines(fields, place), None if masks is None else masks[place])
        for place, (picture, name) in enumerate(zip(pictures, names, strict=False))
    ]


def _lines(fields: Sequence[Field], place: int) -> list[str]:
    """The prediction for an input, in one or two short lines."""
    names = next((list(field.labels) for field in fields if field.labels is not None), [])

    def name(text: str) -> str:
        """A class, by its number if the fonts lack its characters."""
        return text if drawable(text) or text not in names else f"class {names.index(text)}"

    texts = list[str]()
    for field in fields:
        value = field.values[place]
        if isinstance(value, str):
            texts.append(name(value) or "no class")
        elif isinstance(value, list) and all(isinstance(each, str) for each in value):
            texts.append(", ".join(map(name, value)) or "none")
        elif field.name.endswith("probability"):
            share = "" if math.isnan(value) else f"{value:.0%}"
            texts[-1:] = [f"{' '.join(texts[-1:])} {share}"]
        elif isinstance(value, (np.floating, np.integer)):
            texts.append(f"{field.name} {value:.4g}")
        elif isinstance(value, np.ndarray) and value.ndim == 1 and field.labels is None:
            texts.append(" ".join(f"{each:.3g}" for each in value[:4]) + (" …" if len(value) > 4 else ""))
    return texts[:2]


@drawn
def grid(pictures: Sequence[Shown], total: int) -> Figure:
    """total: number of all inputs, of which these are the first."""
    columns = min(6, max(3, math.ceil(math.sqrt(1.5 * len(pictures)))))
    rows = math.ceil(len(pictures) / columns)
    lines = max((len(each.lines) for each in pictures), default=1)
    height = SIDE + 0.36 + 0.18 * lines
    figure = new_figure(columns * CELL, rows * height + 0.4)
    axes = figure.add_subplot()  # one for all pictures: each costs 10 ms
    for place, each in enumerate(pictures):
        left, top = place % columns * CELL, place // columns * height
        _paste(axes, each, left + (CELL - SIDE) / 2, top + 0.18 * lines + 0.1)
        for number, text in enumerate(labels(each.lines, longest=22)):
            axes.text(left + CELL / 2, top + 0.18 * number + 0.18, text, ha="center", fontsize=9, color=COLOURS[0])
        name = " ".join(Path(each.name).name.split())
        name = name if drawable(name) else f"input {place}"
        name = name if len(name) <= 24 else f"{name[:10]}…{name[-13:]}"
        axes.text(left + CELL / 2, top + 0.18 * lines + SIDE + 0.25, name, ha="center", fontsize=7, color=GREY)
    axes.set(xlim=(0, columns * CELL), ylim=(rows * height, 0), aspect="equal")
    axes.set_axis_off()
    first = f"The first {len(pictures)} of {total:,} predictions" if total > len(pictures) else "Predictions"
    axes.set_title(first, fontsize=10)
    return figure


def _paste(axes: Axes, each: Shown, left: float, top: float) -> None:
    """Draw a picture as large as fits in a square, with its mask on top."""
    height, width, channels = each.picture.shape
    scale = SIDE / max(height, width)
    x, y = left + (SIDE - width * scale) / 2, top + (SIDE - height * scale) / 2
    where = (x, x + width * scale, y + height * scale, y)
    picture = each.picture[:, :, 0] if channels == 1 else each.picture
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=where)
    if each.mask is not None and each.mask.ndim == 2:
        axes.imshow(_colours(each.mask), interpolation="nearest", extent=where)


def _colours(mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Class indices (H, W) as RGBA (H, W, 4): class 0 is transparent, each other class has a colour."""
    palette = np.array([[int(colour[place : place + 2], 16) for place in (1, 3, 5)] for colour in COLOURS[:-1]])
    coloured = np.zeros((*mask.shape, 4), np.uint8)
    coloured[..., :3] = palette[(mask.astype(np.int64) - 1) % len(palette)]
    coloured[..., 3] = np.where(mask > 0, 150, 0)
    return coloured
