"""Strict JSON that records the line and column of every value."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from utils.errors import ConfigError
from utils.schema import KeyPath, is_below
from utils.text import at_most, dotted

MAX_DEPTH = 32
MOST_SHOWN = 20  # mistakes
MAX_DIGITS = 18  # every integer fits into 64 bits

_SPACE = re.compile(r"[ \t\r\n]*")
_WORD = re.compile(r"[^\s,:\[\]{}\"]*")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
LOOSE_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")  # .001, 1., +1: everywhere except in JSON
_CONSTANTS = {"true": True, "false": False, "null": None}
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")
TYPOGRAPHIC = "\u201c\u201d\u201e\u201f\u2018\u2019\u00ab\u00bb"  # quotation marks
_CLOSING = {"{": "}", "[": "]"}


@dataclass(frozen=True, eq=False)
class Source:
    """A JSON text and its name in messages. An override from the command line has no text to point into."""

    name: str
    text: str = ""
    offsets: dict[KeyPath, tuple[int, int]] = field(default_factory=dict)
    """Of every key and its value, by path; for a list element, its own offset twice."""

    def error(self, offset: int, message: str) -> ConfigError:
        """An error at an offset; past the last character, it points there rather than below an empty line."""
        end = len(self.text.rstrip())
        if offset >= end:
            return ConfigError(SourceLocation(self, end).show(f"the text ends here; {message.replace(' here', '')}"))
        return ConfigError(SourceLocation(self, offset).show(message))

    def locate(self, path: KeyPath, *, of_key: bool = False) -> "SourceLocation":
        """The location of a path's value or key, or of the nearest enclosing value if the text does not have it."""
        if not self.text:
            return SourceLocation(self)
        while path not in self.offsets:
            path, of_key = path[:-1], False
        return SourceLocation(self, self.offsets[path][0 if of_key else 1])


@dataclass(frozen=True)
class SourceLocation:
    """An offset in a source; 0 in an override."""

    source: Source
    offset: int = 0

    @property
    def line(self) -> int:
        """Counted from 1; 0 for an override."""
        return self.source.text.count("\n", 0, self.offset) + 1 if self.source.text else 0

    @property
    def column(self) -> int:
        """Counted from 1."""
        return self.offset - self.source.text.rfind("\n", 0, self.offset)

    def show(self, message: str) -> str:
        """The message, with the line and a caret below the location."""
        if not self.source.text:
            return f"{self.source.name}: {message}"
        start = self.source.text.rfind("\n", 0, self.offset) + 1
        number = f"{self.line:>5} | "
        # a long line (from a file without line breaks) is cut around the column; a tab is one column wide here
        cut = max(start, self.offset - 60)
        end = self.source.text.find("\n", cut)
        shown = self.source.text[cut : min(end if end >= 0 else len(self.source.text), cut + 90)].rstrip()
        shown = "".join(character if character.isprintable() else " " for character in shown)
        caret = " " * (len(number) + self.offset - cut) + "^"
        return f"{self.source.name}:{self.line}:{self.column}: {message}\n{number}{shown}\n{caret}"


@dataclass
class Document:
    """A parsed value, and the source of each part: that of its path, or of the nearest path above it."""

    value: Any
    sources: dict[KeyPath, Source]

    def locate(self, path: KeyPath, *, of_key: bool = False) -> SourceLocation:
        """The location of a path, or of the nearest enclosing value in its source."""
        lengths = range(len(path), -1, -1)
        source = next(self.sources[path[:length]] for length in lengths if path[:length] in self.sources)
        return source.locate(path, of_key=of_key)

    def error(self, path: KeyPath, message: str) -> ConfigError:
        """An error about the value at a path."""
        return config_error(self, [Problem(path, message)])

    def is_override(self, path: KeyPath) -> bool:
        """Whether the value at this path comes from the command line, rather than a file."""
        return self.locate(path).line == 0

    def set_source(self, path: KeyPath, source: Source) -> None:
        """Mark everything at and below a path as coming from this source."""
        self.sources = {old: kept for old, kept in self.sources.items() if not is_below(old, path)}
        self.sources[path] = source


