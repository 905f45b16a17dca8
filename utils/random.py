"""Randomness as a function of numbers, so that a resumed run draws what an uninterrupted one would.

Three kinds: values computed from (seed, pass, sample index), which need no state; the global generators, whose state
is saved in checkpoints; and a context in which the global generators are seeded, and then restored.
"""

import ctypes
import functools
import random
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from utils.device import used_accelerator

numpy_random: Any = np.random  # some versions have no types for its functions
WORDS = 624  # of 32 bits: the state of a Mersenne twister, without its position


def mix(*parts: int | str) -> int:
    """A 63-bit hash of integers and strings."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1


def permutation(count: int, *key: int | str) -> torch.Tensor:
    """The numbers 0 to count - 1 in an order determined by the key, shape (count,): int32, or int64 if too large."""
    dtype = torch.int32 if count <= 2**31 else torch.int64
    return torch.randperm(count, generator=torch.Generator().manual_seed(mix(*key)), dtype=dtype)


def uniform(indices: torch.Tensor, *key: int | str, draws: int = 1) -> torch.Tensor:
    """Random numbers in [0, 1) for each sample, float64 of shape (draws, B): a hash of its index and the key.

    indices: int64 of shape (B,).
    """
    counter = indices.numpy().astype(np.uint64) * np.uint64(draws) + np.arange(draws, dtype=np.uint64)[:, None]
    return torch.from_numpy((scrambled(counter, mix(*key)) >> np.uint64(11)) * 2.0**-53)


def scrambled(state: npt.NDArray[np.uint64], key: int) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of each number and the key: SplitMix64 (Steele, Lea and Flood 2014)."""
    state = (state + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return state


def seed_generators(*key: int | str) -> None:
    """Seed Python's, NumPy's and torch's global generators, including those of accelerators."""
    seed = mix(*key)
    for generator in global_generators().values():
        generator.seed(seed)
    # torch.manual_seed would record its call stack for each kind of missing accelerator
    if accelerator := torch.accelerator.current_accelerator(check_available=True):
        device = torch.get_device_module(accelerator)
        getattr(device, "manual_seed_all", device.manual_seed)(seed)


def generator_states() -> dict[str, Any]:
    """The global generators' states as tensors and plain values, which ``torch.load(weights_only=True)`` accepts."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    numpy_words = torch.from_numpy(np.asarray(keys).astype(np.int64))
    states = {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [str(name), numpy_words, int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if accelerator := used_accelerator():
        states["accelerator"] = torch.get_device_module(accelerator).get_rng_state()
    return states


def restore_generators(states: dict[str, Any]) -> None:
    """Restore the states returned by ``generator_states``."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if "accelerator" not in states:
        return
    if accelerator := used_accelerator():
        torch.get_device_module(accelerator).set_rng_state(states["accelerator"])


@contextmanager
def isolated(*key: int | str) -> Iterator[None]:
    """Seed the global generators inside the block; then they continue as if nothing had been drawn."""
    states = generator_states()
    seed_generators(*key)
    try:
        yield
    finally:
        restore_generators(states)


# ------------------------------------------------------------------ the global generators, saved and restored quickly
# random.getstate takes 20 us and np.random.get_state 70 us, since they create objects for all 624 words; a batch of
# small samples takes 200. So the state is read in place, from memory, in 1 to 2 us. Its address is determined once, and
# used only if the memory matches the public function's result; otherwise (another Python or bit generator) that
# function is called.


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
        if isinstance(self.bit_generator, np.random.MT19937) and sys.implementation.name == "cpython":
            _, words, position, *normal = numpy_random.get_state(legacy=True)
            address = self.bit_generator.ctypes.state_address
            self.normal = _normal_of(address, tuple(normal))
            if self.normal is not None:
                self.memory = _memory_of(address, np.array([*words, position], np.uint32))

    def seed(self, seed: int) -> None:
        np.random.seed(seed % 2**32)

    def state(self) -> Any:
        if numpy_random.get_bit_generator() is not self.bit_generator:
            self.__init__()  # type: ignore[misc]
        if self.memory is None:
            name, words, *rest = numpy_random.get_state(legacy=True)
            return name, words.tobytes(), *rest
        return self.memory.raw, self.normal.raw

    def restore(self, state: Any) -> None:
        if self.memory is None:
            name, words, *rest = state
            np.random.set_state((name, np.frombuffer(words, np.uint32), *rest))
        else:
            self.memory.raw, self.normal.raw = state


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


def _normal_of(address: int, expected: tuple[int, float]) -> Any:
    """The memory of the second normal number that NumPy keeps, and of whether it keeps one; None if it is not there.

    address: of the state. The generator points to it; a pointer to that pointer precedes what is looked for.
    """
    generator: Any = numpy_random.rand.__self__
    start = id(generator)
    words = list((ctypes.c_uint64 * (type(generator).__basicsize__ // 8)).from_address(start))
    try:
        index = words.index(start + 8 * words.index(address)) + 1
    except ValueError:  # laid out in another way
        return None
    memory = (ctypes.c_char * 16).from_address(start + 8 * index)
    return memory if struct.unpack("i4xd", memory.raw) == expected else None
