"""Where the generators that a data set keeps for itself are found, whatever else it keeps."""

import functools
import gc
import itertools
import multiprocessing
import random
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from base.data import own_generators
from base.data.batches import START, Batches, Position
from base.data.own_generators import MOST_ITEMS, MOST_VALUES, OwnGenerators
from base.data.sample_random import SampleRandom
from base.data.sample_source import SampleSource

MODULE_GENERATOR = np.random.default_rng()


@dataclass(slots=True)
class Slotted:
    generator: Any


class Named(NamedTuple):
    generator: Any


def helper() -> Any:
    return [MODULE_GENERATOR.random() for _ in range(2)]


class Jitter:
    """As a transform of the user's, or of a library's, that keeps a generator."""

    shared = np.random.default_rng()

    def __init__(self) -> None:
        self.generator = np.random.default_rng()

    def __call__(self) -> Any:
        return self.generator.random()

    @classmethod
    def of_class(cls) -> Any:
        return cls.shared.random()


class OnlyNamed(Jitter):
    """Found by its name alone."""

    shared = np.random.default_rng()


class OnlyMade(Jitter):
    """Only the function that creates an object knows it."""

    shared = np.random.default_rng()


def other_file() -> Any:
    """A module, of which a test finds only one part, lest another test's part leads to it."""
    made = ModuleType("other_file")
    exec("import random\ngenerator = random.Random()\ndef draw():\n    return generator.random()", vars(made))
    vars(made)["FILE_OF_VALUES"] = made  # as of files that import each other
    return made


MODULE_JITTER = Jitter()
MODULE_STATE = {7: random.Random()}
MODULE_LOCAL = threading.local()
MODULE_LOCAL.generator = random.Random()
OTHER_FILE = other_file()
FILE_OF_VALUES = other_file()
IMPORTED = other_file().draw


@functools.cache
def cached(name: str) -> random.Random:
    return random.Random()


class Derived(random.Random):
    """As users derive one, to add a distribution."""


class DerivedNumpy(np.random.Generator):
    pass


class DerivedTorch(torch.Generator):
    pass


class Keeping:
    """Keeps a generator in one of several places."""

    derived = Derived()
    derived_numpy = DerivedNumpy(np.random.PCG64())
    derived_torch = DerivedTorch()
    system = random.SystemRandom()
    jitter = Jitter()

    def __init__(self, where: str) -> None:
        self.where = where
        self.slots = Slotted(np.random.default_rng())
        self.named = Named(np.random.default_rng())
        self.ordered = OrderedDict(generator=np.random.default_rng())
        self.method = random.Random().random
        self.deque = deque([random.Random()])

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> float:
        return float(getattr(self, f"draw_{self.where}")())

    def draw_slots(self) -> Any:
        return self.slots.generator.random()

    def draw_named(self) -> Any:
        return self.named.generator.random()

    def draw_ordered(self) -> Any:
        return self.ordered["generator"].random()

    def draw_method(self) -> Any:
        return self.method()

    def draw_derived(self) -> Any:
        return self.derived.random()

    def draw_derived_numpy(self) -> Any:
        return self.derived_numpy.random()

    def draw_derived_torch(self) -> Any:
        return torch.rand((), generator=self.derived_torch)

    def draw_default(self, generator: Any = np.random.default_rng()) -> Any:  # noqa: B008  (as users write it)
        return generator.random()

    def draw_deque(self) -> Any:
        return self.deque[0].random()

    def draw_local(self) -> Any:
        return MODULE_LOCAL.generator.random()

    def draw_class_attribute(self) -> Any:
        return self.jitter()

    def draw_module_instance(self) -> Any:
        return MODULE_JITTER()

    def draw_module_dict(self) -> Any:
        return MODULE_STATE[7].random()

    def draw_other_class(self) -> Any:
        return OnlyNamed.of_class()

    def draw_new_instance(self) -> Any:
        return OnlyMade().of_class()

    def draw_imported_function(self) -> Any:
        return IMPORTED()

    def draw_module_function(self) -> Any:
        return OTHER_FILE.draw()

    def draw_module_attribute(self) -> Any:
        return FILE_OF_VALUES.generator.random()

    def draw_cached(self) -> Any:
        return cached("generator").random()

    @staticmethod
    def draw_function() -> Any:
        return helper()[0]


def drawn(dataset: Any, start: Position = START, *, workers: int = 0, used_before: bool = False) -> list[float]:
    """From a position to the end of a pass. used_before: whether this process has loaded a batch."""
    source = SampleSource(dataset)
    if used_before:
        indices = torch.arange(2)
        source.batch(indices, SampleRandom(indices, (5, "sample", 0)))
    batches = Batches(source, batch_size=4, seed=5, num_workers=workers)
    count = 6 - start.samples // 4
    return [float(each) for part in batches.load(itertools.islice(batches.ranges(start), count)) for each in part.data]


PLACES = [name.removeprefix("draw_") for name in vars(Keeping) if name.startswith("draw_")]


@pytest.mark.parametrize("where", PLACES)
def test_generators_are_found_in_each_place(where: str) -> None:
    whole = drawn(Keeping(where))
    assert len({*whole}) == len(whole)
    assert whole[8:] == drawn(Keeping(where), Position(0, 8))


