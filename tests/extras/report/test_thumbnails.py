"""Pictures of an evaluation, as TensorBoard and the report show them."""

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from extras import picture_grid
from extras.pen import Axis, labelled, ticks
from extras.report import thumbnails
from extras.report.statistics import Mistake, Regression
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


def test_the_first_label_of_a_confusion_matrix_is_whole() -> None:
    names = ["HHHH"] * 200
    picture = np.asarray(opened(thumbnails.confusion_matrix(np.zeros((200, 200), np.int64), names)).convert("L"))
    beside = picture[:434, :112].min(1) < 128  # the matrix begins at (112, 34)
    starts, ends = np.flatnonzero(np.diff(np.pad(beside, 1).astype(int))).reshape(-1, 2).T
    assert len(set((ends - starts).tolist())) == 1, "all labels are of one height"
    below = picture[434:, 104:].min(0) < 128
    starts, ends = np.flatnonzero(np.diff(np.pad(below, 1).astype(int))).reshape(-1, 2).T
    assert len(set((ends - starts).tolist())) == 1


def test_a_confusion_matrix_may_have_counts_and_totals(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    monkeypatch.setattr(thumbnails, "write", lambda pen, at, text, **options: texts.append(text))
    thumbnails.confusion_matrix(np.array([[9_990, 10], [0, 3]]), ["a", "b"], totals=True)
    assert texts[0] == "samples and % of a true class (row) predicted as (column)"
    assert texts[1:4] == ["a", "b", "total"]
    assert texts[4:] == ["9990", "100%", "10", "0%", "10k", "3", "100%", "3", "9990", "13", "10k"]
    texts.clear()
    few = thumbnails.confusion_matrix(np.array([[1_234_567, 0], [9_999, 1]]), ["a", "b"], totals=True)
    assert opened(few).width < 520, "cells not much larger than their numbers"
    assert {"1.23M", "9999", "1.24M"} <= set(texts)
    texts.clear()
    thumbnails.confusion_matrix(np.ones((31, 31), np.int64), list(map(str, range(31))), totals=True)
    assert len(texts) == 17, "every second class, and no numbers"


def test_the_colours_of_a_confusion_matrix_can_be_told_apart_in_the_middle() -> None:
    """Between neighbours of 0, 10 ... 100 %, as the difference of CIELAB, of which 2 can just be seen."""
    colours = thumbnails._coloured(np.linspace(0, 1, 11)[None])[0] / 255
    linear = np.where(colours > 0.04045, ((colours + 0.055) / 1.055) ** 2.4, colours / 12.92)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    cube = np.cbrt(linear @ to_xyz.T / [0.9505, 1, 1.089])
    lab = np.stack([116 * cube[:, 1], 500 * (cube[:, 0] - cube[:, 1]), 200 * (cube[:, 1] - cube[:, 2])], 1)
    assert np.linalg.norm(np.diff(lab, axis=0), axis=1)[2:8].min() > 15
    assert (np.diff(lab[:, 0]) > 0).all(), "brighter and brighter"


def test_mistakes_are_shown_with_their_pictures() -> None:
    red = np.zeros((8, 4, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    blue = np.zeros((4, 8, 3), np.uint8) + np.array([0, 0, 255], np.uint8)
    found = [Mistake(3, 0, 1, 0.9, red), Mistake(5, 1, 0, 0.8, None), Mistake(7, 1, 0, 0.7, blue)]
    picture = np.asarray(opened(thumbnails.mistakes(found, ["cat", "dog"], columns=4)))
    for colour, shape in (((255, 0, 0), (120, 60)), ((0, 0, 255), (60, 120))):
        rows, columns = np.nonzero((picture == colour).all(2))
        height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
        assert (height, width) == shape
    assert thumbnails.mistakes(found[1:2], ["cat", "dog"], columns=4) is None
    assert thumbnails.mistakes([], [], columns=4) is None


def test_a_long_name_stays_in_its_column(written: dict[str, float]) -> None:
    names = ["cat", "zebra_very_long_name_of_a_class"]
    files = [*map(str, range(3)), f"{'deep/' * 9}a.png"]
    thumbnails.mistakes([Mistake(3, 0, 1, 1.0, np.zeros((4, 4, 1), np.uint8))], names, files, columns=4)
    title, *texts = written
    assert title.startswith("Most confident mistakes")
    assert texts[1:] == ["true: cat", f"…{files[3][-23:]}"]
    assert max(written[text] for text in texts) <= picture_grid.COLUMN + 2  # without Raqm, letters are not kerned


def test_a_file_whose_name_no_font_has_is_a_number(written: dict[str, float]) -> None:
    mistake = Mistake(0, 0, 1, 0.9, np.zeros((4, 4, 1), np.uint8))
    thumbnails.mistakes([mistake], ["cat", "dog"], ["\U0010fffd.png"], columns=4)
    assert list(written)[1:] == ["dog 90%", "true: cat", "sample 0"]


@pytest.mark.parametrize("shape", [(32, 32, 3), (8, 400, 1), (400, 8, 3), (1, 1, 1)])
def test_a_picture_of_any_shape_has_the_same_place(shape: tuple[int, int, int]) -> None:
    picture = np.full(shape, 200, np.uint8)
    drawn = opened(thumbnails.mistakes([Mistake(0, 0, 1, 0.9, picture)], ["cat", "dog"], columns=4))
    assert drawn.size == (4 * 168, 34 + 196)


def test_names_that_no_font_has_are_numbers() -> None:
    strange = ["\U0010fffd", "\U0010fffd"]
    plain = ["class 0", "class 1"]
    counts = np.eye(2, dtype=np.int64)
    assert thumbnails.confusion_matrix(counts, strange) == thumbnails.confusion_matrix(counts, plain)
    mistake = [Mistake(0, 0, 1, 0.9, np.zeros((4, 4, 1), np.uint8))]
    assert thumbnails.mistakes(mistake, strange, columns=4) == thumbnails.mistakes(mistake, plain, columns=4)


def dots(found: Regression) -> np.ndarray[Any, Any]:
    """Where the plot has dots, as fractions of its width and height from the left and the bottom, (N, 2)."""
    picture = np.asarray(opened(thumbnails.scatter(found))).astype(int)
    plot = picture[62 : 62 + thumbnails.PLOT, 100 : 100 + thumbnails.PLOT]
    rows, columns = np.nonzero((plot[..., 2] - plot[..., 0]) > 100)  # blue
    return np.stack([columns, thumbnails.PLOT - rows], 1) / thumbnails.PLOT


def regression(predicted: list[float], true: list[float]) -> Regression:
    found = Regression(len(true), 1)
    found.add(0, torch.tensor(predicted, dtype=torch.float64), torch.tensor(true, dtype=torch.float64))
    return found


def test_a_scatter_plot_has_a_dot_for_each_pair() -> None:
    found = dots(regression([0.0, 10.0, 2.5], [0.0, 10.0, 7.5]))  # from -0.4 to 10.4 on both axes
    expected = np.array([(0.4, 0.4), (10.4, 10.4), (7.9, 2.9)]) / 10.8
    near = np.abs(found[:, None] - expected).max(2) < 0.012
    assert near.any(1).all()
    assert near.any(0).all()
    narrow = dots(regression([0.0, 0.1], [0.0, 100.0]))  # each axis has its own range
    assert narrow.min(0) == pytest.approx([0.037, 0.037], abs=0.01)
    assert narrow.max(0) == pytest.approx([0.963, 0.963], abs=0.01)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (99_995.0, 100_005.0, ["99996", "99998", "100000", "100002", "100004"]),
        (1e9 - 3, 1e9 + 3, ["999999998", "1000000000", "1000000002"]),
        (-1e-30, 1e-30, ["-1e-30", "-5e-31", "0", "5e-31", "1e-30"]),
    ],
)
def test_labels_tell_the_ticks_apart(low: float, high: float, expected: list[str]) -> None:
    assert [label for _, label in labelled(ticks(Axis(low, high)))] == expected


@pytest.mark.parametrize(
    ("predicted", "true"),
    [
        ([1.0], [2.0]),
        ([3.0, 3.0], [3.0, 3.0]),
        ([1e150, -1e150], [1.0, 2.0]),
        ([5e-324, 0.0], [0.0, 1e-320]),
        ([1e9, 1e9 + 1e-6], [1e9, 1e9]),
        (list(range(2000)), list(range(2000))),
        ([float("nan")], [1.0]),
    ],
)
def test_a_scatter_plot_of_any_numbers(predicted: list[float], true: list[float]) -> None:
    found = regression(predicted, true)
    assert opened(thumbnails.scatter(found)).size == (560, 558)


@pytest.mark.slow
def test_they_need_no_matplotlib() -> None:
    code = (
        "import sys, numpy, torch, extras.report.thumbnails as t\n"
        "from extras.report.statistics import Regression\n"
        "t.confusion_matrix(numpy.eye(1, dtype=int), 'a'); found = Regression(2, 1); "
        "found.add(0, torch.zeros(2), torch.ones(2)); t.scatter(found); print('matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
