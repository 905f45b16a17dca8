"""A sample is as if all global generators had been seeded for it, whichever the data set draws from, and whenever."""

import itertools
import os
import pickle
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torchvision.transforms import v2

from base.base_data_loader import BaseDataLoader
from base.data import seeding
from base.data.batches import START, Batches, Position
from base.data.orders import Shuffled
from base.data.sample_random import SampleRandom
from base.data.sample_source import SampleSource
from base.data.sources import TensorSource
from tests.helpers import same
from utils.errors import DataError
from utils.random import SEEDERS, generator_states, mix, seed_generators

SAMPLES = 23


def of_transforms(index: int) -> float:
    pixels = torch.arange(64.0).view(1, 8, 8)
    return float(v2.Compose([v2.RandomCrop(4), v2.RandomHorizontalFlip()])(pixels).flatten()[5])


def now_and_then(index: int) -> float:
    draw = {3: random.random, 9: np.random.rand, 17: lambda: float(torch.rand(()))}.get(index)
    return draw() if draw else 0.0


DRAWS: dict[str, tuple[Callable[[int], float], set[str]]] = {
    "nothing": (lambda index: 0.0, set()),
    "python": (lambda index: random.random(), {"python"}),
    "python, normal": (lambda index: random.gauss(0, 1), {"python"}),
    "numpy": (lambda index: np.random.rand(), {"numpy"}),
    "numpy, normal": (lambda index: np.random.randn(), {"numpy"}),
    "torch": (lambda index: float(torch.rand(())), {"torch"}),
    "torch, normal": (lambda index: float(torch.randn(())), {"torch"}),
    "transforms": (of_transforms, {"torch"}),
    "all": (
        lambda index: random.random() + np.random.rand() + float(torch.rand(())),
        {"python", "numpy", "torch"},
    ),
    "now and then": (now_and_then, {"python", "numpy", "torch"}),
    "a whole turn of the generator": (lambda index: sum(random.getrandbits(32) for _ in range(624)), {"python"}),
}


class Drawing(Dataset[Any]):
    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, float]:
        self.loaded.append(index)
        return torch.full((2,), float(index)), DRAWS[self.kind][0](index)


def all_seeded(kind: str, order: list[int], passes: int) -> list[float]:
    """What the samples draw if every generator is seeded for each of them."""
    drawn = []
    for index in order:
        seed = mix(5, "sample", passes, index)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        drawn.append(DRAWS[kind][0](index))
    return drawn


def passes(batches: Batches, count: int, start: Position = START) -> list[Any]:
    return [made.data for made in batches.load(itertools.islice(batches.ranges(start), count))]


def made(source: SampleSource, workers: int = 0) -> Batches:
    return Batches(source, batch_size=4, order=Shuffled(len(source), 5), seed=5, num_workers=workers)


@pytest.mark.parametrize("kind", DRAWS)
def test_samples_are_as_if_all_generators_were_seeded_for_each(kind: str) -> None:
    source = SampleSource(Drawing(kind))
    batches = made(source)
    loaded = passes(batches, 12)
    order = [[int(index) for inputs, _ in part for index in inputs[:, 0]] for part in (loaded[:6], loaded[6:])]
    numbers = [float(number) for _, drawn in loaded for number in drawn]
    expected = [*all_seeded(kind, order[0], 0), *all_seeded(kind, order[1], 1)]
    assert numbers == pytest.approx(expected, abs=0)
    assert set(source.generators.names) == DRAWS[kind][1]
    assert equal(loaded[7:], passes(made(SampleSource(Drawing(kind))), 5, Position(1, 4))), "from another position"


def equal(left: list[Any], right: list[Any]) -> bool:
    pairs = zip(left, right, strict=True)
    return all(torch.equal(one, two) for a, b in pairs for one, two in zip(a, b, strict=True))


@pytest.mark.parametrize("kind", ["nothing", "all", "now and then"])
def test_workers_give_the_same_samples(kind: str) -> None:
    alone, beside = (passes(made(SampleSource(Drawing(kind)), workers), 8) for workers in (0, 2))
    assert equal(alone, beside)


