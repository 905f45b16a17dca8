"""Histograms of weights and gradients, the gradient norm, and memory use."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor, nn

from base.base_trainer import BaseTrainer
from extras.tensorboard.summaries import histogram

MEGABYTE = 2**20
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
