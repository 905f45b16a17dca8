"""A trial of a trainer's own validation, which otherwise first runs after an epoch."""

from dataclasses import replace

import torch

from base.base_trainer import BaseTrainer
from base.data.batches import Batches
from base.data.stream import StreamBatches
from base.training.evaluation import check_returned


def own_validation(trainer: BaseTrainer) -> list[str]:
    """Which of ``validate`` and ``evaluate`` the trainer defines itself."""
    names = ("validate", "evaluate")
    return [name for name in names if getattr(type(trainer), name) is not getattr(BaseTrainer, name)]


def try_own_validation(trainer: BaseTrainer) -> None:
    """Try a validation of the trainer's own on the first batches. Raises any error of the user's code."""
    training = trainer.training
    first = {name: _first_batches(batches) for name, batches in training.validation.items()}
    try:
        trainer.training = replace(training, validation=first)
        values = check_returned(trainer, "validate", trainer.validate())
        if (trainer.settings.monitored_name or "").startswith("val_"):
            trainer.monitored({f"val_{name}": value for name, value in values.items()})
    finally:
        trainer.training = training


def _first_batches(batches: Batches) -> Batches:
    """The first two; all of a stream."""
    if isinstance(batches, StreamBatches):
        return batches
    indices = torch.arange(len(batches.source)) if batches.indices is None else batches.indices
    return Batches(batches.source, batch_size=batches.batch_size, indices=indices[: 2 * batches.batch_size])
