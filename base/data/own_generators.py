"""Random generators that a data set keeps for itself, from ``np.random.default_rng`` or in a library's transforms."""

import gc
import pickle
import random
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, partial
from hashlib import blake2b
from itertools import islice, pairwise
from types import BuiltinMethodType, CellType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.random import mix, numpy_random
from utils.user_code import MACHINERY

MOST_VALUES = 10_000
"""Values to look at, and again as many that are found by global names; they take 20 ms."""
MOST_ITEMS = 100
"""Items of a list or dict to look at: the others, such as samples, are probably like them."""
PLAIN = (
    str, bytes, int, float, complex, set, frozenset, Tensor, np.ndarray, ModuleType, type(None), random.SystemRandom,
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
    threading.local: ("__dict__",),
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


def _seed_numpy(generator: Any, seed: int) -> None:
    kind = type(generator.bit_generator)
    if kind is not np.random.PCG64:
        _set_numpy(generator, kind(seed).state)
        return
    # that of default_rng, in a fifth of the time of PCG64(seed), which would take 15 us for each sample
    words = int.from_bytes(blake2b(seed.to_bytes(8), digest_size=32).digest())
    state = {"state": words >> 128, "inc": words % 2**128 | 1}
    _set_numpy(generator, {"bit_generator": "PCG64", "state": state, "has_uint32": 0, "uinteger": 0})


KINDS: dict[type, Kind] = {
    random.Random: Kind(random.Random.getstate, random.Random.setstate, random.Random.seed),
    np.random.Generator: Kind(
        lambda generator: generator.bit_generator.state,
        _set_numpy,
        _seed_numpy,
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
CACHED = type(cache(len))
LIBRARIES = sys.stdlib_module_names | MACHINERY
"""Top-level modules that are not the user's, besides those of installed packages."""
GLOBAL = (random.random.__self__, numpy_random.rand.__self__, torch.default_generator)  # type: ignore[attr-defined]


class OwnGenerators:
    """The generators, other than the global ones, inside some objects: in attributes, collections and closures, and
    what the user's functions and classes find by global names, in any file of the user's. Each process looks for its
    own.
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
        return {name: (each, pickle.dumps(kind_of(each).state(each))) for name, each in self._found.items()}

    def seed(self, name: str, seed: int) -> None:
        if name in self._found:
            generator = self._found[name]
            kind_of(generator).seed(generator, mix(seed, name))

    def restore(self, snapshot: Snapshot, names: list[str]) -> None:
        for name, (generator, state) in snapshot.items():
            if name in names:
                kind_of(generator).restore(generator, pickle.loads(state))


def kind_of(generator: Any) -> Kind:
    return next(KINDS[each] for each in type(generator).__mro__ if each in KINDS)


def _generators(objects: Any) -> Iterator[tuple[str, Any]]:
    """Each generator by the path to it, the nearest first."""
    known = {id(each): each for each in GLOBAL}  # objects are kept, since an id may be used again
    waiting = deque[tuple[str, Any]]([("own", objects)])
    by_global_names = deque[tuple[str, Any]]()  # last: a large table would take the place of the objects' own parts
    for queue in (waiting, by_global_names):
        looked = 0
        while queue and looked < MOST_VALUES:
            path, owner = queue.popleft()
            with suppress(Exception):  # of what is empty, or of the user's code
                for name, value in _inside(owner, known):
                    looked += 1
                    kind = type(value)  # not isinstance, which may ask the object for its class
                    if id(value) in known or issubclass(kind, PLAIN) or (issubclass(kind, type) and not _is_own(value)):
                        continue
                    if not issubclass(kind, type):  # these, once their attributes are known
                        known[id(value)] = value
                    if issubclass(kind, GENERATORS):
                        yield f"{path} {name}", value
                        continue
                    is_global = type(owner) is FunctionType and name not in HELD[FunctionType]
                    (by_global_names if is_global else queue).append((f"{path} {name}", value))


def _inside(owner: Any, known: dict[int, Any]) -> Iterator[tuple[str, Any]]:
    """What an object holds, read without its own methods: they may load a sample. Only a slot that is empty may be
    asked of its ``__getattr__``.
    """
    kind = type(owner)
    if issubclass(kind, dict):
        for number, (key, value) in enumerate([*islice(dict.items(owner), MOST_ITEMS)]):
            yield _key_name(key, number), value
    for base in (list, tuple, deque):
        if issubclass(kind, base):
            yield from [(str(number), item) for number, item in enumerate(islice(base.__iter__(owner), MOST_ITEMS))]
    for name in HELD.get(kind, ()):
        yield name, getattr(owner, name)
    if kind is CACHED and _is_own(owner):  # what it has returned
        held = [None, *islice(gc.get_referents(owner), 3 * MOST_ITEMS)]  # with a limited size, each after its key
        yield from [(_key_name(key, number), each) for number, (key, each) in enumerate(pairwise(held))]
    if kind is FunctionType:
        yield from _globals(owner)
    elif issubclass(kind, type):
        yield from _class_attributes(owner, known)
    elif kind not in HELD and kind not in (dict, list, tuple, deque):
        yield from _class_attributes(kind, known)
        yield from _attributes(owner)


def _key_name(key: Any, number: int) -> str:
    """A key of a dict, as it is whatever was added before; its number if it contains an object."""
    parts = key if type(key) is tuple else (key,)
    return repr(key) if all(type(each) in (str, int, float, bool, type(None)) for each in parts) else f"#{number}"


def _is_own(code: Any) -> bool:
    """Whether a function, class or module is the user's, rather than of a library or of this project's own folders."""
    name = str(code.__name__ if type(code) is ModuleType else code.__module__)
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return name.partition(".")[0] not in LIBRARIES and not re.search(r"[/\\](site|dist)-packages[/\\]", file)


def _globals(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """What the user's function finds by global names, of its own or other files, but no function of a library.

    Of a library's function, only generators: functions that it calls may draw unique names for files.
    """
    own, codes, modules = _is_own(function), [function.__code__], [function.__globals__]
    for code in codes:
        codes += [each for each in code.co_consts if isinstance(each, type(code))]  # of comprehensions
    names = [*dict.fromkeys(name for code in codes for name in code.co_names)]
    for module in modules:
        for name in names:
            value = module[name] if name in module else sys.modules.get(name)  # imported where it is used
            follow = own and (type(value) not in (FunctionType, ModuleType) or _is_own(value))
            if follow or issubclass(type(value), GENERATORS):
                yield f"{module.get('__name__')}.{name}", value
                if type(value) is ModuleType and all(vars(value) is not each for each in modules):
                    modules.append(vars(value))


def _class_attributes(owner: type, known: dict[int, Any]) -> Iterator[tuple[str, Any]]:
    """Of the user's classes, all; of a library's, only methods and generators."""
    for kind in owner.__mro__:
        if id(kind) not in known:
            known[id(kind)] = kind
            own, values = _is_own(kind), vars(kind).items()
            yield from [item for item in values if own or issubclass(type(item[1]), (*GENERATORS, *HELD))]


def _attributes(owner: Any) -> Iterator[tuple[str, Any]]:
    # once an object was asked for its __dict__, its attributes take longer (Python 3.11, 3.12)
    collection = issubclass(type(owner), (dict, list, tuple, deque))
    if collection or not all(issubclass(type(each), PLAIN) for each in gc.get_referents(owner)):
        state: Any = object.__getstate__(owner)  # with slots, a tuple
        for part in state if type(state) is tuple else [state]:
            yield from [*(part or {}).items()]
