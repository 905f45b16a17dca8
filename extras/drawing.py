"""The style of every figure, and its conversion to a file. matplotlib's global state is left unchanged."""

import functools
import io
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from extras.letters import readable, shortened

P = ParamSpec("P")
R = TypeVar("R")

DPI = 110
# eight colours that all kinds of colour vision tell apart (Okabe and Ito 2008); black comes last, yellow not at all
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
GREY = "#7f7f7f"
MAP = "viridis"  # its middle has hues of its own, unlike that of cividis
# the first has Latin, Greek and Cyrillic; the others, where they are installed, Chinese, Japanese, Korean ...
FONTS = (
    "DejaVu Sans", "Noto Sans CJK KR", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans KR", "NanumGothic",
    "Nanum Gothic", "Malgun Gothic", "Apple SD Gothic Neo", "Microsoft YaHei", "WenQuanYi Zen Hei",
    "Droid Sans Fallback", "Unifont",
)  # fmt: skip
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


def drawn(make: Callable[P, R]) -> Callable[P, R]:
    """Run a function with our matplotlib style, whatever the user's settings."""

    @functools.wraps(make)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update({**STYLE, "font.family": list(_fonts())})
            return make(*args, **kwargs)

    return wrapper


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches, without a window and not in the list of open figures."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


@drawn
def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    file = io.BytesIO()
    # the least compression takes a fifth of the time, for files half as large again
    figure.savefig(file, format="png", pil_kwargs={"compress_level": 1}, metadata={"Software": None})
    return file.getvalue()


@drawn
def pixels(figure: Figure) -> npt.NDArray[np.uint8]:
    """A figure as uint8 of shape (H, W, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()  # type: ignore[no-untyped-call]


def labels(names: Sequence[str], longest: int = 18) -> list[str]:
    """Class names in drawable form: short, in one line, and in characters that a font has."""
    return [
        shortened(readable(name, lambda letter: ord(letter) in _letters(), f"class {number}"), longest)
        for number, name in enumerate(names)
    ]


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
