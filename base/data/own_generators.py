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
from types import BuiltinMethodType, CellType, FunctionType, MemberDescriptorType, MethodType, ModuleType
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
)  # fmt: skip
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
NONE: Snapshot = {}
Place = tuple[str, Callable[[], Any]]
"""Where something is, by name, and a function that returns what is there now: it may be replaced."""


class Kind(NamedTuple):
    """How to handle a kind of generator."""

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
GLOBAL = (random.random.__self__, numpy_random.rand.__self__, torch.default_generator)  # type: ignore[attr-defined]


class OwnGenerators:
    """The generators, other than the global ones, inside some objects: in attributes, collections and closures, and
    globals that methods use. Each process looks for its own.
    """

    def __init__(self) -> None:
        self._places: list[Place] = []
        self._searches = 0
        self._current: dict[str, Any] = {}

    def __reduce__(self) -> Any:
        return type(self), ()

    def snapshot(self, *objects: Any) -> Snapshot:
        """Each generator with its state, by a name that is the same in every process."""
        if self._searches < 2:  # again after the first batch, which may create some
            self._searches += 1
            self._places = [*_places(objects)]
        if not self._places:
            return NONE
        found = dict[int, tuple[str, Any]]()
        for name, get in self._places:
            generator = _value(get)
            if type(generator) in KINDS:
                found.setdefault(id(generator), (name, generator))
        self._current = dict(found.values())
        return {
            name: (generator, pickle.dumps(KINDS[type(generator)].state(generator)))
            for name, generator in self._current.items()
        }

    def seed(self, name: str, seed: int) -> None:
        if name in self._current:
            generator = self._current[name]
            KINDS[type(generator)].seed(generator, mix(seed, name))

    def restore(self, snapshot: Snapshot, names: list[str]) -> None:
        for name, (generator, state) in snapshot.items():
            if name in names:
                KINDS[type(generator)].restore(generator, pickle.loads(state))


def _value(get: Callable[[], Any]) -> Any:
    with suppress(Exception):  # of what has become empty, or of the user's code
        return get()


def _places(objects: Any) -> Iterator[Place]:
    """Where generators are, the nearest first."""
    known = dict[int, Any]()  # objects are kept, since an id may be used again
    waiting, looked = deque[tuple[str, Any]]([("own", objects)]), 0
    while waiting and looked < MOST_VALUES:
        path, owner = waiting.popleft()
        if id(owner) in known:
            continue
        known[id(owner)] = owner
        for name, get in _inside(owner, known):
            looked += 1
            value = _value(get)
            # not isinstance, which may ask the object for its class
            if type(value) in KINDS:
                if not any(value is each for each in GLOBAL):
                    yield f"{path} {name}", get
            elif not issubclass(type(value), PLAIN):
                waiting.append((f"{path} {name}", value))


def _inside(owner: Any, known: dict[int, Any]) -> Iterator[Place]:
    """What an object holds, read without its own methods: they may load a sample."""
    kind = type(owner)
    if issubclass(kind, dict):
        for number, key in enumerate([*islice(dict.__iter__(owner), MOST_ITEMS)]):
            yield repr(key) if type(key) is str else str(number), partial(dict.get, owner, key)
    for base in (list, tuple):
        if issubclass(kind, base):
            length = min(base.__len__(owner), MOST_ITEMS)
            yield from [(str(number), partial(base.__getitem__, owner, number)) for number in range(length)]
    for name in HELD.get(kind, ()):
        yield name, partial(getattr, owner, name)
    if kind is FunctionType:
        yield from _globals(owner)
    elif kind not in HELD and kind not in (dict, list, tuple):
        yield from _attributes(owner, known)


def _globals(function: FunctionType) -> Iterator[Place]:
    """Generators among the globals that a function uses, and functions in the same file, unless it is a library's."""
    there, codes = function.__globals__, [function.__code__]
    own = "-packages" not in function.__code__.co_filename  # a library may draw unique names for files
    for code in codes:
        codes += [each for each in code.co_consts if isinstance(each, type(code))]  # of comprehensions
        for name in code.co_names:
            value = there.get(name)
            if type(value) in KINDS or (own and type(value) is FunctionType and value.__globals__ is there):
                yield f"{function.__module__}.{name}", partial(there.get, name)


def _attributes(owner: Any, known: dict[int, Any]) -> Iterator[Place]:
    # once an object was asked for its __dict__, its attributes take longer (Python 3.11, 3.12)
    collection = issubclass(type(owner), (dict, list, tuple))
    if collection or not all(issubclass(type(each), PLAIN) for each in gc.get_referents(owner)):
        own = _value(partial(object.__getattribute__, owner, "__dict__"))
        yield from [(name, partial(own.get, name)) for name in [*own]] if type(own) is dict else ()
    for kind in type(owner).__mro__:
        if id(kind) not in known:
            members = [*vars(kind).items()]
            known[id(kind)] = kind, [(name, slot) for name, slot in members if type(slot) is MemberDescriptorType]
            for name, member in members:
                if type(member) in KINDS or type(member) in HELD:
                    yield name, partial(vars(kind).get, name)
        for name, slot in known[id(kind)][1]:
            yield name, partial(slot.__get__, owner)