@dataclass(frozen=True)
class Problem:
    """The path of a mistake in the config, and a message. at_key: the key itself is the mistake, not its value."""

    path: KeyPath
    message: str
    at_key: bool = False


def config_error(document: Document, problems: Sequence[Problem]) -> ConfigError:
    """All problems as one error, in file order; those of overrides come last."""
    located = [(document.locate(p.path, of_key=p.at_key), p) for p in dict.fromkeys(problems)]
    located.sort(key=lambda item: (item[0].line == 0, item[0].source.name, item[0].line, item[0].column))
    shown = [
        location.show(f"{dotted(p.path)}: {p.message}" if p.path else p.message)
        + (_overrides_below(document, p.path) if location.line else "")
        for location, p in located
    ]
    count = f"{len(located):,} mistakes in the config:\n\n" if len(located) > 1 else ""
    return ConfigError(count + "\n\n".join(at_most(MOST_SHOWN, shown)))


def _overrides_below(document: Document, path: KeyPath) -> str:
    """The overrides of what is below a path, which the lines of the file do not show."""
    sources = document.sources.items()
    below = {source.name: "" for at, source in sources if path and is_below(at, path) and not source.text}
    return "".join(f"\n    with {name}" for name in below)


def parse(text: str, name: str) -> Document:
    """Parse JSON. Raises ConfigError with name, line, column and reason at the first syntax error."""
    if not text.strip(" \t\r\n"):
        raise ConfigError(f"{name}:1:1: the file is empty; a config is a JSON object: {{ ... }}")
    source = Source(name, text)
    return Document(_Parser(source).parse(), {(): source})


