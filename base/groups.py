"""The batches of each optimizer step."""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from base.batches import Batches, Loaded, Window
from base.progress import Progress
from utils.schema import TrainerConfig


class Group(NamedTuple):
    """The batches of one optimizer step."""

    batches: list[Loaded]
    samples: int
    """In all batches together, of all processes."""


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
        yield Group(group, sum([window.stop - window.start for window, _, _ in group]))
