"""The step of an optimizer that evaluates the loss itself: LBFGS, or any other whose ``step`` needs a closure."""

from typing import Any

import torch
from torch import Tensor

from base.data.batches import StepBatches
from base.metric import StepResult
from base.training.first_batch import FORWARD_ERRORS
from base.training.loss import completed
from utils.random import generator_states, restore_generators


def closure_step(trainer: Any, step: StepBatches) -> Tensor | float:
    """One optimizer step of a BaseTrainer, whose module imports this one. Returns its loss, from ``to_scalar``.

    The optimizer gets a closure that evaluates loss and gradients of all micro-batches, and calls it as often as
    it likes. It is one function: each evaluation draws the same random numbers, as of dropout. The metrics are those
    of the last evaluation, so that its outputs are kept.
    """
    runtime, optimizer, scheduled = trainer.runtime, trainer.training.optimizer, trainer.training.scheduled
    micro_batches = list(step.micro_batches)
    states = generator_states()
    results: list[StepResult] = []
    loss: Tensor | float = 0.0

    def closure() -> Tensor:
        nonlocal loss
        results.clear()
        restore_generators(states)
        runtime.zero_grad(optimizer)
        total = trainer.begin_step(step)
        for number, micro_batch in enumerate(micro_batches, start=1):
            runtime.sync_gradients(number == step.count)
            try:
                result = completed(trainer.train_step(runtime.to_device(micro_batch.data)), trainer.criterion)
                trainer.finish_backward(total.add(result.loss, result.count, micro_batch.size))
            except FORWARD_ERRORS as error:
                raise trainer.explain(error, micro_batch.data) from error
            results.append(result)
        runtime.average_gradients(trainer.training.beside_model)
        loss = total.finish(scheduled.parameters, runtime.process_group)
        trainer.gradient_norm = scheduled.clip_gradients()
        summed: Tensor = runtime.sum_over_processes(torch.as_tensor(loss, device=runtime.device))
        return summed

    optimizer.step(closure)
    scheduled.schedule.after_step(moved=True)
    for result, micro_batch in zip(results, micro_batches, strict=True):
        size = micro_batch.size
        try:
            trainer.train_metrics.update(result, samples=size, share=size / step.samples)
        except FORWARD_ERRORS as error:
            raise trainer.explain(error, micro_batch.data) from error
    if not trainer.first_batch_passed:
        trainer.check_first_batch(results[0])
    return loss
