"""Strict JSON that remembers where everything stands, so that an error can show the line.

The standard library's parser keeps the last of two equal keys in silence, accepts NaN and forgets positions.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from json.decoder import scanstring  # type: ignore[attr-defined]  # there since Python 2.6, undocumented
from pathlib import Path
from typing import Any

from utils.errors import ConfigError
from utils.text import closest

KeyPath = tuple[str | int, ...]

_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)((?:\.\d+)?(?:[eE][-+]?\d+)?)")
_SPACE = re.compile(r"[ \t\r\n]*")
_WORD = re.compile(r"[^\s,:\[\]{}\"]+")
_LITERALS: dict[str, Any] = {"true": True, "false": False, "null": None}
MAX_DEPTH = 32
MAX_DIGITS = 18  # so that every integer fits into 64 bits
MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class SourceLocation:
    """Where something stands: an offset in the text of a file, or an override of the command line (no text)."""

    source: str
    text: str = field(default="", repr=False)
    at: int = 0

    @property
    def line(self) -> int:
        """Counted from 1; 0 for an override. Found when asked for: most places are never shown."""
        return self.text.count("\n", 0, self.at) + 1 if self.text else 0

    @property
    def column(self) -> int:
        return self.at - self.text.rfind("\n", 0, self.at)

    def show(self, message: str) -> str:
        """The message, with the line and a caret below the place."""
        if not self.text:
            return f"{self.source}: {message}"
        line, column, start = self.line, self.column, self.text.rfind("\n", 0, self.at) + 1
        number = f"{line:>5} | "
        # a long line (of a file without line breaks) is cut around the column; a tab is one column wide here
        cut = max(start, self.at - 60)
        end = self.text.find("\n", cut)
        shown = self.text[cut : min(end if end >= 0 else len(self.text), cut + 90)].rstrip()
        shown = "".join(character if character.isprintable() else " " for character in shown)
        return f"{self.source}:{line}:{column}: {message}\n{number}{shown}\n{' ' * (len(number) + self.at - cut)}^"


@dataclass
class Document:
    """A parsed value, with the place of every key and every value by its path from the root."""

    value: Any = None
    keys: dict[KeyPath, SourceLocation] = field(default_factory=dict)
    values: dict[KeyPath, SourceLocation] = field(default_factory=dict)

    def place(self, path: KeyPath, *, of_key: bool = False) -> SourceLocation:
        """The place of a path, or of the nearest thing around it that stands in the file."""
        places = self.keys if of_key else self.values
        while path and path not in places:
            path, places = path[:-1], self.values
        return places.get(path) or self.values[()]

    def graft(self, other: "Document", path: KeyPath) -> None:
        """What stands at and below a path is now that of another document."""
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            for old in [old for old in mine if old[: len(path)] == path]:
                del mine[old]
            mine.update({new: place for new, place in theirs.items() if new[: len(path)] == path})

    def replace(self, path: KeyPath, place: SourceLocation) -> None:
        """Whatever stood at and below a path now stands at one place."""
        self.graft(Document(keys={path: place}, values={path: place}), path)


def parse(text: str, source: str) -> Document:
    """Read JSON. Raises ConfigError with file, line, column and reason at the first thing that is not JSON."""
    return _Parser(text, source).document()


def read(path: Path, source: str) -> Document:
    """Read a JSON file that holds one object. Raises ConfigError if it cannot be read or is something else."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        near = closest(path.name, [other.name for other in path.parent.glob("*.json")]) if path.name else None
        meant = f'; did you mean "{near}"?' if isinstance(error, FileNotFoundError) and near else ""
        if (path / "config.json").is_file():
            meant = "; it is the folder of a run: -r goes on with it"
        raise ConfigError(f"{source}: the config cannot be read: {reason}{meant}") from error
    text = _text(data, source)
    document = parse(text, source)
    if not isinstance(document.value, dict):
        raise ConfigError(document.values[()].show("a config is a JSON object: { ... }; is this the wrong file?"))
    return document


