"""The global generators, seeded and restored."""

import random

import numpy as np
import torch

from tests.helpers import same
from utils.random import generator_states, isolated, restore_generators, seed_generators


def draw() -> list[float]:
    """Normal numbers: Python's and NumPy's generators keep a second one."""
    return [random.gauss(0, 1), np.random.randn(), float(torch.randn(()))]


def test_a_state_is_restored_with_the_normal_numbers_that_are_kept() -> None:
    seed_generators(1)
    draw()
    saved = generator_states()
    expected = [draw() for _ in range(3)]
    restore_generators(saved)
    assert [draw() for _ in range(3)] == expected


def test_isolated_generators_go_on_afterwards_in_spite_of_an_error() -> None:
    seed_generators(1)
    draw()
    before = generator_states()
    inside = []
    for _ in range(2):
        try:
            with isolated("key"):
                inside.append(draw())
                raise ZeroDivisionError
        except ZeroDivisionError:
            assert same(generator_states(), before)
    assert inside[0] == inside[1]
