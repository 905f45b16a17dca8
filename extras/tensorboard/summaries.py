"""What TensorBoard's plugins read, as protocol buffers."""

import json
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from torch import Tensor
from torch.utils import tensorboard

from base.experiment import Training
from utils.schema import Config

summary: Any = tensorboard.summary  # its functions are not typed

Counts = np.ndarray[Any, np.dtype[np.int64]]
BUCKETS = 30

# keys that change where a run is kept or what is shown of it, but not its result
NO_HYPERPARAMETERS: dict[str, Any] = {
    "schema_path": True,
    "metrics": True,
    "trainer": {
        "save_dir", "save_period", "save_every_steps", "keep_last", "log_every_steps", "tensorboard", "verbosity",
        "pictures_every", "profile_steps",
    },
}  # fmt: skip


def histogram(tag: str, values: Tensor) -> Summary | None:
    """Of any floats, on any device. None if none is finite: only finite ones are counted.

    Of a tensor that is sharded over several processes, the histogram is of this one's shard.
    """
    values = getattr(values, "to_local", lambda: values)().detach()
    values = (torch.view_as_real(values) if values.is_complex() else values.float()).flatten()
    if values.numel() and not values.sum().isfinite():  # testing each value takes longer than all the rest
        values = values[values.isfinite()]
    if not values.numel():
        return None
    low, high = (float(bound) for bound in values.aminmax())
    # torch's own histogram() would need all values on the host
    counts = torch.histc(values, BUCKETS, low, high).tolist() if low < high else [values.numel()]
    limits = np.linspace(low, high, len(counts) + 1)[1:].tolist()
    sums = torch.stack([values.sum(dtype=torch.float32), values.square().sum(dtype=torch.float32)]).tolist()
    made: Summary = summary.histogram_raw(tag, low, high, values.numel(), *sums, limits, counts)
    return made


def image(tag: str, png: bytes) -> Summary:
    """A picture from the bytes of a PNG file, whose first block has the size."""
    width, height = struct.unpack(">II", png[16:24])
    picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=picture)])


def pr_curve(tag: str, true: Counts, false: Counts) -> Summary:
    """Precision and recall where the threshold is i / (T - 1). true, false: positives at each threshold, (T,).

    At the threshold 0 everything is positive, so that the first numbers are those of the class and of the others.
    """
    precision = true / np.maximum(true + false, 1)
    recall = true / np.maximum(true[0], 1)
    negatives = (false[0] - false, true[0] - true)  # true and false ones
    made: Summary = summary.pr_curve_raw(tag, true, false, *negatives, precision, recall, num_thresholds=len(true))
    made.value[0].metadata.display_name = tag.partition("/")[2] or tag
    return made


def layout(config: Config, training: Training) -> Summary:
    """The page of custom scalars: training and validation in one chart, the most important charts first."""
    names = ["loss", *(metric.name or metric.type for metric in config.metrics)]
    phases = ("train", "valid") if training.validation else ("train",)
    rates = f"^learning_rate{'/.*' if len(training.rates()) > 1 else ''}$"
    charts: dict[str, dict[str, list[str]]] = {
        "overview": {
            **{name: [f"^{re.escape(name)}/{phase}$" for phase in phases] for name in names},
            "learning rate": [rates],
            "gradient norm (before clipping)": ["^gradient_norm$"],
        },
        "every few steps": {name: [f"^{re.escape(name)}/step$"] for name in names},
        "the machine": {"samples per second": ["^samples_per_second$"], "memory (MB)": ["^memory/.*$"]},
    }
    made: Summary = summary.custom_scalars(
        {
            category: {title: ["Multiline", patterns] for title, patterns in inside.items()}
            for category, inside in charts.items()
        }
    )
    return made


def hyperparameters(config: Config, *, start: float) -> Summary:
    """A run's hyperparameters by the config's keys, ``optimizer.lr`` for optimizer.args.lr. start: seconds since 1970.

    TensorBoard infers the types and the metrics, and better than if we declared them: what one run declares holds for
    all the runs that it shows.
    """
    values = config.model_dump(exclude=NO_HYPERPARAMETERS, exclude_none=True)
    flat = {
        key.replace(".args.", "."): value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
        for key, value in _flat(values)
    }
    # an empty trial_id: each run is a trial of its own, also where two have the same hyperparameters
    made: Summary = hparams_pb(flat, trial_id="", start_time_secs=start)
    return made


def finished() -> Summary:
    """That the run ended by itself."""
    *_, end = summary.hparams({}, {})
    made: Summary = end
    # torch's has no value, and is not read without one
    made.value[0].tensor.CopyFrom(hparams_pb({}, trial_id="").value[0].tensor)
    return made


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values in nested objects, each under a dotted key."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value != []:  # no groups, nothing frozen
            yield f"{prefix}{key}", value
