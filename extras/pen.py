"""Colours of all pictures; text and axes of those drawn with Pillow, since importing matplotlib takes long."""

import functools
import importlib.util
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from extras.letters import readable, shortened
from utils.text import one_line

Point = tuple[float, float]
Box = tuple[int, int, int, int]
"""Left, top, right and bottom."""
Font = ImageFont.FreeTypeFont

# eight colours that all kinds of colour vision tell apart (Okabe and Ito 2008); black comes last, yellow not at all
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
BLACK, GREY, GRID = "#262626", "#707070", "#e4e4e4"
SCALE = 3  # Pillow's lines are not antialiased

# file names under which Pillow finds fonts with Chinese, Japanese and Korean characters
EASTERN = (
    "NotoSansCJK-Regular.ttc", "NotoSansKR-Regular.otf", "NanumGothic.ttf", "malgun.ttf", "AppleSDGothicNeo.ttc",
    "msyh.ttc", "wqy-zenhei.ttc",
)  # fmt: skip


def write(
    pen: ImageDraw.ImageDraw,
    at: Point,
    text: str,
    *,
    size: int,
    colour: str = BLACK,
    anchor: str = "la",
    longest: int = 80,
) -> float:
    """Write text with any characters. anchor: of Pillow, where in the text ``at`` is. Returns where it ends."""
    text = legible(text, size=size, longest=longest, otherwise="(letters of no font here)")
    font, _ = _font_of(text, size)
    pen.text(at, text, fill=colour, font=font, anchor=anchor)
    return at[0] + font.getlength(text)


def png(image: Image.Image) -> bytes:
    """An image as the content of a PNG file."""
    file = io.BytesIO()
    file.name = "image.png"  # lets Pillow import its code for PNG alone, which takes 5 ms less than for five formats
    image.save(file, compress_level=1)
    return file.getvalue()


def opacity(points: int) -> float:
    """Of a point, so that many on top of each other differ from few."""
    return max(0.2, min(0.8, 400 / max(points, 1)))


def legible(text: str, *, size: int, longest: int, otherwise: str) -> str:
    """A text in characters that a font has, or ``otherwise``; its middle left out if it is longer."""
    text = one_line(text)
    return shortened(readable(text, _font_of(text, size)[1], otherwise), longest)


class Axis(NamedTuple):
    """The range of an axis, on a linear or logarithmic scale."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Position of a value, from 0 at the low end to 1."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return (value - low) / (high - low)


def ticks(axis: Axis, *, whole: bool = False) -> Iterable[float]:
    """About five round values on an axis. whole: integers only."""
    if axis.log:
        first, last = math.ceil(math.log10(axis.low)), math.floor(math.log10(axis.high))
        every = max(1, math.ceil((last - first) / 5))
        return [10.0**exponent for exponent in range(first, last + 1, every)]
    rough = (axis.high - axis.low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((factor * power for factor in (1.0, 2.0, 5.0) if factor * power >= rough), 10 * power)
    step = max(step, 1.0) if whole else step
    count = math.floor(axis.high / step) - math.ceil(axis.low / step) + 1
    return [(math.ceil(axis.low / step) + place) * step for place in range(count)]


def labelled(values: Iterable[float]) -> Iterator[tuple[float, str]]:
    """Values with their labels, of five digits or as many as tell them apart, up to ten."""
    values = list(values)
    digits = next((n for n in range(5, 10) if len({f"{value:.{n}g}" for value in values}) == len(values)), 10)
    return ((value, f"{value:.{digits}g}") for value in values)


def axis_of(values: Sequence[float], *, log: bool = False) -> Axis:
    """An axis with room for these values."""
    low, high = (min(values), max(values)) if len(values) else (0.0, 1.0)
    if log:
        factor = 10 ** (0.04 * (math.log10(high) - math.log10(low)))
        return Axis(low / factor, high * factor, log=True)
    varies = high - low > max(1e-9 * max(abs(low), abs(high)), 1e-200)
    room = (high - low) * 0.04 if varies else max(abs(high) * 0.04, 1e-6)
    return Axis(low - room, high + room)


def grid(pen: ImageDraw.ImageDraw, box: Box, across: Axis, up: Axis, *, size: int, whole: bool = False) -> None:
    """The lines and labels of both axes. size: of the text. whole: integers only below."""
    left, top, right, bottom = box
    for tick, label in labelled(ticks(up)):
        y = bottom - (bottom - top) * up.share(tick)
        pen.line([(left, y), (right, y)], fill=GRID)
        write(pen, (left - 6, y), label, size=size, colour=GREY, anchor="rm")
    for tick, label in labelled(ticks(across, whole=whole)):
        x = left + (right - left) * across.share(tick)
        pen.line([(x, top), (x, bottom)], fill=GRID)
        write(pen, (x, bottom + 6), label, size=size, colour=GREY, anchor="mt")


@contextmanager
def antialiased(image: Image.Image, box: Box) -> Iterator[ImageDraw.ImageDraw]:
    """Inside the block, draw this part SCALE times as large, translucently if a colour is; it is reduced at the end."""
    large = image.crop(box)
    large = large.resize((large.width * SCALE, large.height * SCALE), Image.Resampling.NEAREST)
    yield ImageDraw.Draw(large, "RGBA")
    image.paste(large.reduce(SCALE), box[:2])


def _font_of(text: str, size: int) -> tuple[Font, Callable[[str], bool]]:
    """The font for a text, and whether it has a character."""
    has: Callable[[str], bool] = functools.partial(_has, size)
    if not all(map(has, text)) and (eastern := _eastern_font(size)):
        return eastern, str.isprintable
    return _font(size), has


@functools.cache
def _font(size: int) -> Font:
    """DejaVu Sans, which comes with matplotlib, or Pillow's own font."""
    found = importlib.util.find_spec("matplotlib")  # without importing it
    if found is not None and found.origin is not None:
        file = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if file.is_file():
            return ImageFont.truetype(file, size)
    font = ImageFont.load_default(size)
    assert isinstance(font, Font)
    return font


@functools.cache
def _eastern_font(size: int) -> Font | None:
    for name in EASTERN:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return None


@functools.cache
def _has(size: int, letter: str) -> bool:
    """Whether the font has a character: for missing ones, it draws the same box as for a noncharacter."""
    if " " <= letter <= "~":
        return True
    font = _font(size)
    return bytes(font.getmask(letter)) != bytes(font.getmask("\U0010ffff"))
