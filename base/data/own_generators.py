"""Random generators that a data set keeps for itself: its own from ``np.random.default_rng``, those of a library's
transforms.
"""

import gc
import pickle
import random
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.random import mix, numpy_random

MOST_OBJECTS = 10_000
"""Objects to look into; they take 20 ms."""
MOST_ITEMS = 100
"""Items of a list or dict to look into: the others, such as samples, are probably like them."""
PLAIN = (str, bytes, int, float, complex, Tensor, np.ndarray, type, ModuleType, type(None))


Snapshot = dict[str, tuple[Any, bytes]]
"""Generators and their pickled states, by name."""
NONE: Snapshot = {}


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
        self._places: list[tuple[Any, Any]] = []
        """A collection and the key or index there, not the generator itself, which may be replaced."""
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
        for number, place in enumerate(self._places):
            generator = _item(*place)
            if type(generator) in KINDS:
                found.setdefault(id(generator), (f"own {number}", generator))
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


def _item(owner: Any, key: Any) -> Any:
    try:
        return getattr(owner, key) if isinstance(owner, (MethodType, partial, CellType)) else owner[key]
    except (LookupError, ValueError):  # of an empty closure
        return None


def _places(objects: Any) -> Iterator[tuple[Any, Any]]:
    """Where generators are, the nearest first."""
    waiting, known = deque(objects), dict[int, Any]()  # objects are kept, since an id may be used again
    while waiting and len(known) < MOST_OBJECTS:
        owner = waiting.popleft()
        if id(owner) in known or isinstance(owner, PLAIN):
            continue
        known[id(owner)] = owner
        for place, key in _keys(owner, known):
            value = _item(place, key)
            if type(value) not in KINDS:
                waiting.append(value)
            elif not any(value is each for each in GLOBAL):
                yield place, key


def _keys(owner: Any, known: dict[int, Any]) -> Iterator[tuple[Any, Any]]:
    """What an object holds, as places. Attributes are looked at, not computed."""
    if type(owner) in (dict, list, tuple):  # another class may load a sample
        keys = owner if type(owner) is dict else range(len(owner))
        yield from [(owner, key) for key, _ in zip(keys, range(MOST_ITEMS), strict=False)]
    elif isinstance(owner, MethodType):
        yield from [(owner, "__self__"), (owner, "__func__")]
    elif isinstance(owner, partial):
        yield from [(owner, name) for name in ("func", "args", "keywords")]
    elif isinstance(owner, FunctionType):
        there = owner.__globals__
        yield from [(cell, "cell_contents") for cell in owner.__closure__ or ()]
        yield from [(there, name) for name in owner.__code__.co_names if type(there.get(name)) in KINDS]
    else:
        # once an object was asked for its __dict__, its attributes take longer (Python 3.11, 3.12)
        if not all(isinstance(each, PLAIN) for each in gc.get_referents(owner)):
            own = getattr(owner, "__dict__", {})
            yield from [(own, name) for name in own]
        for kind in type(owner).__mro__:
            if id(kind) not in known:
                known[id(kind)] = kind
                members = vars(kind)
                yield from [(members, name) for name in members if type(members[name]) in (*KINDS, FunctionType)]
