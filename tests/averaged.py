"""A trainer of a user's own that validates an average of the weights."""

from typing import Any

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from base.experiment import Experiment
from base.metric import StepResult
from trainer.trainer import Trainer
from utils.schema import TrainerConfig


class AveragedTrainer(Trainer):
    """Validates an average of the weights, as a user writes it."""

    def __init__(self, experiment: Experiment, settings: TrainerConfig) -> None:
        super().__init__(experiment, settings)
        average = get_ema_multi_avg_fn(0.9)  # type: ignore[no-untyped-call]
        self.ema = AveragedModel(experiment.model, multi_avg_fn=average, use_buffers=True)

    def train_step(self, batch: Any) -> StepResult:
        result = super().train_step(batch)
        self.ema.update_parameters(self.experiment.model)
        return result

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        model, self.model = self.model, self.ema
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self.model = model

    def stateful(self) -> dict[str, Any]:
        return {**super().stateful(), "ema": self.ema}
