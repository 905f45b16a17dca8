"""Python's, NumPy's and torch's global generators, with states that can be read and written in about 1 to 2 us.

``random.getstate`` takes 20 us and ``np.random.get_state`` 70 us, since they create objects for all 624 words; a batch
of small samples takes 200. So the state is read in place, from memory. Its address is determined once, and used only if
the memory matches the public function's result; otherwise (another Python or bit generator) that function is called.
"""

import ctypes
import functools
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

numpy_random: Any = np.random  # some versions have no types for its functions
WORDS = 624  # of 32 bits: the state of a Mersenne twister, without its position


class PythonGenerator:
    """The generator of ``random.random`` and the like.

    For every generator: two states are equal (``==``) if nothing was drawn between them. A seed has 63 bits.
    """

    def __init__(self) -> None:
        self.generator: Any = random.random.__self__  # type: ignore[attr-defined]
        self.memory = None
        if sys.implementation.name == "cpython":  # the position and the words follow the object header
            _, words, _ = random.getstate()
            expected = np.array([words[-1], *words[:-1]], np.uint32)
            if type(self.generator).__basicsize__ >= object.__basicsize__ + expected.nbytes:
                self.memory = _memory_of(id(self.generator) + object.__basicsize__, expected)

    def seed(self, seed: int) -> None:
        random.seed(seed)

    def state(self) -> Any:
        if self.memory is None:
            return random.getstate()
        return self.memory.raw, self.generator.gauss_next

    def restore(self, state: Any) -> None:
        if self.memory is None:
            random.setstate(state)
        else:
            self.memory.raw, self.generator.gauss_next = state


class NumpyGenerator:
    """The generator of ``np.random.rand`` and the like."""

    def __init__(self) -> None:
        self.bit_generator = numpy_random.get_bit_generator()
        self.memory = None
        self._without_normal = b""
        if isinstance(self.bit_generator, np.random.MT19937):
            _, words, position, _, _ = numpy_random.get_state(legacy=True)
            expected = np.array([*words, position], np.uint32)
            self.memory = _memory_of(self.bit_generator.ctypes.state_address, expected)

    def seed(self, seed: int) -> None:
        np.random.seed(seed % 2**32)

    def state(self) -> Any:
        """The memory, and the normal number cached for the next call; None if there is none."""
        if numpy_random.get_bit_generator() is not self.bit_generator:
            self.__init__()  # type: ignore[misc]
        memory = self.memory.raw if self.memory else None
        # a normal number is cached only by a draw that changes the memory, so the slow path is rarely taken
        if memory is None or memory != self._without_normal:
            name, words, position, has_normal, normal = numpy_random.get_state(legacy=True)
            if has_normal or memory is None:
                return name, words.tobytes(), position, has_normal, normal
            self._without_normal = memory
        return memory

    def restore(self, state: Any) -> None:
        if isinstance(state, bytes) and self.memory:
            np.random.seed(0)  # clears the cached normal number
            self.memory.raw = state
        else:
            name, words, *rest = state
            np.random.set_state((name, np.frombuffer(words, np.uint32), *rest))
            self._without_normal = b""


class TorchGenerator:
    """The generator of ``torch.rand`` and the like on the CPU. Those of accelerators are unaffected."""

    def seed(self, seed: int) -> None:
        torch.default_generator.manual_seed(seed)

    def state(self) -> bytes:
        state = torch.default_generator.get_state()
        return ctypes.string_at(state.data_ptr(), state.numel())

    def restore(self, state: bytes) -> None:
        torch.default_generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


GlobalGenerator = PythonGenerator | NumpyGenerator | TorchGenerator


@functools.cache
def global_generators() -> dict[str, GlobalGenerator]:
    """All generators, by the name of their library."""
    return {"python": PythonGenerator(), "numpy": NumpyGenerator(), "torch": TorchGenerator()}


@contextmanager
def kept_generators() -> Iterator[None]:
    """Restore the generators after the block, whatever it draws."""
    states = {name: generator.state() for name, generator in global_generators().items()}
    try:
        yield
    finally:
        for name, generator in global_generators().items():
            generator.restore(states[name])


def _memory_of(address: int, expected: Any) -> Any:
    """The memory at an address, as a ctypes array of bytes, if it contains the expected words; otherwise None."""
    memory = (ctypes.c_char * (4 * (WORDS + 1))).from_address(address)
    return memory if memory.raw == expected.tobytes() else None