class _Parser:
    """Parses a text from left to right and records offsets. Each ``at`` is an offset; methods return the next one.

    The standard parser records no offsets, and its messages do not say what was probably meant.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.text = source.text

    def parse(self) -> Any:
        start = self._skip_space(0)
        value, at = self._value((), start, start)
        at = self._skip_space(at)
        if self.text.startswith("{", at):
            raise self.source.error(
                at, "expected one JSON object, but a second one starts here; is this the wrong file?"
            )
        if at < len(self.text):
            message = "unexpected text after the end of the config; is a bracket closed too early?"
            raise self.source.error(at, message)
        return value

    def _value(self, path: KeyPath, key_at: int, at: int) -> tuple[Any, int]:
        self.source.offsets[path] = key_at, at
        start = self.text[at : at + 1]
        if start in _CLOSING and len(path) > MAX_DEPTH:
            raise self.source.error(at, f"nested deeper than {MAX_DEPTH} levels")
        if start in _CLOSING:
            return self._members(path, at)
        if start == '"':
            return self._string(at)
        return self._number_or_constant(at)

    def _members(self, path: KeyPath, opened: int) -> tuple[dict[str, Any] | list[Any], int]:
        members: dict[Any, Any] = {}
        is_object = self.text[opened] == "{"
        at = self._in_brackets(opened + 1, opened)
        while self.text[at] != _CLOSING[self.text[opened]]:
            key_at = at
            key, at = self._key(path, at) if is_object else (len(members), at)
            members[key], at = self._value((*path, key), key_at, at)
            at = self._next_member(at, opened)
        return members if is_object else list(members.values()), at + 1

    def _key(self, path: KeyPath, key_at: int) -> tuple[str, int]:
        """A key, and the offset of its value."""
        if self.text[key_at] != '"':
            raise self.source.error(key_at, _not_a_key(self.text[key_at]))
        key, at = self._string(key_at)
        if (*path, key) in self.source.offsets:
            first = self.source.locate((*path, key), of_key=True).line
            raise self.source.error(key_at, f'duplicate key "{key}"; already given in line {first}')
        at = self._skip_space(at)
        if not self.text.startswith(":", at):
            raise self.source.error(at, f'expected a colon here after the key "{key}"')
        return key, self._skip_space(at + 1)

    def _next_member(self, at: int, opened: int) -> int:
        """The offset of the next key or element, or of the closing bracket."""
        closing = _CLOSING[self.text[opened]]
        at = self._in_brackets(at, opened)
        if self.text[at] == closing:
            return at
        if self.text[at] != ",":
            raise self.source.error(at, f'expected a comma or "{closing}" here; is a comma missing before it?')
        after = self._in_brackets(at + 1, opened)
        if self.text[after] in ("]", "}"):
            message = f'trailing comma before "{self.text[after]}"; JSON does not allow it: remove it'
            raise self.source.error(at, message)
        return after

    def _string(self, at: int) -> tuple[str, int]:
        try:
            value, end = json.JSONDecoder().raw_decode(self.text, at)
        except json.JSONDecodeError as error:
            reason = error.msg.removesuffix(" starting at").removesuffix(" at").rstrip(": ")
            message = f"invalid string: {reason[0].lower()}{reason[1:]}"
            raise self.source.error(min(error.pos, len(self.text) - 1), message) from error
        if _NOT_TEXT.search(value):
            raise self.source.error(at, "invalid character in a string (NUL or half of a surrogate pair)")
        return value, end

    def _number_or_constant(self, at: int) -> tuple[Any, int]:
        found = _WORD.match(self.text, at)
        word = found[0] if found else ""
        end = at + len(word)
        if word in _CONSTANTS:
            return _CONSTANTS[word], end
        number = _NUMBER.fullmatch(word)
        if not number:
            raise self.source.error(at, _not_a_value(word))
        if number[2] or number[3]:
            if math.isinf(float(word)):
                raise self.source.error(at, f"the number {word[:40]} is too large")
            return float(word), end
        if len(number[1]) > MAX_DIGITS:
            raise self.source.error(at, f"integer of more than {MAX_DIGITS} digits")
        return int(word), end

    def _in_brackets(self, at: int, opened: int) -> int:
        """The offset of the next token between brackets, or of the closing bracket."""
        at = self._skip_space(at)
        if at == len(self.text):
            bracket = self.text[opened]
            raise self.source.error(opened, f'this "{bracket}" is never closed by a "{_CLOSING[bracket]}"')
        return at

    def _skip_space(self, at: int) -> int:
        space = _SPACE.match(self.text, at)
        at = space.end() if space else at
        if self.text.startswith(("//", "/*", "#"), at):
            raise self.source.error(at, "JSON does not allow comments: remove it")
        character = self.text[at : at + 1]
        if not (character.isascii() or character.isprintable()):  # such as a no-break space, copied from a web page
            raise self.source.error(at, f"an invisible character, U+{ord(character):04X}: remove it")
        return at


def _not_a_key(start: str) -> str:
    """start: the first character in place of a key."""
    if start in TYPOGRAPHIC:
        return f'{start} is a typographic quotation mark; in JSON, write "'
    return 'expected a key in double quotes here, as in "name": ...'


def _not_a_value(word: str) -> str:
    if not word:
        return "expected a value here"
    if word.lower() in {"nan", "infinity", "-infinity", "inf", "-inf"}:
        return f"{word[:20]} is not valid JSON; expected a number (or null to switch an optional part off)"
    if word.lower() in {"true", "false", "none"}:
        return f"{word} is Python; in JSON, write {'null' if word.lower() == 'none' else word.lower()}"
    if word.startswith("'"):
        return "strings need double quotes in JSON, not single ones"
    if LOOSE_NUMBER.fullmatch(word):
        return f"{word[:40]} is not a JSON number; write {int(word) if word.lstrip('+-').isdigit() else float(word)}"
    if word[0] in TYPOGRAPHIC:
        return f'{word[0]} is a typographic quotation mark; in JSON, write "'
    return f"{word[:40]!r} is not a JSON value; a string needs double quotes"
