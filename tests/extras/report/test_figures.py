"""Pictures of anything that may come: names of every kind, from one class to a thousand, nothing at all."""

import io
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from extras import drawing
from extras.report import figures
from extras.report.statistics import Classification, Doubles, Regression

pytestmark = pytest.mark.slow

NAMES = ["plain", "a/b/c", "$x_1$", "two\nlines", "long " * 20, "$\\frac$", "100%", "고양이", "", "_"]


def size(figure: Figure) -> tuple[int, int]:
    """Height and width of a figure in pixels. Drawing it raises if anything warns."""
    width, height = Image.open(io.BytesIO(drawing.png(figure))).size
    return height, width


def ticks(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def written(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def confusion(classes: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.diag(np.arange(classes)) + 1


@pytest.mark.parametrize("classes", [1, 2, 10, 30, 100, 1000])
def test_a_confusion_matrix_of_any_size(classes: int) -> None:
    names = [f"name {place}" for place in range(classes)]
    figure = figures.confusion_matrix(confusion(classes), names)
    height, width = size(figure)
    assert max(height, width) < 1500
    written_in = classes <= 30
    assert ticks(figure) == [*names[:: 10 if classes == 1000 else 1], *(["total"] if written_in else [])]
    assert len(written(figure)) == ((classes + 1) ** 2 if written_in else 0)
    assert figure.axes[0].get_xlabel() == "predicted class"


def test_names_of_every_kind() -> None:
    figure = figures.confusion_matrix(confusion(10), NAMES)
    size(figure)
    assert drawing.png(figure).startswith(b"\x89PNG")
    shown = ticks(figure)
    assert shown[:4] == ["plain", "a/b/c", "$x_1$", "two lines"]
    assert shown[4].startswith("long long")
    assert max(map(len, shown)) <= 18


def test_a_name_in_letters_of_no_font_here_is_spelt_or_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "_letters", lambda: frozenset(map(ord, "abc")))
    assert drawing.labels(["abc", "고양이", "漢", "a b"]) == ["abc", "goyangi", "class 2", "a b"]


def test_a_confusion_matrix_has_percentages_of_the_true_class_and_totals() -> None:
    figure = figures.confusion_matrix(np.array([[9_990, 10], [0, 3]]), ["a", "b"])
    cells = ["9990\n100%", "10\n<1%", "3\n100%"]
    assert sorted(written(figure)) == sorted([*cells, "10k", "3", "9990", "13", "10k"])
    figure = figures.confusion_matrix(np.array([[1_234_567, 0], [9_999, 1]]), ["a", "b"])
    assert set(written(figure)) == {"1.23M\n100%", "9999\n100%", "1\n<1%", "1.23M", "10k", "1", "1.24M"}


def test_the_colours_of_a_confusion_matrix_can_be_told_apart_in_the_middle() -> None:
    """Between neighbours of 0, 10 ... 100 %, as the difference of CIELAB, of which 2 can just be seen."""
    figure = figures.confusion_matrix(confusion(3), ["a", "b", "c"])
    image = figure.axes[0].images[0]
    colours = image.to_rgba(np.linspace(0, 1, 11))[:, :3]
    linear = np.where(colours > 0.04045, ((colours + 0.055) / 1.055) ** 2.4, colours / 12.92)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    cube = np.cbrt(linear @ to_xyz.T / [0.9505, 1, 1.089])
    lab = np.stack([116 * cube[:, 1], 500 * (cube[:, 0] - cube[:, 1]), 200 * (cube[:, 1] - cube[:, 2])], 1)
    assert np.linalg.norm(np.diff(lab, axis=0), axis=1)[2:8].min() > 15
    assert (np.diff(lab[:, 0]) > 0).all(), "brighter and brighter"


def test_calibration_of_something_and_of_nothing() -> None:
    for samples in (0, 1, 50):
        found = Classification(2)
        chances = np.linspace(0.5, 1, samples)
        found.bins[:] = np.histogram(chances, 15, (0, 1))[0]
        found.samples = samples
        size(figures.reliability(found))


@pytest.mark.parametrize(
    "pairs",
    [
        np.empty((2, 0)),
        np.zeros((2, 1)),
        np.full((2, 50), 3.5),
        np.stack([np.linspace(-1000, 1000, 50), np.linspace(0, 1, 50)]),
        np.full((2, 5), 1e-30) * np.arange(5),
        np.full((2, 5), 1e30) * np.arange(5),
    ],
)
def test_a_regression_of_any_numbers(pairs: Doubles) -> None:
    import torch

    found = Regression(pairs.shape[1], 1)
    found.add(0, torch.from_numpy(pairs[0]), torch.from_numpy(pairs[1]))
    size(figures.residuals(found))


def test_the_style_is_ours_and_nobody_elses_is_changed() -> None:
    with mpl.rc_context({"font.size": 40, "text.usetex": True}):
        before = dict(mpl.rcParams)
        ours = size(figures.confusion_matrix(confusion(3), NAMES[:3]))
        assert dict(mpl.rcParams) == before
    assert size(figures.confusion_matrix(confusion(3), NAMES[:3])) == ours
