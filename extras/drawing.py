"""The style of every figure, and its conversion to a file. matplotlib's global state is left unchanged."""

import contextlib
import functools
import io
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import MaxNLocator

from extras.letters import readable, shortened
from extras.records import needs_log_scale

DPI = 110
GREY = "#7f7f7f"
MAP = "viridis"  # its middle has hues of its own, unlike that of cividis
# the first has Latin, Greek and Cyrillic; the others, where they are installed, Chinese, Japanese, Korean ...
FONTS = (
    "DejaVu Sans", "Noto Sans CJK KR", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans KR", "NanumGothic",
    "Nanum Gothic", "Malgun Gothic", "Apple SD Gothic Neo", "Microsoft YaHei", "WenQuanYi Zen Hei",
    "Droid Sans Fallback", "Unifont",
)  # fmt: skip
BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.02), "fontsize": 8}  # of a legend
STYLE: dict[Any, Any] = {
    "figure.dpi": DPI,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.offset_threshold": 6,  # 99999.5 is a label of its own; those of 1e12 + 0.5 would overlap
    "grid.color": "#e0e0e0",
    "legend.frameon": False,
    "text.parse_math": False,  # a $ in a class's name is a $
}


@contextlib.contextmanager
def _styled() -> Iterator[None]:
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({**STYLE, "font.family": list(_fonts())})
        yield


drawn = _styled()
"""Decorates a function that draws: it runs with our matplotlib style, whatever the user's settings."""


@drawn
def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    file = io.BytesIO()
    # the least compression takes a fifth of the time, for files half as large again
    figure.savefig(file, format="png", pil_kwargs={"compress_level": 1}, metadata={"Software": None})
    return file.getvalue()


def labels(names: Sequence[str], longest: int = 18) -> list[str]:
    """Class names in drawable form: short, in one line, and in characters that a font has."""
    return [
        shortened(readable(name, lambda letter: ord(letter) in _letters(), f"class {number}"), longest)
        for number, name in enumerate(names)
    ]


def label_axes(axes: Axes, x: str, y: str, values: Sequence[float], *, factor: float = 1000) -> None:
    """Name the axes of a chart of values by epoch or trial, and scale them. factor: see ``scale_values``."""
    axes.set(xlabel=x, ylabel=y)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    scale_values(axes, values, factor=factor)


def scale_values(axes: Axes, values: Sequence[float], *, factor: float = 1000) -> None:
    """Show values on the y axis, on a logarithmic scale if they differ by more than this factor."""
    axes.grid(True)
    if needs_log_scale(values, factor):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")


@functools.cache
def _fonts() -> tuple[str, ...]:
    there = {font.name for font in font_manager.fontManager.ttflist}
    return tuple(name for name in FONTS if name in there) or ("DejaVu Sans",)


@functools.cache
def _letters() -> frozenset[int]:
    """The code points in the fonts."""
    files = [font_manager.findfont(name) for name in _fonts()]
    return frozenset().union(*(FT2Font(file).get_charmap() for file in files))
