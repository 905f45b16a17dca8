"""A trainer of a user's own that steps two optimizers, one after the other."""

from typing import Any

from base.metric import StepResult
from trainer.trainer import Trainer


class TwoStepTrainer(Trainer):
    """The features by the loss as it is, then the head by the loss that the moved features give."""

    def train_step(self, batch: Any) -> StepResult:
        inputs, targets = batch
        for name in ("features", "head"):
            with self.autocast():
                outputs = self.model(inputs)
                loss = self.criterion(outputs, targets)
            with self.optimizing(name):
                self.backward(loss)
        return StepResult(loss, outputs, targets)
