"""Strict JSON, and the line and column of everything in it.

The standard parser reads the values. The positions, which it forgets, are found by a second walk through the text,
which is made only when there is a mistake to show.
"""

import functools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from utils.errors import ConfigError
from utils.schema import KeyPath

MAX_DEPTH = 32
MAX_DIGITS = 18  # so that every integer fits into 64 bits

_SPACE = re.compile(r"[ \t\r\n]*")
_WORD = re.compile(r"[^\s,:\[\]{}\"]*")
# strings too, so that a bracket in one does not count; the last one may be unfinished
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]+|\\.)*"?|[\[\]{}]', re.DOTALL)
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")
_ESCAPED_NOT_TEXT = re.compile(r"\\u(?:0000|[dD][89a-fA-F])|[\ud800-\udfff]")
_CLOSING = {"{": "}", "[": "]"}


class _Refused(ValueError):  # noqa: N818  (becomes a ConfigError once its position is found)
    """What the standard parser accepts and a config must not contain."""


@dataclass(frozen=True)
class SourceLocation:
    """An offset in the text of a file, or an override of the command line, which has no text."""

    source: str
    text: str = field(default="", repr=False)
    offset: int = 0

    @property
    def line(self) -> int:
        """Counted from 1; 0 for an override."""
        return self.text.count("\n", 0, self.offset) + 1 if self.text else 0

    @property
    def column(self) -> int:
        """Counted from 1."""
        return self.offset - self.text.rfind("\n", 0, self.offset)

    def show(self, message: str) -> str:
        """The message, with the line and a caret below the location."""
        if not self.text:
            return f"{self.source}: {message}"
        start = self.text.rfind("\n", 0, self.offset) + 1
        number = f"{self.line:>5} | "
        # a long line (of a file without line breaks) is cut around the column; a tab is one column wide here
        cut = max(start, self.offset - 60)
        end = self.text.find("\n", cut)
        shown = self.text[cut : min(end if end >= 0 else len(self.text), cut + 90)].rstrip()
        shown = "".join(character if character.isprintable() else " " for character in shown)
        caret = " " * (len(number) + self.offset - cut) + "^"
        return f"{self.source}:{self.line}:{self.column}: {message}\n{number}{shown}\n{caret}"


@dataclass(frozen=True, eq=False)
class Source:
    """A JSON text, by the name that messages give it. An override of the command line has no text to point into."""

    name: str
    text: str = ""

    @functools.cached_property
    def _offsets(self) -> dict[KeyPath, tuple[int, int]]:
        """The offsets of every key and its value, by path; for a list's element, its own offset twice.

        Raises ConfigError at the first thing that is _Refused; the text is valid JSON at least up to there.
        """
        found: dict[KeyPath, tuple[int, int]] = {}
        start = _skip_space(self.text, 0)
        self._walk((), start, start, found)
        return found

    def _walk(self, path: KeyPath, key_at: int, at: int, found: dict[KeyPath, tuple[int, int]]) -> int:
        """Record a value and everything in it; return the offset of what follows it."""
        if path in found:
            first = self.at(found[path][0]).line
            raise self.error(key_at, f'duplicate key "{path[-1]}"; it is already in line {first}')
        found[path] = (key_at, at)
        opening = self.text[at]
        if opening not in _CLOSING:
            _, end = self._scalar(at)
            return _skip_space(self.text, end)
        at = _skip_space(self.text, at + 1)
        index = 0
        while self.text[at] != _CLOSING[opening]:
            key: str | int = index
            key_at = at
            if opening == "{":
                key, end = self._scalar(at)
                at = _skip_space(self.text, _skip_space(self.text, end) + 1)  # after the colon
            at = self._walk((*path, key), key_at, at, found)
            if self.text[at] == ",":
                at = _skip_space(self.text, at + 1)
            index += 1
        return _skip_space(self.text, at + 1)

    def _scalar(self, at: int) -> tuple[Any, int]:
        """The value at an offset, and the offset behind it."""
        try:
            value, end = _DECODER.raw_decode(self.text, at)
        except _Refused as error:
            raise self.error(at, str(error)) from error
        if isinstance(value, str) and _NOT_TEXT.search(value):
            raise self.error(at, "invalid character in a string (NUL or half of a surrogate pair)")
        return value, end

    def at(self, offset: int) -> SourceLocation:
        return SourceLocation(self.name, self.text, offset)

    def error(self, offset: int, message: str) -> ConfigError:
        """An error at an offset; behind the last character, it points there and not below an empty line."""
        end = len(self.text.rstrip())
        if offset >= end:
            return ConfigError(self.at(end).show(f"the text ends here; {message.replace(' here', '')}"))
        return ConfigError(self.at(offset).show(message))

    def locate(self, path: KeyPath, *, of_key: bool = False) -> SourceLocation:
        """The location of a path's value or key; of the nearest value around it if the text does not have it."""
        if not self.text:
            return SourceLocation(self.name)
        while path not in self._offsets:
            path, of_key = path[:-1], False
        return self.at(self._offsets[path][0 if of_key else 1])


@dataclass
class Document:
    """A parsed value, and which source each part of it comes from: that of its path, or of the nearest one above it."""

    value: Any
    sources: dict[KeyPath, Source]

    def locate(self, path: KeyPath, *, of_key: bool = False) -> SourceLocation:
        """The location of a path, or of the nearest value around it that its source has."""
        lengths = range(len(path), -1, -1)
        source = next(self.sources[path[:length]] for length in lengths if path[:length] in self.sources)
        return source.locate(path, of_key=of_key)

    def error(self, path: KeyPath, message: str) -> ConfigError:
        return ConfigError(self.locate(path).show(message))

    def set_source(self, path: KeyPath, source: Source) -> None:
        """Everything at and below a path now comes from this source."""
        self.sources = {old: kept for old, kept in self.sources.items() if old[: len(path)] != path}
        self.sources[path] = source


