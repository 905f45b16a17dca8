"""Histograms of weights and gradients, and memory use."""

import math
import mmap
from collections.abc import Iterator, Mapping
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
    return histograms("weights", dict(model.named_parameters()))


def gradients(model: nn.Module) -> Iterator[Summary]:
    """Histograms of the gradients of the last step, after clipping."""
    found = {name: each.grad for name, each in model.named_parameters()}
    return histograms("gradients", {name: stored_values(each) for name, each in found.items() if each is not None})


def histograms(kind: str, tensors: Mapping[str, Tensor]) -> Iterator[Summary]:
    """Histograms of any floats by name, on any device; only finite values count, and without any there is none.

    For a tensor sharded over several processes, the histogram covers this process's shard.
    """
    for name, tensor in tensors.items():
        values = _numbers(tensor)
        if not math.isfinite(values.sum()):  # testing each value takes longer than everything else
            values = values[values.isfinite()]
        if tensor.numel() < FEWEST or not len(values):
            continue
        low, high = (float(end) for end in values.aminmax())
        bars = [len(values)]
        if low < high:
            with fastest_kernels():  # torch takes counts by threads for inexact
                bars = values.histc(BUCKETS, low, high).tolist()
        sums = float(values.sum()), float(values.square().sum())
        limits = np.linspace(low, high, len(bars) + 1)[1:].tolist()
        yield summary.histogram_raw(f"{kind}/{name}", low, high, len(values), *sums, limits, bars)


def _numbers(tensor: Tensor) -> Tensor:
    """All numbers of a tensor, float32 of shape (N,)."""
    values = getattr(tensor, "to_local", lambda: tensor)().detach()
    return (torch.view_as_real(values) if values.is_complex() else values).float().flatten()


def memory(device: torch.device) -> dict[str, float]:
    """Memory of this process in MB, if the system reports it, and the accelerator's peak memory."""
    found = {}
    with suppress(OSError):  # only Linux has the file
        found["memory/process_MB"] = int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE / MEGABYTE
    if device.type != "cpu":
        with suppress(RuntimeError):  # not all accelerators report it
            found["memory/accelerator_MB"] = torch.accelerator.max_memory_allocated() / MEGABYTE
    return found
