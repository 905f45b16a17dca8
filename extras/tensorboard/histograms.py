"""Histograms of weights and gradients, the gradient norm, and memory use."""

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor, nn
from torch.utils import tensorboard

from base.base_trainer import BaseTrainer
from utils.determinism import fastest_kernels

summary: Any = tensorboard.summary  # its functions are not typed
MEGABYTE = 2**20
BUCKETS = 30
FEWEST = 32
"""Minimum number of values for a useful histogram: about as many as it has bars."""


def gradient_norm(trainer: BaseTrainer) -> dict[str, float]:
    """The total norm of all gradients of the last step, before clipping.

    Empty if this process has only a shard of them: the other processes do not take part here.
    """
    norm = trainer.gradient_norm
    if norm is None:
        gradients = [gradient for _, gradient in _gradients(trainer.experiment.model)]
        if any(map(_is_sharded, gradients)):
            return {}
        norm = nn.utils.get_total_norm(gradients)
    return {} if _is_sharded(norm) else {"gradient_norm": float(norm)}


def weights(model: nn.Module) -> Iterator[Summary]:
    """Histograms of the weights."""
    yield from _histograms("weights", model.named_parameters())


def gradients(model: nn.Module) -> Iterator[Summary]:
    """Histograms of the gradients of the last step, after clipping."""
    yield from _histograms("gradients", _gradients(model))


def _histograms(kind: str, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[Summary]:
    made = (histogram(f"{kind}/{name}", values) for name, values in tensors if values.numel() >= FEWEST)
    yield from filter(None, made)


def histogram(tag: str, values: Tensor) -> Summary | None:
    """A histogram of any floats, on any device; counts only finite values. None if there are none.

    For a tensor sharded over several processes, the histogram covers this process's shard.
    """
    values = getattr(values, "to_local", lambda: values)().detach()
    values = (torch.view_as_real(values) if values.is_complex() else values.float()).flatten()
    if not values.numel():
        return None
    low, high, *sums = _range_and_sums(values)
    if not math.isfinite(sums[0]):  # testing each value takes longer than everything else
        values = values[values.isfinite()]
        if not values.numel():
            return None
        low, high, *sums = _range_and_sums(values)
    with fastest_kernels():  # torch takes counts by threads for inexact; its histogram() needs all values on the host
        counts = torch.histc(values, BUCKETS, low, high).tolist() if low < high else [values.numel()]
    limits = np.linspace(low, high, len(counts) + 1)[1:].tolist()
    made: Summary = summary.histogram_raw(tag, low, high, values.numel(), *sums, limits, counts)
    return made


def _range_and_sums(values: Tensor) -> list[float]:
    """Minimum, maximum, sum and sum of squares. The host waits once for the device."""
    found: list[float] = torch.stack([*values.aminmax(), values.sum(), values.square().sum()]).tolist()
    return found


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


def _is_sharded(values: Tensor) -> bool:
    """Whether a tensor is sharded over processes, as a DTensor, whose import would take 0.2 s."""
    return hasattr(values, "to_local")


def _gradients(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if (gradient := parameter.grad) is not None:
            yield name, gradient.coalesce().values() if gradient.is_sparse else gradient