@dataclass(frozen=True)
class Problem:
    """Where in the config a mistake is, and what is wrong. at_key: the key itself is the mistake, not its value."""

    path: KeyPath
    message: str
    at_key: bool = False


def config_error(document: Document, problems: Sequence[Problem]) -> ConfigError:
    """All problems as one error, in the order in which they appear in the file; those of overrides come last."""
    located = [(document.locate(p.path, of_key=p.at_key), p) for p in dict.fromkeys(problems)]
    located.sort(key=lambda item: (item[0].line == 0, item[0].source, item[0].line, item[0].column))
    shown = [location.show(f"{dotted(p.path)}: {p.message}" if p.path else p.message) for location, p in located]
    count = f"{len(shown)} mistakes in the config:\n\n" if len(shown) > 1 else ""
    return ConfigError(count + "\n\n".join(shown))


def dotted(path: KeyPath) -> str:
    """A path as an override writes it."""
    return ".".join(str(part) for part in path)


def parse(text: str, name: str) -> Document:
    """Parse JSON. Raises ConfigError with name, line, column and reason at the first thing that is not valid."""
    source = Source(name, text)
    if not text.strip(" \t\r\n"):
        raise ConfigError(f"{name}:1:1: the file is empty; a config is a JSON object: {{ ... }}")
    opened = _open_brackets(text)
    if len(opened) > MAX_DEPTH + 1:
        raise source.error(opened[-1], f"nested deeper than {MAX_DEPTH} levels")
    value = None
    refused = _ESCAPED_NOT_TEXT.search(text) is not None
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise source.error(*_syntax_error(text, error)) from error
    except _Refused:
        refused = True
    if refused:
        source.locate(())  # raises the error with its location
    return Document(value, {(): source})


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(members)
    if len(value) < len(members):
        raise _Refused("duplicate key")
    return value


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise _Refused(f"integer of more than {MAX_DIGITS} digits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise _Refused(f"the number {digits[:40]} is too large")
    return value


def _constant(name: str) -> float:
    raise _Refused(_not_a_value(name))


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)


def _skip_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _syntax_error(text: str, error: json.JSONDecodeError) -> tuple[int, str]:
    """Offset and reason of a syntax error: what the standard parser found, in terms of what was probably meant."""
    if error.msg.startswith(("Unterminated", "Invalid")):
        reason = error.msg.removesuffix(" starting at").removesuffix(" at").rstrip(": ")
        return min(error.pos, len(text) - 1), f"invalid string: {reason[0].lower()}{reason[1:]}"
    at = _skip_space(text, error.pos)
    before = text[:at].rstrip()
    if text.startswith(("//", "/*", "#"), at):
        return at, "JSON has no comments: remove it"
    # from Python 3.13 on, the parser stops at a trailing comma, and before at the bracket behind it
    comma = at if text[at : at + 1] == "," else len(before) - 1
    after = _skip_space(text, comma + 1)
    if before[-1:] != ":" and text[comma : comma + 1] == "," and text[after : after + 1] in ("]", "}"):
        return comma, f'trailing comma before "{text[after]}"; JSON does not allow it: remove it'
    if error.msg.startswith("Expecting ':'"):
        key = [token[0] for token in _STRING_OR_BRACKET.finditer(before)][-1]
        return at, f"a colon is expected here after the key {key}"
    opened = _open_brackets(before)
    if at == len(text) and opened and before[-1] != ":":
        offset = opened[-1]
        return offset, f'this "{text[offset]}" is never closed by a "{_CLOSING[text[offset]]}"'
    if error.msg.startswith("Expecting property name"):
        return at, 'a key in double quotes is expected here, as in "name": ...'
    start = at - len(_WORD.match(text[:at][::-1])[0])  # type: ignore[index]  # matches always
    if start < at or error.msg.startswith("Expecting value"):  # the parser stops in the middle of 01 or truee
        return start, _not_a_value(_WORD.match(text, start)[0])  # type: ignore[index]
    if not opened and text[at] == "{":
        return at, "expected one JSON object, and this is a second one; is this the wrong file?"
    if not opened:
        return at, "unexpected text after the end of the config; is a bracket closed too early?"
    return at, f'a comma or a "{_CLOSING[text[opened[-1]]]}" is expected here; is a comma missing before it?'


def _open_brackets(text: str) -> list[int]:
    """The offsets of the brackets that are not closed, the innermost last; up to the first that is nested too deep."""
    opened: list[int] = []
    for token in _STRING_OR_BRACKET.finditer(text):
        if token[0] in _CLOSING:
            opened.append(token.start())
        elif token[0] in ("]", "}") and opened:
            opened.pop()
        if len(opened) > MAX_DEPTH + 1:
            break
    return opened


def _not_a_value(word: str) -> str:
    if not word:
        return "a value is expected here"
    if word.lower() in {"nan", "infinity", "-infinity", "inf", "-inf"}:
        return f"{word[:20]} is not valid JSON; expected a number (or null to switch an optional part off)"
    if word.lower() in {"true", "false", "none"}:
        return f"{word} is Python; JSON writes {'null' if word.lower() == 'none' else word.lower()}"
    if word.startswith("'"):
        return "strings need double quotes in JSON, not single ones"
    return f"{word[:40]!r} is not a JSON value; a string needs double quotes"
