"""Pictures of an evaluation at TensorBoard's size."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from extras.report.statistics import Mistake
from extras.tensorboard import thumbnails
from tests.helpers import ROOT

BEST, NOTHING = (253, 231, 37), (68, 1, 84)


def opened(png: bytes | None) -> Image.Image:
    assert png is not None
    return Image.open(io.BytesIO(png)).convert("RGB")


@pytest.mark.parametrize("classes", [1, 2, 3, 13, 40, 700])
def test_a_confusion_matrix_has_a_square_for_each_pair_of_classes(classes: int) -> None:
    """Class 0 is right, the others are taken for the class before."""
    counts = np.zeros((classes, classes), np.int64)
    counts[np.arange(classes), np.maximum(np.arange(classes) - 1, 0)] = 7
    picture = np.asarray(opened(thumbnails.confusion_matrix(counts, [f"c{n}" for n in range(classes)])))
    rows, columns = np.nonzero((picture == BEST).all(2))
    top, left, cell = int(rows.min()), int(columns.min()), max(1, 520 // classes)
    for row in range(0, classes, max(1, classes // 10)):
        corner = picture[top + row * cell, left : left + classes * cell : cell]
        filled = np.flatnonzero((corner == BEST).all(1))
        assert filled.tolist() == [max(row - 1, 0)]
        assert ((corner == BEST).all(1) | (corner == NOTHING).all(1)).all()


def test_mistakes_are_shown_with_their_pictures() -> None:
    red = np.zeros((8, 4, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    blue = np.zeros((4, 8, 3), np.uint8) + np.array([0, 0, 255], np.uint8)
    found = [Mistake(3, 0, 1, 0.9, red), Mistake(5, 1, 0, 0.8, None), Mistake(7, 1, 0, 0.7, blue)]
    picture = np.asarray(opened(thumbnails.mistakes(found, ["cat", "dog"])))
    for colour, shape in (((255, 0, 0), (120, 60)), ((0, 0, 255), (60, 120))):
        rows, columns = np.nonzero((picture == colour).all(2))
        height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
        assert (height, width) == shape
    assert thumbnails.mistakes(found[1:2], ["cat", "dog"]) is None
    assert thumbnails.mistakes([], []) is None


def test_names_that_no_font_has_are_numbers() -> None:
    strange = ["\U0010fffd", "\U0010fffd"]
    plain = ["class 0", "class 1"]
    counts = np.eye(2, dtype=np.int64)
    assert thumbnails.confusion_matrix(counts, strange) == thumbnails.confusion_matrix(counts, plain)
    mistake = [Mistake(0, 0, 1, 0.9, np.zeros((4, 4, 1), np.uint8))]
    assert thumbnails.mistakes(mistake, strange) == thumbnails.mistakes(mistake, plain)


def test_they_need_no_matplotlib() -> None:
    code = (
        "import sys, numpy, extras.tensorboard.thumbnails as t; t.confusion_matrix(numpy.eye(1, dtype=int), 'a'); "
        "print('matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
