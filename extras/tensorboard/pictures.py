"""Pictures: what goes into the model, and what an evaluation found. matplotlib is imported only to draw."""

import io
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor

from base.base_data_loader import BaseDataLoader
from extras.report.findings import EvaluationStats
from extras.tensorboard.summaries import image, pr_curve

GRID = 32
"""Training images that are shown."""
MISTAKES = 12
"""In rows of four, so that their names can be read at the width that TensorBoard gives a picture."""
MOST_CURVES = 20
"""More classes than these share one precision-recall curve."""


def training(data: BaseDataLoader, batch: Any) -> Iterator[Summary]:
    """The first images of a training batch as the model gets them, without their normalisation."""
    inputs = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
    shown = data.pictures(inputs[:GRID].cpu()) if isinstance(inputs, Tensor) else None
    if shown is not None and len(shown):
        yield image("images/training", _png(_grid(shown.numpy())))


def precision_recall(findings: EvaluationStats) -> Iterator[Summary]:
    """A curve a class."""
    found = findings.classification
    if found is None or not found.samples:
        return
    curves = {name: found.curve(label) for label, name in enumerate(findings.class_names())}
    if len(curves) > MOST_CURVES:
        curves = {"all classes": tuple(np.sum(list(curves.values()), 0))}
    for name, (true, false) in curves.items():
        yield pr_curve(f"precision_recall/{name}", true, false)


def evaluation(findings: EvaluationStats, phase: str = "evaluation") -> Iterator[Summary]:
    """What the model gets wrong: confusion matrix and worst mistakes, or predicted over true values."""
    if findings.classification is None and findings.regression is None:
        return
    from extras.report import drawing, figures

    if (found := findings.classification) is not None and found.samples:
        names = findings.class_names()
        yield image(f"{phase}/confusion_matrix", drawing.png(figures.confusion_matrix(found.confusion, names)))
        if (mistakes := figures.mistakes_grid(found.mistakes[:MISTAKES], names, columns=4)) is not None:
            yield image(f"{phase}/mistakes", drawing.png(mistakes))
    if findings.regression is not None and findings.regression.numbers:
        yield image(f"{phase}/predicted_over_true", drawing.png(figures.scatter(findings.regression)))


def _grid(pictures: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Pictures of (B, H, W, C) side by side on white, in rows of eight. TensorBoard enlarges what is small."""
    count, height, width, channels = pictures.shape
    columns, tall, wide = min(8, count), height + 2, width + 2
    whole = np.full((math.ceil(count / columns) * tall, columns * wide, channels), 255, np.uint8)
    for place, picture in enumerate(pictures):
        top, left = place // columns * tall, place % columns * wide
        whole[top : top + tall - 2, left : left + wide - 2] = picture
    return whole


def _png(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """uint8 of shape (H, W, 1 or 3)."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[2] > 1 else pixels[:, :, 0]).save(file, "PNG")
    return file.getvalue()
