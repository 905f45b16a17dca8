"""Colours of all pictures, and text in those drawn with Pillow: importing matplotlib takes as long as a short epoch."""

import functools
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from extras.letters import readable, shortened
from utils.text import one_line

Point = tuple[float, float]
Font = ImageFont.FreeTypeFont

# eight colours that all kinds of colour vision tell apart (Okabe and Ito 2008); black comes last, yellow not at all
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
BLACK, GREY, GRID = "#262626", "#707070", "#e4e4e4"

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
