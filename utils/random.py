"""Randomness as a function of numbers, so that a resumed run draws what an uninterrupted one would.

Three kinds: values computed from (seed, pass, sample index), which need no state; the global generators, whose state
is saved in checkpoints; and a context in which the global generators are seeded, and then restored.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from utils.device import used_accelerator

numpy_random: Any = np.random  # some versions have no types for its functions

SEEDERS: dict[str, Callable[[int], Any]] = {
    "python": random.seed,
    "numpy": lambda seed: np.random.seed(seed % 2**32),
    "torch": torch.default_generator.manual_seed,
}
"""Functions that seed the global generators on the CPU, by library, with 63 bits."""


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
    return state ^ (state >> np.uint64(31))


def seed_cpu_generators(*key: int | str) -> None:
    """Seed Python's, NumPy's and torch's global generators on the CPU."""
    seed = mix(*key)
    for seed_generator in SEEDERS.values():
        seed_generator(seed)


def seed_generators(*key: int | str) -> None:
    """Seed Python's, NumPy's and torch's global generators, including those of accelerators."""
    seed_cpu_generators(*key)
    # torch.manual_seed would record its call stack for each kind of missing accelerator
    if accelerator := torch.accelerator.current_accelerator(check_available=True):
        device = torch.get_device_module(accelerator)
        getattr(device, "manual_seed_all", device.manual_seed)(mix(*key))


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
    if "accelerator" in states and (accelerator := used_accelerator()):
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
