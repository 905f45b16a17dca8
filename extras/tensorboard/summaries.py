"""What TensorBoard's plugins read, as protocol buffers. Its own functions for some of these need TensorFlow."""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as layouts
from tensorboard.plugins.histogram import metadata as histograms
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.plugins.pr_curve import metadata as pr_curves
from tensorboard.plugins.text import metadata as texts
from tensorboard.util.tensor_util import make_tensor_proto
from torch import Tensor

Counts = np.ndarray[Any, np.dtype[np.int64]]
BUCKETS = 30


def histogram(tag: str, values: Tensor) -> Summary | None:
    """Of any floats, on any device; what is not finite is left out. None if nothing is left.

    Of a tensor that is spread over several processes, the part that this one has.
    """
    values = getattr(values, "to_local", lambda: values)().detach()
    values = (torch.view_as_real(values) if values.is_complex() else values.float()).flatten()
    if values.numel() and not values.sum().isfinite():  # to look at each takes longer than all else here
        values = values[values.isfinite()]
    if not values.numel():
        return None
    low, high = (float(bound) for bound in values.aminmax())
    counts = (
        torch.histc(values, BUCKETS, low, high).tolist() if low < high else [0.0] * (BUCKETS - 1) + [values.numel()]
    )
    edges = np.linspace(low, high, BUCKETS + 1)
    rows = np.stack([edges[:-1], edges[1:], counts], 1)  # (BUCKETS, 3): left, right, count
    return _tensor(tag, histograms.create_summary_metadata(None, None), rows)


def image(tag: str, png: bytes) -> Summary:
    """A picture: the bytes of a PNG file, whose first block tells the size."""
    width, height = struct.unpack(">II", png[16:24])
    return Summary(
        value=[
            Summary.Value(
                tag=tag, image=Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
            )
        ]
    )


def text(tag: str, markdown: str) -> Summary:
    return _tensor(tag, texts.create_summary_metadata(None, None), np.array([markdown.encode()], object))


def pr_curve(tag: str, true: Counts, false: Counts) -> Summary:
    """Precision and recall where the threshold is i / (T - 1). true, false: positives at each threshold, (T,).

    At the threshold 0 everything is positive, so that the first numbers are those of the class and of the others.
    """
    precision = true / np.maximum(true + false, 1)
    recall = true / np.maximum(true[0], 1)
    rows = np.stack([true, false, false[0] - false, true[0] - true, precision, recall])
    name = tag.partition("/")[2] or tag
    return _tensor(tag, pr_curves.create_summary_metadata(name, "", len(true)), rows.astype(np.float32))


def layout(charts: Mapping[str, Mapping[str, Sequence[str]]]) -> Summary:
    """The page of custom scalars: categories of charts, each with the patterns of the tags that it shows together."""
    categories = [
        layout_pb2.Category(
            title=category,
            chart=[
                layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=patterns))
                for title, patterns in inside.items()
            ],
        )
        for category, inside in charts.items()
    ]
    content = layout_pb2.Layout(category=categories).SerializeToString()
    return _tensor(layouts.CONFIG_SUMMARY_TAG, layouts.create_summary_metadata(), np.array(content, object))


def hyperparameters(values: Mapping[str, Any], start: float) -> Summary:
    """A run's hyperparameters by name: what JSON has. start: when it began, in seconds since 1970.

    TensorBoard finds their values' kinds and the metrics by itself, and better than if we named them: what one run
    says of that, it takes for all the runs that it shows.
    """
    info = plugin_data_pb2.SessionStartInfo(start_time_secs=start)
    for key, value in values.items():
        if isinstance(value, bool):
            info.hparams[key].bool_value = value
        elif isinstance(value, (int, float)):
            info.hparams[key].number_value = value
        else:
            info.hparams[key].string_value = value if isinstance(value, str) else json.dumps(value)
    return _hparams(hparams.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=info))


def finished(end: float) -> Summary:
    """That the run came to its end, and when."""
    info = plugin_data_pb2.SessionEndInfo(status="STATUS_SUCCESS", end_time_secs=end)
    return _hparams(hparams.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=info))


def _hparams(tag: str, content: plugin_data_pb2.HParamsPluginData) -> Summary:
    value = Summary.Value(tag=tag, metadata=hparams.create_summary_metadata(content), tensor=hparams.NULL_TENSOR)
    return Summary(value=[value])


def _tensor(tag: str, metadata: SummaryMetadata, values: np.ndarray[Any, Any]) -> Summary:
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=make_tensor_proto(values))])
