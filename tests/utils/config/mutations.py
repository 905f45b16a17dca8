"""Configs with something wrong: keys renamed, removed, doubled, moved, values of all kinds, files cut or garbled."""

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

KEY = re.compile(r'"([^"\\]+)"(?=\s*:)')
EXTREMES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 10**17, -(10**17), 0.5, -0.5, 1.5, 1e308, -1e308, 5e-324, "", "x", "0.1", "null",
    "cpu", "SGD", [], [[]], [1], ["accuracy"], {}, {"type": "SGD"}, {"type": 1}, {"args": {}}, {"": 0}, "é" * 300,
]  # fmt: skip


class Mutant(NamedTuple):
    kind: str
    data: bytes


def renamed_keys(text: str) -> Iterator[tuple[str, str]]:
    """The text with each single key changed by one letter, in turn. The value of "$schema" alone is free."""
    for match in KEY.finditer(text):
        key = match[1]
        for new in (f"{key}x", key[:-1], f"{key[0].upper()}{key[1:]}", key[1:] + key[0]):
            if new != key and new:
                yield f"{key} -> {new}", f"{text[: match.start(1)]}{new}{text[match.end(1) :]}"


def containers(value: Any) -> Iterator[Any]:
    """Every object and list in a value, itself included."""
    if isinstance(value, (dict, list)):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from containers(inner)


def _pick(value: Any, draw: random.Random) -> tuple[Any, Any]:
    """An object or list that is not empty, and a key in it."""
    container = draw.choice([item for item in containers(value) if item])
    return container, draw.choice(list(container)) if isinstance(container, dict) else draw.randrange(len(container))


def rename(value: Any, draw: random.Random) -> Any:
    container, key = _pick(value, draw)
    if isinstance(container, dict):
        letter = draw.randrange(len(key) + 1)
        new = key[:letter] + draw.choice("abcxyz_ \u00e9.") + key[letter + draw.randrange(2) :]
        container[new] = container.pop(key)
    return value


def remove(value: Any, draw: random.Random) -> Any:
    container, key = _pick(value, draw)
    del container[key]
    return value


def move(value: Any, draw: random.Random) -> Any:
    container, key = _pick(value, draw)
    moved = container.pop(key)
    target = draw.choice(list(containers(value)))
    if isinstance(target, dict):
        target[str(key)] = moved
    else:
        target.append(moved)
    return value


def retype(value: Any, draw: random.Random) -> Any:
    container, key = _pick(value, draw)
    container[key] = copy.deepcopy(draw.choice(EXTREMES))
    return value


def number(value: Any, draw: random.Random) -> Any:
    """A number becomes another one of its type."""
    places = [
        (container, key)
        for container in containers(value)
        for key, item in (container.items() if isinstance(container, dict) else enumerate(container))
        if type(item) in (int, float)
    ]
    for container, key in draw.sample(places, draw.choice([1, 1, 1, 3])):
        old = container[key]
        choices = (
            [-old, old * 2, old + 1, old * 1000, 0, 1, 10**12] if type(old) is int else [-old, 0.0, 1e30, old * 1e3]
        )
        container[key] = draw.choice([*choices, old / 3] if type(old) is float else choices)
    return value


def nest(value: Any, draw: random.Random) -> Any:
    container, key = _pick(value, draw)
    for _ in range(draw.choice([1, 2, 40])):
        container[key] = draw.choice([[container[key]], {"args": container[key]}, {"type": container[key]}])
    return value


def several(value: Any, draw: random.Random) -> Any:
    for _ in range(draw.randint(2, 5)):
        value = draw.choice([rename, remove, move, retype])(value, draw)
        if not any(containers(value)) or not value:
            break
    return value


def double(text: str, draw: random.Random) -> bytes:
    key = draw.choice(KEY.findall(text))
    return re.sub(rf'"{re.escape(key)}"\s*:', f'"{key}": 1, "{key}":', text, count=1).encode()


def cut(text: str, draw: random.Random) -> bytes:
    return text.encode()[: draw.randrange(len(text))]


def garble(text: str, draw: random.Random) -> bytes:
    data = bytearray(text.encode())
    for _ in range(draw.choice([1, 1, 2, 20])):
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def insert(text: str, draw: random.Random) -> bytes:
    at = draw.randrange(len(text))
    noise = ["//", "#", ",", "{", "}", "[", "]", '"', "NaN", "-", "\n", "\0", "'", ":", "1e999", "\ufeff", "\\u0000"]
    return (text[:at] + draw.choice(noise) + text[at:]).encode()


def noise(text: str, draw: random.Random) -> bytes:
    return draw.randbytes(draw.randrange(400))


def brackets(text: str, draw: random.Random) -> bytes:
    count = draw.choice([100, 10_000, 500_000])
    return draw.choice([b"[", b"{", b'{"a":', b"[[],", b"[]", b'"', b"[1,"]) * count


VALUES: list[Callable[[Any, random.Random], Any]] = [rename, remove, move, retype, number, nest, several]
TEXTS: list[Callable[[str, random.Random], bytes]] = [double, cut, garble, insert, noise, brackets]


def mutant(text: str, seed: int) -> Mutant:
    """A mutation of a config that a seed names."""
    draw = random.Random(seed)
    chosen = draw.randrange(len(VALUES) + len(TEXTS))
    if chosen < len(TEXTS):
        return Mutant(TEXTS[chosen].__name__, TEXTS[chosen](text, draw))
    change = VALUES[chosen - len(TEXTS)]
    return Mutant(change.__name__, json.dumps(change(json.loads(text), draw), indent=1).encode())
