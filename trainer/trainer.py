"""The mathematics of a step. This is the file to edit."""

from typing import Any

from base.base_trainer import BaseTrainer
from base.metric import StepResult
from utils.registry import TRAINERS


@TRAINERS.register
class Trainer(BaseTrainer):
    """One model, one loss, batches of (inputs, targets)."""

    def train_step(self, batch: Any) -> StepResult:
        inputs, targets = batch
        with self.autocast():
            outputs = self.model(inputs)  # (B, ...) -> (B, num_classes)
            loss = self.criterion(outputs, targets)  # ()
        self.backward(loss)
        return StepResult(loss, outputs, targets)

    def eval_step(self, batch: Any) -> StepResult:
        inputs, targets = batch
        with self.autocast():
            outputs = self.model(inputs)
            loss = self.criterion(outputs, targets)
        return StepResult(loss, outputs, targets)
