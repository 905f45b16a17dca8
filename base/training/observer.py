"""Observer interface of the training loop: what watches a run, and changes nothing about it."""

from typing import Any

from base.data.batches import BatchRange
from base.metric import StepResult


class Observer:
    """Does nothing. A subclass watches, and must not change anything: the run is the same with it and without.

    trainer: the BaseTrainer, whose module imports this one.
    """

    def begin(self, trainer: Any) -> None:
        """Training starts, or resumes."""

    def log_interval(self, trainer: Any) -> None:
        """After every ``log_every_steps``-th optimizer step, while its gradients are still there."""

    def begin_evaluation(self, samples: int) -> None:
        """An evaluation of so many samples starts."""

    def evaluated(self, batch_range: BatchRange, batch: Any, result: StepResult) -> None:
        """A batch of the evaluation, and which of its samples are this process's.

        Those may be none, where a batch has fewer samples than there are processes: the other processes then have the
        samples that the result is of.
        """

    def end_evaluation(self) -> None:
        """All batches are evaluated, in all processes."""

    def end_epoch(self, trainer: Any, values: dict[str, float]) -> None:
        """An epoch and its validation are over. values: as in metrics.jsonl."""

    def end(self, trainer: Any) -> None:
        """The run is complete."""