def test_numbers_that_move_no_generator_are_the_same_in_each_worker() -> None:
    """Whichever loads the sample after a resume."""

    class Forking(Dataset[Any]):
        def __len__(self) -> int:
            return SAMPLES

        def __getitem__(self, index: int) -> tuple[int, float]:
            with torch.random.fork_rng(devices=[]):
                return torch.initial_seed(), float(torch.rand(()))

    seeds, numbers = zip(*(data for data in passes(made(SampleSource(Forking()), 3), 6)), strict=True)
    assert len({*torch.cat(seeds).tolist()}) == len({*torch.cat(numbers).tolist()}) == 1


@pytest.mark.parametrize("kind", DRAWS)
def test_the_generators_are_left_as_they_were(kind: str) -> None:
    seed_generators(1)
    random.gauss(0, 1)  # keeps a second normal number
    torch.randn(())
    before = generator_states()
    passes(made(SampleSource(Drawing(kind))), 6)
    assert same(generator_states(), before)


@pytest.mark.parametrize("kind", ["numpy, normal", "python, normal"])
def test_a_normal_number_that_was_kept_for_the_next_call_is_not_taken(kind: str) -> None:
    """A draw that takes it does not move the generator."""

    class Once(Drawing):
        def __getitem__(self, index: int) -> Any:
            return index, DRAWS[kind][0](index) if index == 7 else 0.0

    def seventh() -> float:
        [[_, numbers]] = [made.data for made in Batches(SampleSource(Once(kind)), batch_size=SAMPLES).one_pass()]
        return float(numbers[7])

    expected = seventh()
    np.random.seed(1)
    np.random.randn()
    random.gauss(0, 1)
    assert seventh() == expected


def test_what_draws_nothing_is_loaded_once() -> None:
    dataset = Drawing("nothing")
    batches = made(SampleSource(dataset))
    passes(batches, 12)
    assert sorted(dataset.loaded) == sorted([*range(SAMPLES)] * 2)


MODULE_GENERATOR = np.random.default_rng(0)


class Transform:
    """Like those of libraries that share a generator among their parts, or replace it in each process."""

    def __init__(self) -> None:
        self.random = random.Random()
        self.parts = [{"random": self.random, "numpy": np.random.default_rng()}]
        self.process = os.getpid()

    def __call__(self) -> float:
        if self.process != os.getpid():
            self.process, self.parts[0]["numpy"] = os.getpid(), np.random.default_rng()
        part: Any = self.parts[0]
        return self.random.random() + float(part["random"].gauss(0, 1)) + float(part["numpy"].normal())


class Keeping(Dataset[Any]):
    """Keeps its generator in one of several places."""

    shared = np.random.RandomState()

    def __init__(self, where: str) -> None:
        self.where = where
        self.numpy = np.random.Generator(np.random.MT19937())
        self.torch = torch.Generator()
        self.transform = Transform()
        self.late: Any = None
        hidden = np.random.default_rng()
        self.in_a_closure = partial(lambda scale: scale * float(hidden.random()), 2)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[int, float]:
        if self.where == "late" and self.late is None:
            self.late = random.Random()
        return index, float(getattr(self, f"draw_{self.where}")())

    def draw_class(self) -> float:
        return self.shared.normal()

    def draw_numpy(self) -> float:
        return self.numpy.normal()

    def draw_torch(self) -> Tensor:
        return torch.rand((), generator=self.torch)

    def draw_transform(self) -> float:
        return self.transform() + random.random()

    def draw_closure(self) -> float:
        return float(self.in_a_closure())

    def draw_late(self) -> float:
        return float(self.late.random())

    def draw_module(self) -> float:
        return MODULE_GENERATOR.random()


