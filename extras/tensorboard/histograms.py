"""Histograms of weights and gradients, and memory use."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor, nn
from torch.utils import tensorboard

from utils.determinism import fastest_kernels
from utils.tree import stored_values

summary: Any = tensorboard.summary  # its functions are not typed
MEGABYTE = 2**20
BUCKETS = 30
FEWEST = 32
"""Minimum number of values for a useful histogram: about as many as it has bars."""


def weights(model: nn.Module) -> Iterator[Summary]:
    """Histograms of the weights."""
    yield from _histograms("weights", model.named_parameters())


def gradients(model: nn.Module) -> Iterator[Summary]:
    """Histograms of the gradients of the last step, after clipping."""
    yield from _histograms("gradients", _gradients(model))


def _histograms(kind: str, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[Summary]:
    yield from histograms({f"{kind}/{name}": values for name, values in tensors if values.numel() >= FEWEST})


def histograms(tensors: Mapping[str, Tensor]) -> Iterator[Summary]:
    """Histograms of any floats by tag, on any device; only finite values count, and without any there is none.

    For a tensor sharded over several processes, the histogram covers this process's shard. The host waits for the
    device twice, not twice for each tensor.
    """
    found = _range_and_sums((tag, _numbers(each)) for tag, each in tensors.items())
    # testing each value takes longer than everything else
    broken = [tag for tag, (_, _, _, total, _) in found.items() if not math.isfinite(total)]
    finite = ((tag, _finite(_numbers(tensors[tag]))) for tag in broken)
    found = {tag: sums for tag, sums in found.items() if tag not in broken} | _range_and_sums(finite)
    wide = {tag: (low, high) for tag, (_, low, high, *_) in found.items() if low < high}
    with fastest_kernels():  # torch takes counts by threads for inexact; its histogram() needs all values on the host
        # of values outside the range, and of NaN, torch counts none
        counts = _read({tag: torch.histc(_numbers(tensors[tag]), BUCKETS, *ends) for tag, ends in wide.items()})
    for tag, (number, low, high, *sums) in found.items():
        bars = counts.get(tag, [number])
        limits = np.linspace(low, high, len(bars) + 1)[1:].tolist()
        yield summary.histogram_raw(tag, low, high, number, *sums, limits, bars)


def _numbers(tensor: Tensor) -> Tensor:
    """All numbers of a tensor, float32 of shape (N,)."""
    values = getattr(tensor, "to_local", lambda: tensor)().detach()
    return (torch.view_as_real(values) if values.is_complex() else values).float().flatten()


def _finite(values: Tensor) -> Tensor:
    return values[values.isfinite()]


def _range_and_sums(values: Iterable[tuple[str, Tensor]]) -> dict[str, list[float]]:
    """For each tag, the number of values, minimum, maximum, sum and sum of squares; left out without values."""
    numbers, sums = dict[str, int](), dict[str, Tensor]()
    for tag, each in values:
        if len(each):
            numbers[tag], sums[tag] = len(each), torch.stack([*each.aminmax(), each.sum(), each.square().sum()])
    return {tag: [numbers[tag], *found] for tag, found in _read(sums).items()}


def _read(tensors: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Tensors of the same shape as lists, with a single transfer for all."""
    if not tensors:
        return {}
    device = next(iter(tensors.values())).device  # a model may be on several
    return dict(zip(tensors, torch.stack([each.to(device) for each in tensors.values()]).tolist(), strict=True))


def memory(device: torch.device) -> dict[str, float]:
    """Memory of this process in MB, if the system reports it, and the accelerator's peak memory."""
    found = {}
    with suppress(OSError, ImportError):
        found["memory/process_MB"] = _resident() / MEGABYTE
    if device.type != "cpu":
        with suppress(RuntimeError):  # not all accelerators report it
            found["memory/accelerator_MB"] = torch.accelerator.max_memory_allocated() / MEGABYTE
    return found


def _resident() -> int:
    """Resident bytes now; their peak on systems without /proc."""
    statistics = Path("/proc/self/statm")
    import resource

    if statistics.exists():
        return int(statistics.read_text().split()[1]) * resource.getpagesize()
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _gradients(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if (gradient := parameter.grad) is not None:
            yield name, stored_values(gradient)
