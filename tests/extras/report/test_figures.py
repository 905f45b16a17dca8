"""Pictures of anything that may come: names of every kind, from one class to a thousand, nothing at all."""

from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from extras import drawing
from extras.compare.curves import Curve, curves
from extras.report import figures
from extras.report.classification import Classification, Mistake
from extras.report.regression import Doubles, Regression

pytestmark = pytest.mark.slow

NAMES = ["plain", "a/b/c", "$x_1$", "two\nlines", "long " * 20, "$\\frac$", "100%", "고양이", "", "_"]


def size(figure: Figure) -> tuple[int, int]:
    """Height and width of a figure in pixels. Drawing it raises if anything warns."""
    pixels = drawing.pixels(figure)
    assert pixels.dtype == np.uint8
    return pixels.shape[:2]


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
    shown = ticks(figure)
    assert shown == names[:: 10 if classes == 1000 else 1]
    assert len(written(figure)) == (classes**2 if classes <= 30 else 0)
    assert figure.axes[0].get_xlabel() == "predicted class"


def test_names_of_every_kind() -> None:
    figure = figures.confusion_matrix(confusion(10), NAMES)
    size(figure)
    assert drawing.png(figure).startswith(b"\x89PNG")
    shown = ticks(figure)
    assert shown[:4] == ["plain", "a/b/c", "$x_1$", "two lines"]
    assert shown[4].startswith("long long")
    assert max(map(len, shown)) <= 18


def test_a_name_in_letters_of_no_font_here_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "_letters", lambda: frozenset(map(ord, "abc")))
    assert drawing.labels(["abc", "고양이", "a b"]) == ["abc", "class 1", "a b"]


def test_counts_are_shortened_where_they_would_not_fit() -> None:
    figure = figures.confusion_matrix(np.array([[123_456, 0], [9_999, 3]]), ["a", "b"])
    assert written(figure) == ["123k", "9999", "3"]


def test_mistakes_with_pictures_of_any_shape_and_without() -> None:
    shapes = [(32, 32, 3), (8, 40, 1), (40, 8, 3), (1, 1, 1)]
    mistakes = [Mistake(place, 0, 1, 0.9, np.full(shape, 200, np.uint8)) for place, shape in enumerate(shapes)]
    for count in (1, 4):
        figure = figures.mistakes_grid(mistakes[:count], NAMES)
        assert figure is not None
        size(figure)
        assert written(figure)[:3] == ["a/b/c 90%", "true: plain", "sample 0"]
    assert figures.mistakes_grid([Mistake(0, 0, 1, 0.9, None)], NAMES) is None
    assert figures.mistakes_grid([], NAMES) is None


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
    size(figures.scatter(found))
    size(figures.residuals(found))


def test_curves_with_gaps_of_many_runs_and_over_many_magnitudes() -> None:
    lines = [Curve(f"run_${place}$\nlr=0.1", [1, 2, 3], [1.0, None, place + 2.0]) for place in range(20)]
    steep = [Curve("steep", range(40), [10.0 ** -(step / 4) for step in range(40)])]
    figure = curves({"val_loss\nsome data": lines, "loss": steep, "nothing": []})
    size(figure)
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "log", "linear"]
    assert figure.axes[0].get_ylabel() == "val_loss"
    size(curves({"one": [Curve("run", [1], [None])]}))


def test_the_style_is_ours_and_nobody_elses_is_changed() -> None:
    with mpl.rc_context({"font.size": 40, "text.usetex": True}):
        before = dict(mpl.rcParams)
        ours = size(figures.confusion_matrix(confusion(3), NAMES[:3]))
        assert dict(mpl.rcParams) == before
    assert size(figures.confusion_matrix(confusion(3), NAMES[:3])) == ours
