"""Orders and parts of very many samples, computed at the places that are asked for: nobody keeps them in memory."""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from utils.random import mix, scrambled

Integers = npt.NDArray[np.int64]


class LazyIndices:
    """``count`` integers that behave as an int64 tensor of shape (count,), but for their memory."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, at: slice | Tensor) -> Tensor:
        """The numbers at these places, int64 of shape (B,)."""
        places = torch.arange(*at.indices(self.count)) if isinstance(at, slice) else at
        return torch.from_numpy(self.at(places.numpy()))

    def at(self, places: Integers) -> Integers:
        raise NotImplementedError


class Permutation(LazyIndices):
    """The numbers 0 to count - 1 in an order that depends on the key alone.

    A Feistel network on pairs of numbers below the square root (Black and Rogaway, Ciphers with Arbitrary Finite
    Domains, 2002): what falls outside is sent through again until it falls inside.
    """

    ROUNDS = 8

    def __init__(self, count: int, *key: int | str) -> None:
        super().__init__(count)
        self.side = math.isqrt(count - 1) + 1
        self.keys = [mix(*key, "round", number) for number in range(self.ROUNDS)]

    def at(self, places: Integers) -> Integers:
        values = self._once(places)
        while (outside := values >= self.count).any():
            values[outside] = self._once(values[outside])
        return values

    def _once(self, values: Integers) -> Integers:
        """A permutation of the numbers below side * side."""
        left, right = np.divmod(values, self.side)
        for key in self.keys:
            left, right = right, (left + _below(right, key, self.side)) % self.side
        return left * self.side + right


class ValidationIndices(LazyIndices):
    """One number of each of ``held_out`` equal stretches of 0 to total - 1, in rising order."""

    def __init__(self, total: int, held_out: int, *key: int | str) -> None:
        super().__init__(held_out)
        self.total, self.key = total, mix(*key)

    def at(self, places: Integers) -> Integers:
        begin = self.begin(places)
        return begin + _below(places, self.key, self.begin(places + 1) - begin)

    def begin(self, stretch: Integers) -> Integers:
        return stretch * self.total // self.count


class TrainingIndices(LazyIndices):
    """All numbers from 0 to total - 1 that are not held out, in rising order."""

    def __init__(self, held_out: ValidationIndices) -> None:
        super().__init__(held_out.total - held_out.count)
        self.held_out = held_out

    def at(self, places: Integers) -> Integers:
        held = self.held_out
        # before stretch number s lie s * (total / held_out - 1) kept numbers, rounded down
        stretch = ((places + 1) * held.count - 1) // self.count
        before = places + stretch
        return before + (before >= held.at(stretch))


def _below(values: Integers, key: int, limit: int | Integers) -> Integers:
    """Numbers from 0 to limit - 1 that follow from the values and the key, as if drawn."""
    drawn = scrambled(values.astype(np.uint64), key) >> np.uint64(11)  # 53 bits
    return (drawn.astype(np.float64) * 2.0**-53 * limit).astype(np.int64)
