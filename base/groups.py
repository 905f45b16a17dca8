"""The batches of each optimizer step."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from base.batches import Batches, Window
from base.progress import Progress
from utils.schema import TrainerConfig


class Group(NamedTuple):
    """The batches of one optimizer step."""

    batches: list[tuple[Window, Any]]
    samples: int
    """In all batches together."""
    sizes: list[int]
    """Samples of each batch that are this process's."""


def grouped(batches: Batches, progress: Progress, settings: TrainerConfig) -> Iterator[Group]:
    """The batches of each optimizer step that is left of this epoch."""
    size = settings.accumulate_steps
    if progress.trained:
        return
    windows: Iterable[Window] = batches.windows(progress.position)
    if settings.steps_per_epoch is None:
        passes = progress.passes
        windows = itertools.takewhile(lambda window: window.passes == passes, windows)
    else:
        left = settings.steps_per_epoch - progress.epoch_steps
        windows = itertools.islice(windows, max(0, left) * size)
    loaded = batches.load(windows)
    while group := list(itertools.islice(loaded, size)):
        sizes = [batches.part(window).size for window, _ in group]
        yield Group(group, sum([window.size for window, _ in group]), sizes)


def weighted(losses: list[Any], weights: list[float]) -> Any:
    """The loss of an optimizer step, as one large batch would have had it, from its batches' tensors or numbers."""
    if weights == [1.0]:
        return losses[0]
    return sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
