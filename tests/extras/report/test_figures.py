"""Pictures of anything that may come: names of every kind, from one class to a thousand, nothing at all."""

import io
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest
import torch
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


def test_names_of_every_kind() -> None:
    shown = drawing.labels(NAMES)
    assert shown[:4] == ["plain", "a/b/c", "$x_1$", "two lines"]
    assert shown[4].startswith("long long")
    assert max(map(len, shown)) <= 18

    @drawing.drawn
    def figure() -> Figure:
        made = Figure()
        made.add_subplot().set_yticks(range(10), shown)
        return made

    size(figure())


def test_a_name_in_letters_of_no_font_here_is_spelt_or_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "_letters", lambda: frozenset(map(ord, "abc")))
    assert drawing.labels(["abc", "고양이", "漢", "a b"]) == ["abc", "goyangi", "class 2", "a b"]


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
    found = Regression(pairs.shape[1], 1)
    found.add(0, torch.from_numpy(pairs[0]), torch.from_numpy(pairs[1]))
    size(figures.residuals(found))


@pytest.mark.parametrize("middle", [2020.0, 99_990.0, 1e6, -1e12])
def test_the_labels_of_an_axis_do_not_overlap(middle: float) -> None:
    true = middle + torch.linspace(-1, 1, 50, dtype=torch.float64)
    found = Regression(50, 1)
    found.add(0, true + 0.1, true)
    figure = figures.residuals(found)
    size(figure)  # draws it
    labels = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert all(one.x1 < other.x0 for one, other in pairwise(labels))


def test_the_style_is_ours_and_nobody_elses_is_changed() -> None:
    found = Classification(2)
    with mpl.rc_context({"font.size": 40, "text.usetex": True}):
        before = dict(mpl.rcParams)
        ours = size(figures.reliability(found))
        assert dict(mpl.rcParams) == before
    assert size(figures.reliability(found)) == ours
