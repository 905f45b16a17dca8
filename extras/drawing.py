"""The style of every figure, and its conversion to a file. matplotlib's global state is left unchanged."""

import functools
import io
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from extras.letters import readable, shortened
from extras.records import needs_log_scale

P = ParamSpec("P")
R = TypeVar("R")

DPI = 110
GREY = "#7f7f7f"
MAP = "viridis"  # its middle has hues of its own, unlike that of cividis
# the first has Latin, Greek and Cyrillic; the others, where they are installed, Chinese, Japanese, Korean ...
FONTS = (
    "DejaVu Sans", "Noto Sans CJK KR", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans KR", "NanumGothic",
    "Nanum Gothic", "Malgun Gothic", "Apple SD Gothic Neo", "Microsoft YaHei", "WenQuanYi Zen Hei",
    "Droid Sans Fallback", "Unifont",
)  # fmt: skip
WIDTH, SIDE = 1.6, 1.3  # of a cell of a grid, and of the picture in it, in inches
STYLE: dict[Any, Any] = {
    "figure.dpi": DPI,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e0e0e0",
    "legend.frameon": False,
    "text.parse_math": False,  # a $ in a class's name is a $
}


class Cell(NamedTuple):
    """A picture with texts, in ``picture_grid``."""

    picture: npt.NDArray[np.uint8]
    """Of shape (H, W, 1 or 3)."""
    above: Sequence[str]
    below: Sequence[str]
    """The last one is small."""
    overlay: npt.NDArray[np.uint8] | None = None
    """RGBA of shape (H, W, 4), drawn on top of the picture."""


def drawn(make: Callable[P, R]) -> Callable[P, R]:
    """Run a function with our matplotlib style, whatever the user's settings."""

    @functools.wraps(make)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update({**STYLE, "font.family": list(_fonts())})
            return make(*args, **kwargs)

    return wrapper


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


def file_label(name: str, otherwise: str) -> str:
    """The end of a file name, which distinguishes it from others; ``otherwise`` if its characters cannot be drawn."""
    name = " ".join(name.split())
    if not drawable(name):
        return otherwise
    return name if len(name) <= 26 else f"…{name[-25:]}"


@drawn
def picture_grid(cells: Sequence[Cell], *, columns: int, colour: str, title: str) -> Figure:
    """Pictures in rows, at least one. colour: of the texts above them."""
    rows = math.ceil(len(cells) / columns)
    above = max(len(cell.above) for cell in cells)
    below = max(len(cell.below) for cell in cells)
    height = 0.18 * (above + below) + SIDE + 0.26
    figure = Figure(figsize=(columns * WIDTH, rows * height + 0.45))
    axes = figure.add_subplot()  # one for all pictures: each costs 10 ms
    for place, cell in enumerate(cells):
        middle, top = (place % columns + 0.5) * WIDTH, place // columns * height
        for line, text in enumerate(cell.above):
            axes.text(middle, top + 0.18 * (line + 1), text, ha="center", fontsize=9, color=colour)
        _paste(axes, cell, middle, top + 0.18 * above + 0.1)
        for line, text in enumerate(cell.below):
            style = {"fontsize": 9} if line + 1 < len(cell.below) else {"fontsize": 7, "color": GREY}
            axes.text(middle, top + 0.18 * (above + line + 1) + SIDE + 0.09, text, ha="center", **style)
    axes.set(xlim=(0, columns * WIDTH), ylim=(rows * height, 0), aspect="equal")
    axes.set_axis_off()
    axes.set_title(title, fontsize=10)
    return figure


def _paste(axes: Axes, cell: Cell, middle: float, top: float) -> None:
    """Draw a picture as large as fits in a square."""
    height, width, channels = cell.picture.shape
    scale = SIDE / max(height, width)
    x, y = middle - width * scale / 2, top + (SIDE - height * scale) / 2
    where = (x, x + width * scale, y + height * scale, y)
    picture = cell.picture[:, :, 0] if channels == 1 else cell.picture
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=where)
    if cell.overlay is not None:
        axes.imshow(cell.overlay, interpolation="nearest", extent=where)


def scale_values(axes: Axes, values: Sequence[float], *, factor: float = 1000) -> None:
    """Show values on the y axis plainly, on a logarithmic scale if they differ by more than this factor."""
    axes.grid(True)
    if needs_log_scale(values, factor):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    else:
        axes.ticklabel_format(axis="y", useOffset=False)


def plain(axes: Axes) -> None:
    """Show numbers on the axes without offsets or powers, as far as possible."""
    axes.ticklabel_format(useOffset=False)
    axes.grid(True)


def drawable(name: str) -> bool:
    """Whether the installed fonts have all characters of a text."""
    return all(letter.isspace() or ord(letter) in _letters() for letter in name)


@functools.cache
def _fonts() -> tuple[str, ...]:
    there = {font.name for font in font_manager.fontManager.ttflist}
    return tuple(name for name in FONTS if name in there) or ("DejaVu Sans",)


@functools.cache
def _letters() -> frozenset[int]:
    """The code points in the fonts."""
    files = [font_manager.findfont(name) for name in _fonts()]
    return frozenset().union(*(FT2Font(file).get_charmap() for file in files))