def test_functions_that_a_function_of_a_library_calls_are_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may draw unique names of files, as those of Hugging Face datasets do."""
    code = "def draw():\n    return name()\ndef name():\n    return generator.random()"
    for folder, found in (("/project", 1), ("/my-packages/project", 1), ("/lib/site-packages", 0)):
        there = ModuleType("own_file")
        vars(there).update(generator=random.Random(), __file__=f"{folder}/own_file.py")
        monkeypatch.setitem(sys.modules, "own_file", there)
        exec(code, vars(there))
        assert len(OwnGenerators().snapshot(there.draw)) == found


def test_of_a_library_the_generators_are_found_that_its_classes_draw_from(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "class Jitter:\n    kept = random.Random()\n    def __call__(self):\n        return generator.random()"
    library = ModuleType("library")
    vars(library).update(random=random, generator=random.Random(), __file__="/lib/site-packages/library.py")
    monkeypatch.setitem(sys.modules, "library", library)
    exec(code, vars(library))
    assert len(OwnGenerators().snapshot(library.Jitter())) == 2


class Late(Keeping):
    """One sample creates a generator, nearer than that which all samples draw from."""

    late: Any = None

    def __getitem__(self, index: int) -> float:
        if index == 1:
            self.late = random.Random()
        return super().__getitem__(index)


def test_a_generator_is_seeded_alike_whichever_others_there_are() -> None:
    """A resumed run may not have loaded the sample that creates another one."""
    assert drawn(Late("slots"))[8:] == drawn(Late("slots"), Position(0, 8))


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.MT19937, np.random.Philox])
def test_what_a_generator_has_drawn_before_does_not_matter_once_it_is_seeded(bits: Any) -> None:
    used, new = np.random.Generator(bits(1)), np.random.Generator(bits(2))
    used.integers(100, dtype=np.int32)  # keeps 32 bits for the next number of this type
    draws = []
    for generator in (used, new):
        own_generators.KINDS[np.random.Generator].seed(generator, 3)
        draws.append([*generator.integers(1000, size=3, dtype=np.int32), *generator.random(3)])
    assert draws[0] == draws[1]


@functools.lru_cache
def recent(number: int) -> random.Random:
    return random.Random()


@functools.cache
def of_pair(number: int, name: str) -> random.Random:
    return random.Random()


class OneOfSeveral(Keeping):
    """Creates a generator for each kind of sample."""

    def __getitem__(self, index: int) -> float:
        kind = index % 3
        return float((recent(kind) if self.where == "recent" else of_pair(kind, "name")).random())


@pytest.mark.parametrize("where", ["recent", "of_pair"])
def test_a_cached_generator_is_seeded_alike_whichever_were_created_or_used_before(where: str) -> None:
    whole = drawn(OneOfSeveral(where))
    for function in (recent, of_pair):
        function.cache_clear()
    assert whole[16:] == drawn(OneOfSeveral(where), Position(0, 16))


class OnePerProcess(Keeping):
    """Creates its generator in each process."""

    created: Any = None

    def __getstate__(self) -> Any:
        return {**self.__dict__, "created": None}

    def __getitem__(self, index: int) -> float:
        if self.created is None:
            self.created = np.random.default_rng()
        return float(self.created.random())


@pytest.fixture
def spawned() -> Iterator[None]:
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.slow
@pytest.mark.usefixtures("spawned")
def test_a_generator_that_each_process_creates_is_seeded_from_the_first_batch() -> None:
    expected = drawn(OnePerProcess(""))
    assert expected == drawn(OnePerProcess(""), workers=1, used_before=True)


class Recursive:
    """As a wrapper whose attributes are those of what it wraps, which it lacks."""

    __slots__ = ("wrapped",)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)


class Unbound:
    """As a proxy outside of its context."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("outside of its context")


def test_objects_that_cannot_be_looked_at_are_passed_over() -> None:
    dataset: Any = Keeping("slots")
    dataset.others = [Recursive(), Unbound(), dataset]
    assert len({*drawn(dataset)}) == 24


def test_a_search_ends_however_much_a_data_set_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    looked, asked = [], []
    referents, inside = gc.get_referents, own_generators._inside

    def counted(*owner: Any) -> Iterator[tuple[str, Any]]:
        for item in inside(*owner):
            looked.append(item)
            yield item

    monkeypatch.setattr(own_generators, "_inside", counted)
    monkeypatch.setattr(gc, "get_referents", lambda each: asked.append(type(each)) or referents(each))  # type: ignore[func-returns-value]
    dataset: Any = Keeping("slots")
    dataset.names = [{str(number) for number in range(1000)}]
    dataset.boxes = [[[float(number) for number in range(100)] for _ in range(100)] for _ in range(100)]
    OwnGenerators().snapshot(dataset)
    assert MOST_VALUES < len(looked) < MOST_VALUES + 2 * MOST_ITEMS
    assert Slotted in asked
    assert set not in asked, "which lists all items"


TABLE: Any = [[[number] for number in range(100)] for _ in range(100)]


@functools.lru_cache(maxsize=1000)
def looked_up(number: int) -> Any:
    return [number]


class Nested(Keeping):
    """Refers to much that is global, and keeps a generator further inside itself."""

    def __init__(self) -> None:
        self.nested: Any = [[[[Jitter()]]]]

    def __getitem__(self, index: int) -> float:
        return float(self.nested[0][0][0][0]() + TABLE[index][0][0] + looked_up(index)[0])


def test_large_global_objects_do_not_hide_what_the_data_set_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_generators, "MOST_VALUES", 1000)
    dataset = Nested()
    assert dataset.nested[0][0][0][0].generator in [each for each, _ in OwnGenerators().snapshot(dataset).values()]


def test_of_a_large_cache_only_some_values_are_looked_at() -> None:
    for number in range(1000):
        looked_up(number)
    assert len([*own_generators._inside(looked_up, {})]) < 4 * MOST_ITEMS


class Forgetful:
    """A user's source, with a method of a common name."""

    def __len__(self) -> int:
        return 4

    def batch(self, indices: Any, random: SampleRandom) -> Any:
        return indices

    def forget(self, key: str) -> None:
        raise AssertionError


def test_methods_of_an_own_source_are_its_own() -> None:
    Batches(Forgetful(), batch_size=2).close()
