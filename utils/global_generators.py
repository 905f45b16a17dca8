"""Python's, NumPy's and torch's global generators, with states that are read and written in a microsecond or two.

``random.getstate`` takes 20 us and ``np.random.get_state`` 70 us, as they make objects of all 624 words, and torch's
takes 5 to 15 us; a batch of small samples takes 200. So the state is read where it is in memory. That place is looked
for once, and taken only if it holds what the public function gives; elsewhere (another Python, another bit generator,
another torch) that function is called.
"""

import ctypes
import functools
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

WORDS = 624  # of 32 bits: a Mersenne twister's state, beside its position


class PythonGenerator:
    """That of ``random.random`` and its like.

    Of each generator, two states are equal (``==``) if nothing was drawn between them. A seed has 63 bits.
    """

    def __init__(self) -> None:
        self.generator: Any = random.random.__self__  # type: ignore[attr-defined]
        self.memory = None
        if sys.implementation.name == "cpython":  # there the position and the words follow the head of the object
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
    """That of ``np.random.rand`` and its like."""

    def __init__(self) -> None:
        self.bit_generator = _bit_generator()
        self.memory = None
        self._without_normal = b""
        if isinstance(self.bit_generator, np.random.MT19937):
            _, words, position, _, _ = _numpy_state()
            expected = np.array([*words, position], np.uint32)
            self.memory = _memory_of(self.bit_generator.ctypes.state_address, expected)

    def seed(self, seed: int) -> None:
        np.random.seed(seed % 2**32)

    def state(self) -> Any:
        """The memory, and the normal number that is kept for the next call; None if there is none."""
        if _bit_generator() is not self.bit_generator:
            self.__init__()  # type: ignore[misc]
        memory = self.memory.raw if self.memory else None
        # one is kept only by a draw that changes the memory, so that the long way is seldom taken
        if memory is None or memory != self._without_normal:
            name, words, position, has_normal, normal = _numpy_state()
            if has_normal or memory is None:
                return name, words.tobytes(), position, has_normal, normal
            self._without_normal = memory
        return memory

    def restore(self, state: Any) -> None:
        if isinstance(state, bytes) and self.memory:
            np.random.seed(0)  # no normal number is kept
            self.memory.raw = state
        else:
            name, words, *rest = state
            np.random.set_state((name, np.frombuffer(words, np.uint32), *rest))
            self._without_normal = b""


@dataclass(frozen=True, eq=False)
class TorchState:
    """The same object as long as nothing is drawn."""

    seen: Any
    """What of it is compared: from the memory, or all of it as bytes."""
    whole: Any
    """As torch gives it: uint8 of shape (5056,)."""


class TorchGenerator:
    """That of ``torch.rand`` and its like on the CPU. Those of accelerators stay as they are."""

    def __init__(self) -> None:
        self.memory = _memory_of_torch()
        self._last = TorchState(None, None)

    def seed(self, seed: int) -> None:
        torch.default_generator.manual_seed(seed)

    def state(self) -> TorchState:
        seen = _torch_words(self.memory) if self.memory else _torch_state().numpy().tobytes()
        if seen != self._last.seen:  # torch itself is asked seldom, as that takes ten times as long as the memory
            self._last = TorchState(seen, _torch_state())
        return self._last

    def restore(self, state: TorchState) -> None:
        torch.default_generator.set_state(state.whole)
        self._last = state


GlobalGenerator = PythonGenerator | NumpyGenerator | TorchGenerator


@functools.cache
def global_generators() -> dict[str, GlobalGenerator]:
    """All of them, by the name of their library."""
    return {"python": PythonGenerator(), "numpy": NumpyGenerator(), "torch": TorchGenerator()}


@contextmanager
def kept_generators() -> Iterator[None]:
    """Whatever the block draws, the generators are afterwards as they were before."""
    states = {name: generator.state() for name, generator in global_generators().items()}
    try:
        yield
    finally:
        for name, generator in global_generators().items():
            generator.restore(states[name])


def _bit_generator() -> Any:
    return np.random.get_bit_generator()  # type: ignore[attr-defined]


def _numpy_state() -> Any:
    return np.random.get_state(legacy=True)


def _memory_of(address: int, expected: Any) -> Any:
    """The memory at an address, as a ctypes array of bytes, if it holds the expected words; otherwise None."""
    memory = (ctypes.c_char * (4 * (WORDS + 1))).from_address(address)
    return memory if memory.raw == expected.tobytes() else None


def _torch_state() -> Any:
    return torch.default_generator.get_state()


def _memory_of_torch() -> Any:
    """The memory of torch's generator from its position on, as a ctypes array of bytes; None where it is not found.

    It is a C++ object, ``CPUGeneratorImpl``: the position, the words, 4 bytes of nothing, and two normal numbers, of 4
    and of 8 bytes, that are kept for the next calls. A byte after each of them says whether it is there.
    """
    address = getattr(torch.default_generator, "_cdata", None)
    if address is None:
        return None
    whole = _torch_state()
    # torch writes 8 bytes for the position and for each word, after 16 bytes of something else
    words = whole.numpy()[16 : 16 + 8 * (WORDS + 1)].view(np.uint64).astype(np.uint32).tobytes()
    start = ctypes.string_at(address, 128 + 4 * WORDS).find(words)
    if start < 0:
        return None
    memory = (ctypes.c_char * (len(words) + 21)).from_address(address + start)
    seen = {_torch_words(memory)}
    for _ in range(2):  # one of the two takes the number that is kept, and leaves the words as they are
        torch.randn((), device="cpu")
        seen.add(_torch_words(memory))
    torch.default_generator.set_state(whole)
    return memory if len(seen) == 3 else None


def _torch_words(memory: Any) -> tuple[bytes, int, int]:
    """The position and the words, and which normal numbers are there. The bytes between may hold anything."""
    raw, end = memory.raw, 4 * (WORDS + 1)
    return raw[:end], raw[end + 8], raw[end + 20]
