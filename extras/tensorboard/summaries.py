"""Protocol buffers for TensorBoard's plugins."""

import math
import re
import struct
from typing import Any

import numpy as np
import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils import tensorboard

from base.experiment import Training
from utils.determinism import fastest_kernels
from utils.schema import Config

summary: Any = tensorboard.summary  # its functions are not typed

Counts = np.ndarray[Any, np.dtype[np.int64]]
BUCKETS = 30
PHASES = {"train": "training", "valid": "validation", "step": "training, every few steps"}


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


def image(tag: str, png: bytes) -> Summary:
    """A picture from the bytes of a PNG file, whose first chunk has the size."""
    width, height = struct.unpack(">II", png[16:24])
    picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=picture)])


def pr_curve(tag: str, true: Counts, false: Counts) -> Summary:
    """Precision and recall at thresholds i / (T - 1). true, false: positives at each threshold, (T,).

    At threshold 0 everything is positive, so the first numbers are the totals of the class and of the others.
    """
    precision = true / np.maximum(true + false, 1)
    recall = true / np.maximum(true[0], 1)
    negatives = (false[0] - false, true[0] - true)  # true and false ones
    made: Summary = summary.pr_curve_raw(tag, true, false, *negatives, precision, recall, num_thresholds=len(true))
    made.value[0].metadata.display_name = tag.partition("/")[2] or tag
    return made


def layout(config: Config, training: Training) -> Summary:
    """The custom scalars page: a row for the loss and each metric, then the optimizer, then the machine.

    Training and validation have separate charts: TensorBoard gives all curves of a run the same colour, so they would
    be indistinguishable in one chart.
    """
    phases = ("train", "valid", "step") if training.validation else ("train", "step")
    rates = f"^learning_rate{'/.*' if len(training.rates()) > 1 else ''}$"
    charts: dict[str, dict[str, str]] = {
        name: {f"{name}: {PHASES[phase]}": f"^{re.escape(name)}/{phase}$" for phase in phases}
        for name in ["loss", *(metric.logged_name for metric in config.metrics)]
    }
    charts |= {
        "optimizer": {"learning rate": rates, "gradient norm (before clipping)": "^gradient_norm$"},
        "machine": {"samples per second": "^samples_per_second$", "memory (MB)": "^memory/.*$"},
    }
    made: Summary = summary.custom_scalars(
        {
            category: {title: ["Multiline", [pattern]] for title, pattern in inside.items()}
            for category, inside in charts.items()
        }
    )
    return made
