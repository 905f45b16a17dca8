"""Which random generators a data set draws from: only those are seeded for each sample."""

import ctypes
import random
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

from base.data.own_generators import OwnGenerators, Snapshot
from base.data.sample_random import RandomKey
from utils.random import SEEDERS, mix, numpy_random

T = TypeVar("T")
NUMPY: Any = np.random.MT19937(0)
"""NumPy's functions draw from it while samples are loaded. In between it is as at first."""


class DrawnGenerators:
    """Seeds the generators that a data set has been seen to draw from: the global ones of Python, NumPy and torch, and
    those that it keeps for itself.

    Seeding the three global ones takes 15 us, five times as long as loading a small sample. So only generators that
    were seen to be drawn from are seeded: if another one moves during a batch, the batch is loaded again with it
    seeded, and so are all later ones. Samples therefore do not depend on when, or in which process, that was detected.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        """Generators to seed. Each process detects its own."""
        self.own = OwnGenerators()

    def seed(self, key: RandomKey, *more: int | str) -> None:
        if self.names:
            self.set_seed(mix(*key, *more))

    def set_seed(self, seed: int) -> None:
        """seed: from ``mix``."""
        for name in self.names:
            if name in SEEDERS:
                SEEDERS[name](seed)
            else:
                self.own.seed(name, seed)

    def load(self, load: Callable[[], T], *objects: Any) -> T:
        """The batch that ``load`` returns, which seeds the generators by ``seed``; it may be called several times.

        objects: those that may keep generators for themselves.

        Restores the generators' state afterwards: without workers, the model's dropout draws from the same generators.
        Only a second normal number that NumPy's may keep is lost. Computes with one thread, as torch does in a worker
        process: with several, sums differ in their last bits.
        """
        numpy_generator = numpy_random.get_bit_generator()
        numpy_random.set_bit_generator(NUMPY)
        before = {name: state() for name, state in STATES.items()}
        own_before = self.own.snapshot(*objects)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            while True:
                try:
                    batch = load()
                except Exception:
                    # otherwise it may be due to what was drawn unseeded
                    if not self._has_moved(before, own_before, objects):
                        raise
                else:
                    if not self._has_moved(before, own_before, objects):
                        return batch
        finally:
            torch.set_num_threads(threads)
            self.own.restore(own_before, self.names)
            numpy_random.set_bit_generator(numpy_generator)
            _numpy_memory.raw = before["numpy"]
            _restore_python(before["python"])
            if "torch" in self.names:
                torch.set_rng_state(torch.frombuffer(bytearray(before["torch"]), dtype=torch.uint8))

    def _has_moved(self, before: dict[str, Any], own_before: Snapshot, objects: tuple[Any, ...]) -> bool:
        """Whether something was drawn from generators that are not seeded; from now on they are."""
        moved = [name for name, state in STATES.items() if name not in self.names and state() != before[name]]
        own = self.own.snapshot(*objects)
        moved += [name for name in own if name not in self.names and own[name] != own_before.get(name)]
        self.names += moved
        return bool(moved)


def _memory(address: int) -> Any:
    """The memory of a Mersenne twister: its 624 words, and the position in them."""
    return (ctypes.c_char * (4 * (624 + 1))).from_address(address)


_python: Any = random.random.__self__  # type: ignore[attr-defined]
_python_memory = _memory(id(_python) + object.__basicsize__)
_is_in_memory = _python_memory.raw[4:] == np.array(random.getstate()[1][:-1], np.uint32).tobytes()
"""Whether the state follows the object's header, as in CPython."""
_numpy_memory = _memory(NUMPY.ctypes.state_address)


def _python_state() -> Any:
    return (_python_memory.raw, _python.gauss_next) if _is_in_memory else random.getstate()


def _torch_state() -> bytes:
    state = torch.get_rng_state()
    return ctypes.string_at(state.data_ptr(), state.numel())


STATES: dict[str, Callable[[], Any]] = {
    "python": _python_state,
    "numpy": lambda: _numpy_memory.raw,
    "torch": _torch_state,
}
"""Functions that return a generator's state: equal (``==``) if nothing was drawn in between.

They read it from memory in a few microseconds. The functions of Python and NumPy take 20 and 100 us, as long as loading
a batch of small samples.
"""


def _restore_python(state: Any) -> None:
    if _is_in_memory:
        _python_memory.raw, _python.gauss_next = state
    else:
        random.setstate(state)
