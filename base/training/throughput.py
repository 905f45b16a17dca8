"""How fast a run goes and when it will end, judged by what this process itself has seen of it."""


class Throughput:
    """Seconds of the steps and of what lies between two epochs. A resumed run's steps of before do not count.

    now: seconds on any clock that only goes forward. validation_samples: of one validation.
    """

    def __init__(self, validation_samples: int = 0) -> None:
        self.validation_samples = validation_samples
        self.steps = self.samples = 0
        """Of this epoch."""
        self._start, self._begun = 0.0, (0, 0)
        self._before = (0.0, 0)
        self._ended: float | None = None
        self._between: float | None = None
        self._speed: float | None = None

    def begin(self, now: float) -> None:
        """The training of an epoch begins. What came since the last one's end was validation and saving."""
        if self._ended is not None:
            self._between = now - self._ended
        self.steps = self.samples = 0
        self.begin_here(now)

    def begin_here(self, now: float) -> None:
        """The steps so far say nothing of the others: in the first one a model is compiled, workers start."""
        self._start, self._begun = now, (self.steps, self.samples)

    def end(self, now: float) -> None:
        """The training of the epoch ends."""
        if self.steps > self._begun[0]:
            self._before = (now - self._start, self.steps - self._begun[0])
        self._ended = now

    def samples_per_second(self, now: float) -> float | None:
        """In this epoch; at its start, as it was before; None if it is not known yet."""
        samples, seconds = self.samples - self._begun[1], now - self._start
        if samples and seconds > 0:
            self._speed = samples / seconds
        return self._speed

    def left(self, now: float, *, steps: int, epochs: int, steps_per_epoch: int) -> tuple[float, float] | None:
        """Seconds of these many steps, with which the epoch ends, and of these epochs after it too.

        By the steps of this epoch and of the one before it; None if there was none yet.
        """
        count = self._before[1] + self.steps - self._begun[0]
        if count == 0:
            return None
        step = (self._before[0] + now - self._start) / count
        between = self._between
        if between is None:  # not seen yet; for one sample, forward alone takes about a third of forward and backward
            between = self.validation_samples * step * self.steps / self.samples / 3
        return steps * step, (steps + epochs * steps_per_epoch) * step + (1 + epochs) * between
