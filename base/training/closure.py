"""The step of an optimizer that evaluates the loss itself: LBFGS, or any other whose ``step`` needs a closure."""

from typing import Any

import torch
from torch import Tensor

from base.data.batches import StepBatches
from utils.random import generator_states, restore_generators


def closure_step(trainer: Any, step: StepBatches) -> Tensor | float:
    """One optimizer step of a BaseTrainer, whose module imports this one.

    The closure is one function: each evaluation draws the same random numbers, as of dropout. The loss, which is
    returned, and the metrics are those of the first evaluation: of the weights before the step, as with any optimizer.
    """
    runtime, scheduled = trainer.runtime, trainer.training.scheduled
    step.micro_batches = list(step.micro_batches)  # each evaluation goes through them
    states = generator_states()
    losses: list[Tensor | float] = []

    def closure() -> Tensor:
        restore_generators(states)
        losses.append(trainer.compute_gradients(step, measure=not losses))
        summed: Tensor = runtime.sum_over_processes(torch.as_tensor(losses[-1], device=runtime.device))
        return summed

    scheduled.optimizer.step(closure)
    scheduled.schedule.after_step(moved=True)
    return losses[0]
