"""The batches of each optimizer step."""

import itertools
from collections.abc import Iterable, Iterator

from base.data.batches import Batches, BatchRange
from base.training.progress import Progress
from utils.schema import TrainerConfig


def grouped(batches: Batches, progress: Progress, settings: TrainerConfig) -> Iterator[list[BatchRange]]:
    """Which batches make each optimizer step that is left of this epoch."""
    size = settings.accumulate_steps
    if progress.trained:
        return iter(())
    ranges: Iterable[BatchRange] = batches.ranges(progress.position)
    if settings.steps_per_epoch is None:
        passes = progress.passes
        ranges = itertools.takewhile(lambda batch_range: batch_range.passes == passes, ranges)
    else:
        left = settings.steps_per_epoch - progress.epoch_steps
        ranges = itertools.islice(ranges, max(0, left) * size)
    return iter(lambda: list(itertools.islice(ranges, size)), [])
