"""The image for --show: the first inputs with their predictions."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from extras.letters import shortened
from extras.pen import COLOURS, legible
from extras.picture_grid import Cell, file_label, picture_grid
from extras.predict.outputs import Field

MOST = 24


def shown(pictures: torch.Tensor, names: Sequence[str], fields: Sequence[Field], first: int) -> list[Cell]:
    """For each input, its picture with the predictions. pictures: uint8 of shape (B, H, W, 1 or 3).

    first: the number of the first.
    """
    masks = next((field.values for field in fields if field.name.endswith("mask")), None)
    return [
        Cell(
            picture.numpy(),
            [shortened(line, 18) for line in _lines(fields, place)],
            [file_label(Path(name).name, f"input {first + place}")],
            None if masks is None or masks[place].ndim != 2 else _colours(masks[place]),
        )
        for place, (picture, name) in enumerate(zip(pictures, names, strict=False))
    ]


def _lines(fields: Sequence[Field], place: int) -> list[str]:
    """The prediction for an input, in one or two short lines."""
    names = next((list(field.labels) for field in fields if field.labels is not None), [])

    def name(text: str) -> str:
        """A class, by its number if no font has its characters."""
        number = f"class {names.index(text)}" if text in names else text
        return legible(text, size=15, longest=40, otherwise=number)

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


def grid(cells: Sequence[Cell], total: int) -> bytes:
    """A PNG file of the first of a total number of inputs."""
    columns = min(6, max(3, math.ceil(math.sqrt(1.5 * len(cells)))))
    title = f"The first {len(cells)} of {total:,} predictions" if total > len(cells) else "Predictions"
    return picture_grid(cells, columns=columns, colour=COLOURS[0], title=title)


def _colours(mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Class indices (H, W) as RGBA (H, W, 4): class 0 is transparent, each other class has a colour."""
    palette = np.array([[int(colour[place : place + 2], 16) for place in (1, 3, 5)] for colour in COLOURS[:-1]])
    coloured = np.zeros((*mask.shape, 4), np.uint8)
    coloured[..., :3] = palette[(mask.astype(np.int64) - 1) % len(palette)]
    coloured[..., 3] = np.where(mask > 0, 150, 0)
    return coloured
