"""Axes of pictures drawn with Pillow."""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Axis(NamedTuple):
    """The range of an axis, on a linear or logarithmic scale."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Position of a value, from 0 at the low end to 1."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return (value - low) / (high - low)


def ticks(axis: Axis, *, whole: bool = False) -> Iterable[float]:
    """About five round values on an axis. whole: integers only."""
    if axis.log:
        first, last = math.ceil(math.log10(axis.low)), math.floor(math.log10(axis.high))
        every = max(1, math.ceil((last - first) / 5))
        return [10.0**exponent for exponent in range(first, last + 1, every)]
    rough = (axis.high - axis.low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((factor * power for factor in (1.0, 2.0, 5.0) if factor * power >= rough), 10 * power)
    step = max(step, 1.0) if whole else step
    count = math.floor(axis.high / step) - math.ceil(axis.low / step) + 1
    return [(math.ceil(axis.low / step) + place) * step for place in range(count)]


def labelled(values: Iterable[float]) -> Iterator[tuple[float, str]]:
    """Values with their labels, of five digits or as many as tell them apart, up to ten."""
    values = list(values)
    digits = next((n for n in range(5, 10) if len({f"{value:.{n}g}" for value in values}) == len(values)), 10)
    return ((value, f"{value:.{digits}g}") for value in values)
