"""Names in tables and pictures: short, and in whatever characters the fonts have."""

import re
import unicodedata
from collections.abc import Callable, Collection

from utils.text import one_line

# letters whose Unicode name spells their sound: HANGUL SYLLABLE GO
SOUND = re.compile(r"(?:HANGUL SYLLABLE|(?:HIRAGANA|KATAKANA) LETTER(?: SMALL)?) ([A-Z]+)")


def readable(text: str, has: Callable[[str], bool], otherwise: str) -> str:
    """A name in one line, in characters that a font has; missing Korean and Japanese ones are romanised.

    has: whether the font has a character. otherwise: shown if a character can be neither drawn nor romanised.
    """
    parts = []
    for letter in unicodedata.normalize("NFC", one_line(text)):  # file names may be decomposed
        if letter == " " or has(letter):
            parts.append(letter)
        elif sound := SOUND.fullmatch(unicodedata.name(letter, "")):
            parts.append(sound[1].lower())
        else:
            return otherwise
    return "".join(parts)


def shortened(text: str, longest: int) -> str:
    """A name of at most ``longest`` characters; keeps its end, which often distinguishes it."""
    return text if len(text) <= longest else f"{text[: longest - 6]}…{text[-5:]}"


def short_key(key: str, keys: Collection[str], *, taken: Collection[str] = ()) -> str:
    """The last words of a config key, as few as distinguish it from the other keys and from names that are taken."""
    words = key.split(".")
    for count in range(1, len(words)):
        end = ".".join(words[-count:])
        if end not in taken and sum(f".{other}".endswith(f".{end}") for other in keys) == 1:
            return end
    return key
