"""Strict JSON that records where each key and list element is."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from utils.errors import ConfigError, Problem
from utils.extras import find_extra
from utils.schema import KeyPath, is_below
from utils.text import at_most, dotted, width

MAX_DEPTH = 32
MOST_SHOWN = 20  # mistakes

_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^\s{}\[\],:"]+')
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, eq=False)
class Source:
    """A JSON text and its name in messages. An override from the command line has no text to point into."""

    name: str
    text: str | None = None
    offsets: dict[KeyPath, int] = field(default_factory=dict)
    """Of every key and list element, by path."""

    def offset(self, path: KeyPath) -> int:
        """Of a path, or of the nearest enclosing one that the text has."""
        while self.text is not None and path not in self.offsets:
            path = path[:-1]
        return self.offsets.get(path, 0)

    def show(self, offset: int, message: str) -> str:
        """The message, with the line and a caret below the offset."""
        if self.text is None:
            return f"{self.name}: {message}"
        line = self.text.count("\n", 0, offset) + 1
        start = self.text.rfind("\n", 0, offset) + 1
        number = f"{line:>5} | "
        # a long line (from a file without line breaks) is cut around the column; a tab is one column wide here
        cut = max(start, offset - 60)
        shown = self.text[cut : cut + 90].partition("\n")[0].rstrip()
        shown = "".join(character if character.isprintable() else " " for character in shown)
        caret = " " * width(number + shown[: offset - cut]) + "^"
        return f"{self.name}:{line}:{offset - start + 1}: {message}\n{number}{shown}\n{caret}"

    def error(self, offset: int, message: str) -> ConfigError:
        return ConfigError(self.show(offset, message))


@dataclass
class Document:
    """A parsed value, and the source of each part, found by its path or the nearest path above it."""

    value: Any
    sources: dict[KeyPath, Source]

    def source_of(self, path: KeyPath) -> Source:
        """Where the value at a path comes from."""
        lengths = range(len(path), -1, -1)
        return next(self.sources[path[:length]] for length in lengths if path[:length] in self.sources)

    def error(self, path: KeyPath, message: str) -> ConfigError:
        """An error about the value at a path."""
        return config_error(self, [Problem(path, message)])

    def is_override(self, path: KeyPath) -> bool:
        """Whether the value at this path comes from the command line, rather than a file."""
        return self.source_of(path).text is None

    def set_source(self, path: KeyPath, source: Source) -> None:
        """Mark everything at and below a path as coming from this source."""
        self.sources = {old: kept for old, kept in self.sources.items() if not is_below(old, path)}
        self.sources[path] = source


def config_error(document: Document, problems: Sequence[Problem]) -> ConfigError:
    """All problems as one error, in file order; problems of overrides come last."""
    located = [(document.source_of(each.path), each) for each in dict.fromkeys(problems)]
    located.sort(key=lambda item: (item[0].text is None, item[0].name, item[0].offset(item[1].path)))

    def show(item: tuple[Source, Problem]) -> str:
        source, each = item
        text = f"{dotted(each.path)}: {each.message}" if each.path else each.message
        below = _overrides_below(document, each.path) if source.text is not None else ""
        return source.show(source.offset(each.path), text) + below

    count = f"{len(located):,} mistakes in the config:\n\n" if len(located) > 1 else ""
    return ConfigError(count + "\n\n".join(at_most(MOST_SHOWN, located, show)))


def _overrides_below(document: Document, path: KeyPath) -> str:
    """The overrides of what is below a path, which the lines of the file do not show."""
    sources = document.sources.items()
    below = {source.name: "" for at, source in sources if path and is_below(at, path) and source.text is None}
    return "".join(f"\n    with {name}" for name in below)


def parse(text: str, name: str) -> Document:
    """Parse JSON. Raises ConfigError with name, line, column and reason at the first syntax error."""
    source = Source(name, text)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        hints = find_extra("hints")
        offset, reason = hints.json_mistake(text, error) if hints else (error.pos, f"not valid JSON: {error.msg}")
        raise source.error(offset, reason) from error
    except (ValueError, RecursionError) as error:  # thousands of digits or brackets
        raise source.error(0, f"cannot be read: {error}") from error
    _locate(source, text)
    return Document(value, {(): source})


def _locate(source: Source, text: str) -> None:
    """Record the offsets in a text that is JSON. Raises ConfigError for what a config cannot have."""
    path: list[Any] = []  # None: a key follows
    for token in _TOKEN.finditer(text):
        word, offset = token[0], token.start()
        _check(source, word, offset)
        if word in "]}":
            path.pop()
        elif word == ",":
            path[-1] = path[-1] + 1 if isinstance(path[-1], int) else None
        elif path and path[-1] is None:
            path[-1] = json.loads(word)
            if tuple(path) in source.offsets:
                first = text.count("\n", 0, source.offsets[tuple(path)]) + 1
                raise source.error(offset, f'duplicate key "{path[-1]}"; already given in line {first}')
            source.offsets[tuple(path)] = offset
        elif word != ":":
            source.offsets.setdefault(tuple(path), offset)
            if word in "[{":
                path.append(None if word == "{" else 0)
            if len(path) > MAX_DEPTH:
                raise source.error(offset, f"nested deeper than {MAX_DEPTH} levels")


def _check(source: Source, word: str, offset: int) -> None:
    if word[0] == '"' and _NOT_TEXT.search(json.loads(word)):
        raise source.error(offset, "invalid character in a string (NUL or half of a surrogate pair)")
    if word[0] in "-0123456789NI":
        number = json.loads(word)
        if abs(number) >= 2**63 if isinstance(number, int) else not math.isfinite(number):
            raise source.error(offset, f"{word[:40]} is not a finite number of at most 64 bits")
