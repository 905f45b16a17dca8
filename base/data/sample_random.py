"""Random numbers for augmenting the samples of a batch."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from utils.random import uniform
from utils.tree import to_device

RandomKey = tuple[int | str, ...]
"""What random numbers depend on besides the index of a sample: (seed, "sample", pass)."""


@dataclass(slots=True)
class SampleRandom:
    """Random numbers for the samples of a batch: a function of (seed, pass, index), in whichever process."""

    indices: Tensor | slice
    """Indices of the samples in the data set, int64 of shape (B,), or a slice. A sample drawn before in the pass has
    another number here (``number_repeats``), so that it is augmented differently."""
    key: RandomKey
    device: torch.device | None = None
    """Target device; None: the CPU, where they are drawn."""
    calls: int = field(default=0, init=False)

    def uniform(self, draws: int = 1) -> Tensor:
        """Fresh numbers in [0, 1), float64 of shape (draws, B); float32 on MPS, which has no float64."""
        numbers = self._fresh(draws)
        if self.device is not None and self.device.type == "mps":
            numbers = numbers.float().clamp(max=1 - 2**-24)  # some would round to 1
        return numbers if self.device is None else to_device(numbers, self.device)

    def integers(self, low: int, high: int, draws: int = 1) -> Tensor:
        """Fresh integers in [low, high), int64 of shape (draws, B)."""
        numbers = (self._fresh(draws) * (high - low)).long() + low
        return numbers if self.device is None else to_device(numbers, self.device)

    def _fresh(self, draws: int) -> Tensor:
        self.calls += 1
        return uniform(as_tensor(self.indices), *self.key, self.calls, draws=draws)


def as_tensor(indices: Tensor | slice) -> Tensor:
    """Indices as int64 of shape (B,)."""
    return torch.arange(indices.start, indices.stop) if isinstance(indices, slice) else indices
