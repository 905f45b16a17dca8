"""Pictures: the model's inputs, and the findings of an evaluation."""

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils import tensorboard

from base.base_data_loader import BaseDataLoader
from base.data.pictures import pictures_of
from logger.writers import image_grid
from utils.tree import by_keys

if TYPE_CHECKING:
    from extras.report import EvaluationStats

Counts = np.ndarray[Any, np.dtype[np.int64]]
summary: Any = tensorboard.summary  # its functions are not typed
GRID = 32
"""Number of training images to show."""
VIEWS = 4
"""Number of grids of training images, if the inputs are in a nest."""
MISTAKES = 12
"""In rows of four, so that names are legible at TensorBoard's picture width."""
MOST_CURVES = 20
"""With more classes, a single precision-recall curve covers all."""


def training(data: BaseDataLoader, batch: Any) -> Iterator[Summary]:
    """The first images of a training batch as the model gets them, with normalisation undone.

    Inputs in a nest, such as two views of each image, get a grid each, if they have the shape of the first.
    """
    inputs = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
    images = {keys: tensor for keys, tensor in by_keys(inputs).items() if tensor.dim() == 4 or tensor is inputs}
    for keys, tensor in list(images.items())[:VIEWS]:
        if tensor.shape[1:] == next(iter(images.values())).shape[1:]:
            shown = pictures_of(data, tensor[:GRID])
            if shown is not None and len(shown):
                yield image_grid("/".join(map(str, ("images/training", *keys))), shown)


def precision_recall(stats: "EvaluationStats") -> Iterator[Summary]:
    """One curve per class."""
    found = stats.classification
    if found is None or not found.samples:
        return
    curves = {name: found.curve(label) for label, name in enumerate(stats.class_names())}
    if len(curves) > MOST_CURVES:
        curves = {"all classes": tuple(np.sum(list(curves.values()), 0))}
    for name, (true, false) in curves.items():
        yield pr_curve(f"precision_recall/{name}", true, false)


def evaluation(stats: "EvaluationStats", phase: str = "evaluation") -> Iterator[Summary]:
    """The model's errors: confusion matrix and worst mistakes, or predicted over true values."""
    from extras.report import thumbnails

    if stats.classification is None and stats.regression is None:
        return
    if (found := stats.classification) is not None and found.samples:
        names = stats.class_names()
        yield image(f"{phase}/confusion_matrix", thumbnails.confusion_matrix(found.confusion, names))
        if (mistakes := thumbnails.mistakes(stats.mistakes(MISTAKES), names, columns=4)) is not None:
            yield image(f"{phase}/mistakes", mistakes)
    if stats.regression is not None and stats.regression.numbers:
        yield image(f"{phase}/predicted_over_true", thumbnails.scatter(stats.regression))


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
