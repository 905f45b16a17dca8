"""Observer interface of the training loop: it watches a run without affecting it."""

import inspect
from collections.abc import Sequence
from typing import Any

from base.data.batches import BatchRange
from base.metric import StepResult


class Observer:
    """Base class that does nothing. Subclasses must not change anything: a run is the same with or without them.

    trainer: the BaseTrainer, whose module imports this one.
    """

    def begin(self, trainer: Any) -> None:
        """Training starts, or resumes."""

    def first_batch(self, trainer: Any, result: StepResult) -> None:
        """The first training batch of this process has run. result: what ``train_step`` returned."""

    def first_step(self, trainer: Any) -> None:
        """This process has taken its first optimizer step, or saves before that."""

    def log_interval(self, trainer: Any) -> None:
        """After every ``log_every_steps``-th optimizer step, before its gradients are cleared."""

    def begin_evaluation(self, samples: int) -> None:
        """An evaluation of this many samples starts."""

    def evaluated(self, batch_range: BatchRange, batch: Any, result: StepResult) -> None:
        """After each evaluated batch. batch_range: the samples in it that belong to this process.

        The range is empty if the batch has fewer samples than there are processes: the result then repeats samples of
        other processes.
        """

    def end_evaluation(self) -> None:
        """All batches have been evaluated, in all processes."""

    def end_epoch(self, trainer: Any, values: dict[str, float]) -> None:
        """An epoch and its validation are over. values: as in metrics.jsonl."""

    def end(self, trainer: Any) -> None:
        """The run is complete."""


def all_of(members: Sequence[Observer]) -> Observer:
    """Several observers as one. Each call reaches them in order."""
    together = Observer()
    for name, _ in inspect.getmembers(Observer, inspect.isfunction):
        calls = [getattr(member, name) for member in members]
        setattr(together, name, lambda *args, calls=calls: [call(*args) for call in calls])
    return together
