"""The step of an optimizer that evaluates the loss itself: LBFGS, or any other whose ``step`` needs a closure."""

from typing import Any

import torch
from torch import Tensor, nn

from base.data.batches import StepBatches
from base.metric import StepResult
from base.training.first_batch import FORWARD_ERRORS


def closure_step(trainer: Any, step: StepBatches) -> Tensor | float:
    """One optimizer step of a BaseTrainer, whose module imports this one. Returns its loss, from ``to_scalar``.

    The optimizer gets a closure that evaluates loss and gradients of all micro-batches, and calls it as often as
    it likes. The metrics are those of the last evaluation, so that its outputs are kept.
    """
    runtime, optimizer, settings = trainer.runtime, trainer.training.optimizer, trainer.settings
    micro_batches = list(step.micro_batches)
    shares = [micro_batch.size / step.samples for micro_batch in micro_batches]
    results: list[StepResult] = []

    def closure() -> Tensor:
        results.clear()
        runtime.zero_grad(optimizer)
        total = torch.zeros((), device=runtime.device)
        for number, (micro_batch, share) in enumerate(zip(micro_batches, shares, strict=True), start=1):
            runtime.sync_gradients(number == step.count)
            trainer.loss_weight = 1.0 if trainer.experiment.sum_loss else share
            try:
                result = trainer.train_step(runtime.to_device(micro_batch.data))
            except FORWARD_ERRORS as error:
                raise trainer.explain(error, micro_batch.data) from error
            results.append(result)
            total += trainer.loss_weight * result.loss.detach()
        if settings.clip_grad_norm is not None:
            trainer.gradient_norm = nn.utils.clip_grad_norm_(trainer.training.parameters, settings.clip_grad_norm)
        summed: Tensor = runtime.sum_over_processes(total)
        return summed

    optimizer.step(closure)
    loss: Tensor | float = 0.0
    for result, micro_batch, share in zip(results, micro_batches, shares, strict=True):
        try:
            loss += trainer.train_metrics.update(result, samples=micro_batch.size, share=share)
        except FORWARD_ERRORS as error:
            raise trainer.explain(error, micro_batch.data) from error
    if not trainer.first_batch_passed:
        trainer.check_first_batch(results[0])
    return loss
