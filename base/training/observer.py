"""Who looks on while a model trains or is tested. The loop says what happens; what is made of it stands elsewhere."""

from typing import TYPE_CHECKING, Any

from base.data.batches import BatchRange
from base.metric import StepResult

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer


class Observer:
    """Looks at nothing. A subclass looks, and changes nothing: the run is the same with it and without."""

    def begin(self, trainer: "BaseTrainer") -> None:
        """Training begins, or goes on, from where the trainer stands."""

    def window(self, trainer: "BaseTrainer") -> None:
        """After every ``log_every_steps``-th optimizer step. Its gradients are still there."""

    def begin_evaluation(self, samples: int) -> None:
        """So many samples are evaluated next."""

    def evaluated(self, window: BatchRange, batch: Any, result: StepResult) -> None:
        """A batch of the evaluation. window: which of its samples are this process's.

        Those may be none, where a batch has fewer samples than there are processes: the result is then that of all, and
        the other processes have it.
        """

    def end_evaluation(self) -> None:
        """All batches are evaluated, in all processes."""

    def epoch(self, trainer: "BaseTrainer", values: dict[str, float]) -> None:
        """An epoch is over, its validation too. values: as in metrics.jsonl."""

    def end(self, trainer: "BaseTrainer") -> None:
        """The run came to its end."""
