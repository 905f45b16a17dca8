"""Random generators that a data set keeps for itself: its own from ``np.random.default_rng``, those of a library's
transforms.
"""

import gc
import pickle
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from types import BuiltinMethodType, CellType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.random import mix, numpy_random

MOST_VALUES = 10_000
"""Values to look at; they take 20 ms."""
MOST_ITEMS = 100
"""Items of a list or dict to look at: the others, such as samples, are probably like them."""
PLAIN = (
    str, bytes, int, float, complex, set, frozenset, deque, Tensor, np.ndarray, type, ModuleType, type(None),
    random.SystemRandom,
)  # fmt: skip
"""What is not looked into. ``SystemRandom`` has no state."""
HELD: dict[type, tuple[str, ...]] = {
    MethodType: ("__self__", "__func__"),
    BuiltinMethodType: ("__self__",),
    partial: ("func", "args", "keywords"),
    FunctionType: ("__closure__", "__defaults__", "__kwdefaults__"),
    CellType: ("cell_contents",),
    staticmethod: ("__wrapped__",),
    classmethod: ("__wrapped__",),
    property: ("fget",),
}
"""What is looked at of Python's own types."""

Snapshot = dict[str, tuple[Any, bytes]]
"""Generators and their pickled states, by name."""


class Kind(NamedTuple):
    """How to handle a kind of generator, and the classes derived from it."""

    state: Callable[[Any], Any]
    restore: Callable[[Any, Any], Any]
    seed: Callable[[Any, int], Any]


def _set_numpy(generator: Any, state: Any) -> None:
    generator.bit_generator.state = state


KINDS: dict[type, Kind] = {
    random.Random: Kind(random.Random.getstate, random.Random.setstate, random.Random.seed),
    np.random.Generator: Kind(
        lambda generator: generator.bit_generator.state,
        _set_numpy,
        lambda generator, seed: _set_numpy(generator, type(generator.bit_generator)(seed).state),
    ),
    np.random.RandomState: Kind(
        lambda generator: generator.get_state(),
        lambda generator, state: generator.set_state(state),
        lambda generator, seed: generator.seed(seed % 2**32),
    ),
    torch.Generator: Kind(
        lambda generator: generator.get_state().numpy(),
        lambda generator, state: generator.set_state(torch.from_numpy(state)),
        torch.Generator.manual_seed,
    ),
}
GENERATORS = tuple(KINDS)
GLOBAL = (random.random.__self__, numpy_random.rand.__self__, torch.default_generator)  # type: ignore[attr-defined]


class OwnGenerators:
    """The generators, other than the global ones, inside some objects: in attributes, collections and closures, and
    globals that methods use. Each process looks for its own.
    """

    def __init__(self) -> None:
        self._found: dict[str, Any] = {}
        self._searches = 0

    def __reduce__(self) -> Any:
        return type(self), ()

    def snapshot(self, *objects: Any) -> Snapshot:
        """Each generator with its state, by a name that is the same in every process."""
        if self._searches < 2:  # again after the first batch, which may create some, or replace them
            self._searches += 1
            self._found = dict(_generators(objects))
        return {name: (each, pickle.dumps(_kind(each).state(each))) for name, each in self._found.items()}

    def seed(self, name: str, seed: int) -> None:
        if name in self._found:
            generator = self._found[name]
            _kind(generator).seed(generator, mix(seed, name))

    def restore(self, snapshot: Snapshot, names: list[str]) -> None:
        for name, (generator, state) in snapshot.items():
            if name in names:
                _kind(generator).restore(generator, pickle.loads(state))


def _kind(generator: Any) -> Kind:
    return next(KINDS[each] for each in type(generator).__mro__ if each in KINDS)


def _generators(objects: Any) -> Iterator[tuple[str, Any]]:
    """Each generator by the path to it, the nearest first."""
    known = {id(each): each for each in GLOBAL}  # objects are kept, since an id may be used again
    waiting, looked = deque[tuple[str, Any]]([("own", objects)]), 0
    while waiting and looked < MOST_VALUES:
        path, owner = waiting.popleft()
        with suppress(Exception):  # of what is empty, or of the user's code
            for name, value in _inside(owner, known):
                looked += 1
                kind = type(value)  # not isinstance, which may ask the object for its class
                if id(value) in known or issubclass(kind, PLAIN):
                    continue
                known[id(value)] = value
                if issubclass(kind, GENERATORS):
                    yield f"{path} {name}", value
                else:
                    waiting.append((f"{path} {name}", value))


def _inside(owner: Any, known: dict[int, Any]) -> Iterator[tuple[str, Any]]:
    """What an object holds, read without its own methods: they may load a sample. Only a slot that is empty may be
    asked of its ``__getattr__``.
    """
    kind = type(owner)
    if issubclass(kind, dict):
        for number, (key, value) in enumerate([*islice(dict.items(owner), MOST_ITEMS)]):
            yield repr(key) if type(key) is str else str(number), value
    for base in (list, tuple):
        if issubclass(kind, base):
            yield from [(str(number), item) for number, item in enumerate(islice(base.__iter__(owner), MOST_ITEMS))]
    for name in HELD.get(kind, ()):
        yield name, getattr(owner, name)
    if kind is FunctionType:
        yield from _globals(owner)
    elif kind not in HELD and kind not in (dict, list, tuple):
        yield from _attributes(owner, known)


def _globals(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Generators among the globals that a function uses, and functions in the same file, unless it is a library's."""
    there, codes = function.__globals__, [function.__code__]
    library = {"site-packages", "dist-packages"} & {*Path(function.__code__.co_filename).parts}
    for code in codes:
        codes += [each for each in code.co_consts if isinstance(each, type(code))]  # of comprehensions
        for name in code.co_names:
            value = there.get(name)
            # not a library's functions, which may draw unique names for files
            called = type(value) is FunctionType and value.__globals__ is there and not library
            if called or issubclass(type(value), GENERATORS):
                yield f"{function.__module__}.{name}", value


def _attributes(owner: Any, known: dict[int, Any]) -> Iterator[tuple[str, Any]]:
    for kind in type(owner).__mro__:
        if id(kind) not in known:
            known[id(kind)] = kind
            yield from [item for item in vars(kind).items() if issubclass(type(item[1]), (*GENERATORS, *HELD))]
    # once an object was asked for its __dict__, its attributes take longer (Python 3.11, 3.12)
    collection = issubclass(type(owner), (dict, list, tuple))
    if collection or not all(issubclass(type(each), PLAIN) for each in gc.get_referents(owner)):
        state: Any = object.__getstate__(owner)  # with slots, a tuple
        for part in state if type(state) is tuple else [state]:
            yield from [*(part or {}).items()]
