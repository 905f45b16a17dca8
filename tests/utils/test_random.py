"""The states of the global generators: where they are in memory, and what the public functions say of them."""

import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from utils.random import (
    GlobalGenerator,
    NumpyGenerator,
    PythonGenerator,
    generator_states,
    global_generators,
    kept_generators,
    restore_generators,
    seed_generators,
)

DRAWS: list[tuple[str, Callable[[], Any]]] = [
    ("python", random.random),
    ("python", lambda: random.shuffle([1, 2, 3])),
    ("python", lambda: random.gauss(0, 1)),
    ("numpy", np.random.rand),
    ("numpy", np.random.randn),
    ("numpy", lambda: np.random.randint(9)),
    ("torch", lambda: torch.rand(())),
    ("torch", lambda: torch.randn(2)),
    ("torch", lambda: torch.randperm(5)),
]


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="laid out in another way")
def test_the_state_is_found_in_memory() -> None:
    """Otherwise nothing is wrong, but each batch of a user's data set takes 0.2 ms longer."""
    assert PythonGenerator().memory is not None
    assert NumpyGenerator().memory is not None


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("number", range(len(DRAWS)))
def test_each_draw_is_seen_and_undone(number: int, in_memory: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    name, draw = DRAWS[number]
    generator: Any = global_generators()[name]
    if not in_memory and name != "torch":
        monkeypatch.setattr(generator, "memory", None)
    generator.seed(7)
    for _ in range(3):  # from the second on a normal number may be kept from before
        before, others = generator.state(), states(without=name)
        drawn = draw()
        assert generator.state() != before
        assert states(without=name) == others
        generator.restore(before)
        assert generator.state() == before
        assert np.array_equal(draw(), drawn) if drawn is not None else True


def test_a_normal_number_is_not_lost_after_uniform_ones_were_undone() -> None:
    """One normal number and two uniform ones leave the same words; only the first keeps another one for the next."""
    np.random.seed(1)
    expected = np.random.randn(2).tolist()
    generator = NumpyGenerator()
    generator.seed(1)
    before = generator.state()
    np.random.rand(2)
    assert generator.state() != before
    generator.restore(before)
    found = [np.random.randn()]
    generator.restore(generator.state())
    assert [*found, np.random.randn()] == expected


def test_a_normal_number_is_not_lost_after_a_return_to_an_earlier_state() -> None:
    """As of a run that is resumed in the process in which it was stopped."""
    seed_generators(1)
    np.random.randn()
    saved = generator_states()
    found = list[float]()
    for _ in range(2):
        restore_generators(saved)
        for _ in range(2):
            with kept_generators():
                np.random.rand()
            found.append(np.random.randn())
    assert found[:2] == found[2:]


def states(*, without: str) -> dict[str, Any]:
    return {name: generator.state() for name, generator in global_generators().items() if name != without}


def test_another_bit_generator_of_numpy_is_noticed() -> None:
    generator: GlobalGenerator = NumpyGenerator()
    numpy: Any = np.random
    before = numpy.get_bit_generator()
    try:
        numpy.set_bit_generator(np.random.MT19937(5))
        state = generator.state()
        first = np.random.rand()
        assert generator.state() != state
        generator.restore(state)
        assert np.random.rand() == first
    finally:
        numpy.set_bit_generator(before)


def test_the_generators_are_kept_in_spite_of_an_error() -> None:
    before = states(without="")

    def fail() -> None:
        with kept_generators():
            for _, draw in DRAWS:
                draw()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert states(without="") == before
