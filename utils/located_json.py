"""Strict JSON that remembers where everything stands, so that an error can show the line.

The standard library's parser keeps the last of two equal keys in silence, accepts NaN and forgets positions.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from json.decoder import scanstring  # type: ignore[attr-defined]  # there since Python 2.6, undocumented
from pathlib import Path
from typing import Any

from utils.errors import ConfigError

KeyPath = tuple[str | int, ...]

_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?")
_SPACE = re.compile(r"[ \t\r\n]*")
_WORD = re.compile(r"[^\s,:\[\]{}\"]+")
_LITERALS = {"true": True, "false": False, "null": None}
MAX_DEPTH = 32
MAX_DIGITS = 18  # so that every integer fits into 64 bits
MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class Place:
    """Where something stands: a file and a position in it, or an override of the command line."""

    source: str
    line: int = 0
    column: int = 0
    text: str = ""

    def show(self, message: str) -> str:
        if not self.line:
            return f"{self.source}: {message}"
        number = f"{self.line:>5} | "
        # long lines (a file without line breaks) are cut around the column; a tab is one column wide here
        start = max(0, self.column - 60)
        shown = self.text[start : start + 90].replace("\t", " ").rstrip()
        caret = " " * (len(number) + self.column - 1 - start) + "^"
        return f"{self.source}:{self.line}:{self.column}: {message}\n{number}{shown}\n{caret}"


@dataclass
class Document:
    """A parsed value, with the place of every key and every value by its path from the root."""

    value: Any = None
    keys: dict[KeyPath, Place] = field(default_factory=dict)
    values: dict[KeyPath, Place] = field(default_factory=dict)

    def place(self, path: KeyPath, *, of_key: bool = False) -> Place:
        """The place of a path, or of the nearest thing around it that stands in the file."""
        places = self.keys if of_key else self.values
        while path and path not in places:
            path, places = path[:-1], self.values
        return places.get(path) or self.values[()]


def parse(text: str, source: str) -> Document:
    """Read JSON. Raises ConfigError with file, line, column and reason at the first thing that is not JSON."""
    return _Parser(text, source).document()


def read(path: Path, source: str) -> Document:
    """Read a JSON file. Raises ConfigError if it cannot be read or is not JSON."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{source}: {len(data):,} bytes are no config; is this the wrong file?")
    try:
        return parse(data.decode("utf-8-sig"), source)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{source}:{line}: not a text file in UTF-8 (byte {data[error.start]:#04x})") from error


class _Parser:
    def __init__(self, text: str, source: str) -> None:
        self.text, self.source = text, source
        self.at = 0
        self.result = Document()

    def document(self) -> Document:
        self.skip()
        if self.at == len(self.text):
            raise ConfigError(f"{self.source}:1:1: the file is empty; a config is a JSON object: {{ ... }}")
        self.result.value = self.value(())
        self.skip()
        if self.at < len(self.text):
            raise self.error("nothing may follow the end of the config; is a bracket closed too early?")
        return self.result

    def value(self, path: KeyPath) -> Any:
        self.skip()
        self.result.values[path] = self.place(self.at)
        if len(path) > MAX_DEPTH:
            raise self.error(f"nested deeper than {MAX_DEPTH} levels")
        first = self.text[self.at : self.at + 1]
        if first == "{":
            return dict(self.members(path))
        if first == "[":
            return list(self.items(path))
        if first == '"':
            return self.string()
        return self.scalar()

    def members(self, path: KeyPath) -> Iterator[tuple[str, Any]]:
        seen: dict[str, int] = {}
        for _ in self.elements("}"):
            start = self.at
            if self.text[start : start + 1] != '"':
                raise self.error('a key in double quotes is expected, as in "name": ...')
            key = self.string()
            if key in seen:
                raise self.error(f'the key "{key}" stands here a second time; the first is in line {seen[key]}', start)
            place = self.place(start)
            seen[key] = place.line
            self.result.keys[*path, key] = place
            self.skip()
            if self.text[self.at : self.at + 1] != ":":
                raise self.error(f'a colon is expected after the key "{key}"')
            self.at += 1
            yield key, self.value((*path, key))

    def items(self, path: KeyPath) -> Iterator[Any]:
        for index, _ in enumerate(self.elements("]")):
            yield self.value((*path, index))

    def elements(self, end: str) -> Iterator[None]:
        """Step through what stands between brackets, once for each element; the caller reads the element."""
        opened = self.at
        self.at += 1
        self.skip()
        if self.text[self.at : self.at + 1] == end:
            self.at += 1
            return
        while True:
            yield
            self.skip()
            mark = self.text[self.at : self.at + 1]
            if mark == end:
                self.at += 1
                return
            if mark == "":
                raise self.error(f'this "{self.text[opened]}" is never closed by a "{end}"', opened)
            if mark != ",":
                raise self.error(f'a comma or a "{end}" is expected here; is a comma missing before it?')
            comma = self.at
            self.at += 1
            self.skip()
            if self.text[self.at : self.at + 1] == end:
                raise self.error(f'a comma before "{end}"; JSON has no trailing commas: remove it', comma)

    def string(self) -> str:
        start = self.at
        try:
            value, self.at = scanstring(self.text, start + 1, True)
        except json.JSONDecodeError as error:
            reason = error.msg.removesuffix(" starting at").removesuffix(" at")
            raise self.error(f"this string is broken ({reason.lower()})", min(error.pos, len(self.text) - 1)) from error
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise self.error("a string holds a character that is none (NUL or half of a surrogate pair)", start)
        return str(value)

    def scalar(self) -> Any:
        number = _NUMBER.match(self.text, self.at)
        word = _WORD.match(self.text, self.at)
        found = word.group() if word else ""
        if number and number.group() == found:
            self.at = number.end()
            return self.number(number)
        if found in _LITERALS:
            self.at += len(found)
            return _LITERALS[found]
        raise self.error(_why_no_value(found))

    def number(self, match: re.Match[str]) -> int | float:
        text = match.group()
        if match.group(1) is None and match.group(2) is None:
            if len(text.lstrip("-")) > MAX_DIGITS:
                raise self.error(f"an integer of more than {MAX_DIGITS} digits", match.start())
            return int(text)
        value = float(text)
        if value in (float("inf"), float("-inf")):
            raise self.error(f"the number {text[:40]} is too large", match.start())
        return value

    def skip(self) -> None:
        space = _SPACE.match(self.text, self.at)
        self.at = space.end() if space else self.at
        if self.text.startswith(("//", "/*", "#"), self.at):
            raise self.error("JSON has no comments: remove it")

    def place(self, at: int) -> Place:
        start = self.text.rfind("\n", 0, at) + 1
        end = self.text.find("\n", at)
        line = self.text[start : end if end >= 0 else len(self.text)]
        return Place(self.source, self.text.count("\n", 0, at) + 1, at - start + 1, line)

    def error(self, message: str, at: int | None = None) -> ConfigError:
        return ConfigError(self.place(self.at if at is None else at).show(message))


def _why_no_value(found: str) -> str:
    if not found:
        return "a value is expected here"
    if found.lower() in {"nan", "infinity", "-infinity", "inf", "-inf"}:
        return f"{found[:20]} is no JSON; a number is expected (or null to switch an optional part off)"
    if found.lower() in {"true", "false", "none"}:
        return f"{found} is Python; JSON writes {'null' if found.lower() == 'none' else found.lower()}"
    if found.startswith("'"):
        return "strings stand in double quotes in JSON, not in single ones"
    return f"{found[:40]!r} is no JSON value; a string stands in double quotes"
