"""Texts from docstrings: a paragraph on a component, and the descriptions of its arguments."""

import inspect
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

# "lr (float, optional): learning rate" of torch, "mean, std: per channel" of ours
_ARGUMENT = re.compile(r"^(?P<indent>\s*)(?P<names>\w+(?:, \w+)*)(?: ?\([^:]*\))?\s*: (?P<text>\S.*)$")
_ROLE = re.compile(r":\w+:`[~!]?([^`<]*?)(?: <[^`]*>)?`")
_DEFAULT = re.compile(r"\s*\(?[Dd]efaults?(?: to|:)\s.*$")


def paragraph(component: Callable[..., Any]) -> str:
    """The first paragraph of a docstring as one line; empty if there is none."""
    return _plain(inspect.cleandoc(_own_doc(component)).split("\n\n")[0])


def without_arguments(component: Callable[..., Any], names: Collection[str]) -> str:
    """The docstring without its descriptions of these arguments."""
    kept, inside = list[str](), -1
    for line in inspect.cleandoc(_own_doc(component)).splitlines():
        indent, match = len(line) - len(line.lstrip()), _ARGUMENT.match(line)
        if match and set(match["names"].split(", ")) <= set(names):
            inside = indent
        elif inside < 0 or (line.strip() and indent <= inside):
            inside = -1
            kept.append(line)
    return "\n".join(kept).strip()


def unwrapped(text: str) -> list[str]:
    """The lines of a text, with a full line joined to the next one of the same indentation, unless it is an item."""
    lines = list[str]()
    last, full = -1, False
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if full and line.strip() and indent == last and line[indent] not in "-*>":
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line)
        last, full = indent, len(line) > 90
    return lines


def arguments(component: Callable[..., Any], names: Collection[str]) -> dict[str, str]:
    """Descriptions of arguments in the docstrings of a component and of its base classes."""
    found: dict[str, str] = {}
    for kind in inspect.getmro(component) if inspect.isclass(component) else (component,):
        for doc in (_own_doc(kind), _own_doc(getattr(kind, "__init__", None))):
            for name, text in _entries(inspect.cleandoc(doc).splitlines()):
                if name in names:
                    found.setdefault(name, text)
    return found


def _own_doc(item: Any) -> str:
    """A docstring that is not inherited."""
    return (vars(item).get("__doc__") if inspect.isclass(item) else getattr(item, "__doc__", None)) or ""


def _entries(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Each described argument with its text, including what is indented below it."""
    for number, line in enumerate(lines):
        match = _ARGUMENT.match(line)
        if not match:
            continue
        text = [match["text"]]
        for more in lines[number + 1 :]:
            if len(more) - len(more.lstrip()) <= len(match["indent"]) or not more.strip():
                break
            text.append(more.strip())
        for name in match["names"].split(", "):
            yield name, _DEFAULT.sub("", _plain(" ".join(text)))


def _plain(text: str) -> str:
    """Text without Sphinx markup, in one line."""
    text = _ROLE.sub(r"\1", text).replace("``", "`").replace("`_", "").replace("`", "").replace("\\", "")
    return " ".join(text.split())
