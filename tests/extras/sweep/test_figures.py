"""The figures of a sweep's report."""

from pathlib import Path

import pytest
from matplotlib.text import Text

from extras.sweep import figures
from extras.sweep.display import short_value
from extras.sweep.sweep_folder import Outcome, Trial
from tests.extras.sweep.made_up import spec
from utils.run_folder import RunFolder


@pytest.mark.parametrize("values", [(0.01, 1.0, 20.0), (0.5, 0.6, 0.7)])
def test_every_number_is_shown_plainly(tmp_path: Path, values: tuple[float, ...]) -> None:
    """Also on a logarithmic scale, whose default labels are mathematical text, which our style shows verbatim."""
    trials = [
        Trial(number, {"optimizer.args.lr": f"1e-{number}"}, RunFolder(tmp_path), Outcome("complete", value, 1, 1, 0.0))
        for number, value in enumerate(values)
    ]
    searched = spec("optimizer.args.lr=log:1e-4..1")
    for draw in (figures.history, figures.parallel_coordinates, figures.slices):
        figure = draw(searched, trials)
        figure.draw_without_rendering()
        texts = [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]
        assert [text for text in texts if "$" in text] == []


def test_a_value_is_short_in_a_table_but_an_integer_whole() -> None:
    values = ["0.123456", "-7", "1" * 30, "a" * 30, "nan"]
    assert list(map(short_value, values)) == ["0.1235", "-7", "1" * 30, "a" * 23 + "…", "nan"]