@pytest.mark.parametrize("where", ["class", "numpy", "torch", "transform", "closure", "late", "module"])
def test_generators_that_a_data_set_keeps_for_itself_are_seeded_too(where: str) -> None:
    """Otherwise a resumed run would start them over, and each worker process would have a copy."""
    whole = passes(made(SampleSource(Keeping(where))), 9)
    assert len({float(number) for _, numbers in whole for number in numbers}) > SAMPLES
    assert equal(whole[5:], passes(made(SampleSource(Keeping(where))), 4, Position(0, 20)))
    assert equal(whole[5:], passes(made(SampleSource(Keeping(where)), workers=2), 4, Position(0, 20)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_generator_that_an_epoch_replaces_is_seeded_too(workers: int) -> None:
    """As by ``begin_epoch`` with other transforms: a resumed run finds the new one at once."""
    dataset = Keeping("transform")
    batches = made(SampleSource(dataset), workers=workers)
    passes(batches, 3)
    dataset.transform = Transform()
    batches.close()
    after = passes(batches, 3, Position(1, 0))
    assert equal(after, passes(made(SampleSource(Keeping("transform"))), 3, Position(1, 0)))


def test_a_generator_that_samples_draw_from_is_left_as_it_was() -> None:
    """The data set may draw from it in ``begin_epoch``, with or without workers."""
    dataset = Keeping("numpy")
    before = dataset.numpy.bit_generator.state
    source = SampleSource(dataset)
    passes(made(source), 6)
    assert str(dataset.numpy.bit_generator.state) == str(before)
    assert len(source.generators.names) == 1, "and no other one is seeded"


class Files(list[Any]):
    """Loads a sample where it is asked for an item."""

    loaded = 0

    def __getitem__(self, index: Any) -> Any:
        type(self).loaded += 1
        return super().__getitem__(index)


def test_no_sample_is_loaded_to_find_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Files, "loaded", 0)
    passes(made(SampleSource(Files(range(SAMPLES)))), 1)  # type: ignore[arg-type]
    assert Files.loaded == 4


class Crossed(BaseDataLoader):
    """Draws in ``collate``, from a generator of the loader."""

    def __init__(self) -> None:
        super().__init__(batch_size=4)
        self.random = np.random.default_rng()

    def training_data(self, *, augment: bool) -> Dataset[Any]:
        return Drawing("nothing")

    test_data = training_data  # type: ignore[assignment]

    def collate(self, samples: list[Any]) -> Any:
        return torch.tensor([float(self.random.random())]), torch.zeros(1)


def test_a_generator_of_the_loader_that_collate_draws_from_is_seeded_too() -> None:
    whole = passes(Crossed().training(seed=5), 6)
    assert equal(whole[4:], passes(Crossed().training(seed=5), 2, Position(0, 16)))


def mixed(samples: list[Any]) -> Any:
    """Two samples of each batch are mixed, as mixup does."""
    inputs, _ = default_collate(samples)
    share = torch.rand(()) * random.random()
    return share * inputs + (1 - share) * inputs.flip(0), share.view(1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_collate_function_that_draws_is_exact_too(workers: int) -> None:
    whole = passes(made(SampleSource(Drawing("nothing"), mixed)), 9)
    torch.manual_seed(3)
    later = passes(made(SampleSource(Drawing("nothing"), mixed), workers), 4, Position(0, 20))
    assert equal(whole[5:], later)
    assert len({float(share) for _, share in whole}) == 9


def shifted(inputs: Tensor, _: SampleRandom) -> Tensor:
    return inputs + torch.rand(()) + random.random() + np.random.rand()


def test_what_a_batch_in_memory_draws_from_global_generators_is_the_same_in_each_worker() -> None:
    """Whichever loads it after a resume. Without workers, it draws from the model's generators, which are saved."""
    source = TensorSource(torch.zeros(SAMPLES, 1), torch.arange(SAMPLES), augment=shifted)
    whole, later = (Batches(source, batch_size=4, seed=5, num_workers=workers) for workers in (2, 3))
    assert equal(passes(whole, 9)[5:], passes(later, 4, Position(0, 20)))
    assert len({float(inputs[0]) for inputs, _ in passes(whole, 9)}) == 9


def seeded_with_a_constant(samples: list[Any]) -> Any:
    np.random.seed(0)
    return default_collate(samples)


def test_what_one_data_set_does_to_a_generator_hides_no_draw_of_the_next() -> None:
    one, other = (passes(made(SampleSource(Drawing("numpy"), seeded_with_a_constant)), 6) for _ in range(2))
    assert equal(one, other)


class AtOnce(Drawing):
    """Gives a batch of samples in one call, as a data set of Hugging Face does."""

    calls = 0

    def __getitems__(self, indices: list[int]) -> list[Any]:
        type(self).calls += 1
        return [Drawing.__getitem__(self, index) for index in indices]


@pytest.mark.parametrize(("kind", "calls"), [("nothing", 6), ("torch", 1 + SAMPLES)])
def test_samples_that_can_be_had_at_once_are(kind: str, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AtOnce, "calls", 0)
    assert equal(passes(made(SampleSource(AtOnce(kind))), 6), passes(made(SampleSource(Drawing(kind))), 6))
    assert AtOnce.calls == calls


class Shifting(Drawing):
    """Does more for a batch than for a sample."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        samples = [Drawing.__getitem__(self, index) for index in indices]
        return [(inputs + 0.5, drawn) for inputs, drawn in samples]


def test_what_a_data_set_does_only_for_a_batch_is_done_before_and_after_it_draws() -> None:
    loaded = passes(made(SampleSource(Shifting("now and then"))), 6)
    assert sorted(float(value) for inputs, _ in loaded for value in inputs[:, 0]) == [0.5 + n for n in range(SAMPLES)]


@pytest.mark.parametrize("kind", ["python", "python, normal", "now and then"])
def test_the_samples_are_the_same_where_the_state_of_python_is_not_found_in_memory(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise nothing is wrong, but each batch of a user's data set takes 50 us longer."""
    assert seeding._is_in_memory
    there = passes(made(SampleSource(Drawing(kind))), 6)
    monkeypatch.setattr(seeding, "_is_in_memory", False)
    before = generator_states()
    assert equal(there, passes(made(SampleSource(Drawing(kind))), 6))
    assert same(generator_states(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_forgets_a_normal_number_with_and_without_workers(workers: int) -> None:
    np.random.seed(1)
    np.random.randn()
    _, words, *_ = np.random.get_state(legacy=True)
    passes(made(SampleSource(Drawing("nothing")), workers), 1)
    _, words_after, _, has_normal, _ = np.random.get_state(legacy=True)
    assert np.array_equal(words_after, words)
    assert not has_normal


def test_a_source_can_be_sent_to_another_process() -> None:
    source = SampleSource(Drawing("all"))
    passes(made(source), 1)
    assert pickle.loads(pickle.dumps(source)).generators.names == source.generators.names


class Unlucky(Dataset[int]):
    """A sample fails if the number that it draws is small; or each sample does."""

    def __init__(self, bound: float, *, index: int = 9, all_draw: bool = False) -> None:
        self.bound, self.index, self.all_draw = bound, index, all_draw

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> int:
        if (index == self.index or self.all_draw) and random.random() < self.bound:
            raise ValueError("unlucky")
        return index


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "kind",
    [
        {"bound": 0.2},
        {"bound": 0.8},
        {"bound": 0.2, "all_draw": True},
    ],
)
def test_which_sample_fails_does_not_depend_on_the_state_of_the_generators(kind: dict[str, Any], workers: int) -> None:
    def load(start: int, *, all_seeded: bool = False) -> str:
        source = SampleSource(Unlucky(**kind))
        source.generators.names = [*SEEDERS] if all_seeded else []
        random.seed(start)
        try:
            return str(passes(made(source, workers), 10))
        except DataError as error:
            return str(error).splitlines()[0]

    expected = load(0, all_seeded=True)
    assert "cannot be made into a batch" not in expected
    assert {load(start) for start in range(6)} == {expected}


class Threads(Dataset[Tensor]):
    """Samples that are sums large enough for several threads, and the number of threads."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        return torch.stack([torch.rand(300_000).sum(), torch.tensor(float(torch.get_num_threads()))])


def test_a_sample_is_computed_with_one_thread_as_in_a_worker_process() -> None:
    """Several add in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = [
            torch.cat([each.data for each in made(SampleSource(Threads()), workers).one_pass()]) for workers in (0, 1)
        ]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert found[0].equal(found[1])
    assert set(found[0][:, 1].tolist()) == {1.0}
