"""Names in pictures, whatever letters the fonts have."""

import re
import unicodedata
from collections.abc import Callable

from utils.text import one_line

# letters whose Unicode name spells their sound: HANGUL SYLLABLE GO
SOUND = re.compile(r"(?:HANGUL SYLLABLE|(?:HIRAGANA|KATAKANA) LETTER(?: SMALL)?) ([A-Z]+)")


def readable(text: str, has: Callable[[str], bool], otherwise: str) -> str:
    """A name in one line, in letters that a font has. Korean and Japanese ones that it lacks are spelt in Latin ones.

    has: whether the font has a letter. otherwise: what is shown where a letter can be neither drawn nor spelt.
    """
    parts = []
    for letter in unicodedata.normalize("NFC", one_line(text)):  # names of files may come in parts of letters
        if letter == " " or has(letter):
            parts.append(letter)
        elif sound := SOUND.fullmatch(unicodedata.name(letter, "")):
            parts.append(sound[1].lower())
        else:
            return otherwise
    return "".join(parts)


def shortened(text: str, longest: int) -> str:
    """A name of at most so many letters; its end often tells it from others."""
    return text if len(text) <= longest else f"{text[: longest - 6]}…{text[-5:]}"
