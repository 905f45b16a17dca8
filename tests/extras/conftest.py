"""Fixtures of the tests of several folders of extras/."""

from typing import Any

import pytest

from extras import picture_grid
from extras.pen import write as pen_write


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What is written in a grid of pictures, and how wide it is."""
    found: dict[str, float] = {}

    def write(pen: Any, at: Any, text: str, **options: Any) -> float:
        end = pen_write(pen, at, text, **options)
        found[text] = end - at[0]
        return end

    monkeypatch.setattr(picture_grid, "write", write)
    return found