def _text(data: bytes, source: str) -> str:
    """The text of a file; what is none is told by its first bytes."""
    kinds = {
        b"PK\x03\x04": "this is a zip archive, as checkpoints are; a run and its config are resumed by -r",
        b"\xff\xfe": "this is UTF-16; save it as UTF-8",
        b"\xfe\xff": "this is UTF-16; save it as UTF-8",
    }
    for start, message in kinds.items():
        if data.startswith(start):
            raise ConfigError(f"{source}:1:1: {message}")
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{source}:1:1: more than {MAX_BYTES:,} bytes are no config; is this the wrong file?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = data.count(b"\n", 0, error.start) + 1, error.start - data.rfind(b"\n", 0, error.start)
        found = f"byte {data[error.start]:#04x}"
        raise ConfigError(
            f"{source}:{line}:{column}: this is no text in UTF-8 ({found}); is it the wrong file?"
        ) from error
    first = text.lstrip()[:1]
    if first not in ("", "{", "/", "[", '"'):
        place = SourceLocation(source, text, len(text) - len(text.lstrip()))
        raise ConfigError(place.show("a config is JSON and begins with {; is this the wrong file?"))
    return text


class _Parser:
    def __init__(self, text: str, source: str) -> None:
        self.text, self.source = text, source
        self.at = 0
        self.result = Document()

    def document(self) -> Document:
        if not self.next():
            raise ConfigError(f"{self.source}:1:1: there is nothing here; a config is a JSON object: {{ ... }}")
        self.result.value = self.value(())
        if self.next() == "{":
            raise self.error("a config is one JSON object, and this is a second one; is this the wrong file?")
        if self.next():
            raise self.error("nothing may follow the end of the config; is a bracket closed too early?")
        return self.result

    def next(self) -> str:
        """Go to the next character that is no white space, and give it; empty at the end."""
        space = _SPACE.match(self.text, self.at)
        self.at = space.end() if space else self.at
        if self.text.startswith(("//", "/*", "#"), self.at):
            raise self.error("JSON has no comments: remove it")
        return self.text[self.at : self.at + 1]

    def value(self, path: KeyPath) -> Any:
        first = self.next()
        self.result.values[path] = self.place(self.at)
        if len(path) > MAX_DEPTH:
            raise self.error(f"nested deeper than {MAX_DEPTH} levels")
        if first == "{":
            return dict(self.members(path))
        if first == "[":
            return [self.value((*path, index)) for index, _ in enumerate(self.elements("]"))]
        return self.string() if first == '"' else self.scalar()

    def members(self, path: KeyPath) -> Iterator[tuple[str, Any]]:
        for _ in self.elements("}"):
            start = self.at
            if self.next() != '"':
                raise self.error('a key in double quotes is expected, as in "name": ...')
            key = self.string()
            if first := self.result.keys.get((*path, key)):
                raise self.error(f'the key "{key}" stands here a second time; the first is in line {first.line}', start)
            self.result.keys[*path, key] = self.place(start)
            if self.next() != ":":
                raise self.error(f'a colon is expected after the key "{key}"')
            self.at += 1
            yield key, self.value((*path, key))

    def elements(self, end: str) -> Iterator[None]:
        """Step through what stands between brackets, once for each element; the caller reads the element."""
        opened = self.at
        self.at += 1
        while (mark := self.next()) != end:
            if mark:
                yield
                mark = self.next()
            if not mark:
                raise self.error(f'this "{self.text[opened]}" is never closed by a "{end}"', opened)
            if mark == ",":
                comma = self.at
                self.at += 1
                if self.next() == end:
                    raise self.error(f'a comma before "{end}"; JSON has no trailing commas: remove it', comma)
            elif mark != end:
                raise self.error(f'a comma or a "{end}" is expected here; is a comma missing before it?')
        self.at += 1

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
        word = _WORD.match(self.text, self.at)
        found = word.group() if word else ""
        if found in _LITERALS:
            value = _LITERALS[found]
        elif number := _NUMBER.fullmatch(found):
            value = self.number(found, whole=not number.group(1))
        else:
            raise self.error(_why_no_value(found))
        self.at += len(found)
        return value

    def number(self, text: str, *, whole: bool) -> int | float:
        if whole and len(text.lstrip("-")) > MAX_DIGITS:
            raise self.error(f"an integer of more than {MAX_DIGITS} digits")
        value = int(text) if whole else float(text)
        if math.isinf(value):
            raise self.error(f"the number {text[:40]} is too large")
        return value

    def place(self, at: int) -> SourceLocation:
        return SourceLocation(self.source, self.text, at)

    def error(self, message: str, at: int | None = None) -> ConfigError:
        at, end = self.at if at is None else at, len(self.text.rstrip())
        if at >= end:  # the caret stands behind the last thing there is, not below an empty line
            return ConfigError(self.place(end).show(f"the text ends here; {message.replace(' here', '')}"))
        return ConfigError(self.place(at).show(message))


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
