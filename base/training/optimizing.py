"""Steps with several optimizers, and with one that evaluates the loss itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from base.data.batches import StepBatches
from base.training.loss import take_count_of
from base.training.metrics import StepLoss
from base.training.schedule import ScheduledOptimizer, gradient_norm
from utils.errors import ConfigError
from utils.random import generator_states, restore_generators


def closure_step(trainer: Any, step: StepBatches) -> Tensor | float:
    """Take a step of an optimizer whose ``step`` needs a closure, such as LBFGS. trainer: a BaseTrainer.

    The closure is deterministic: each evaluation draws the same random numbers, as for dropout. The returned loss and
    the metrics are from the first evaluation, with the weights before the step, as for any optimizer.
    """
    runtime, scheduled = trainer.runtime, trainer.training.scheduled
    step.micro_batches = list(step.micro_batches)  # each evaluation iterates over them
    states = generator_states()
    losses: list[Tensor | float] = []

    def closure() -> Tensor:
        restore_generators(states)
        losses.append(trainer.compute_gradients(step, measure=not losses))
        [summed] = runtime.process_group.all_reduce_sum([float(losses[-1])])
        return torch.tensor(summed, device=runtime.device)

    scheduled.optimizer.step(closure)
    scheduled.schedule.after_step(stepped=True)
    return losses[0]


class SeveralOptimizers:
    """The optimizers of a BaseTrainer over the micro-batches of a step, which ``train_step`` steps one by one.

    Each works like a single optimizer: cleared gradients, fp16 scale, clipping, schedule, and the gradients of all
    micro-batches and processes.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.current: ScheduledOptimizer | None = None
        self.step: StepBatches | None = None
        """The current step; None outside of a step, where gradients are computed without stepping."""
        self.count: Tensor | float | None = None
        """What the config's loss was averaged over in this micro-batch, once an optimizer has used it."""
        self._waiting: list[Tensor] = []  # losses whose backward pass comes at the end of the block
        self._size, self._number = 0, 0
        self._losses = dict[str, StepLoss]()
        self._seen = set[str]()
        self._skipped = set[str]()
        self._norms = dict[str, Tensor]()  # before clipping, if anything is clipped

    def take_step(self, step: StepBatches) -> Tensor | float:
        """Take one step. Returns its loss from the trainer's result, by ``to_scalar``."""
        trainer, self.step = self.trainer, step
        total: StepLoss = trainer.begin_step(step)
        self._losses, self._skipped, self._norms = {}, set(), {}
        for optimizer in trainer.training.optimizers.values():  # one may not step this time
            trainer.runtime.zero_grad(optimizer.optimizer)
        try:
            for self._number, micro_batch in enumerate(step.micro_batches, start=1):
                self._size = micro_batch.size
                self._seen = set()
                self.count = None
                trainer.run_micro_batch(micro_batch, step, total)
                if left_out := self._losses.keys() - self._seen:
                    raise self._only_sometimes(min(left_out), step)
        finally:
            self.step = None
        for optimizer in trainer.training.optimizers.values():
            optimizer.schedule.after_step(stepped=optimizer.name not in self._skipped)
        if trainer.runtime.process_group.world_size > 1:
            from utils.distributed.parallel import broadcast_buffers

            broadcast_buffers(trainer.experiment.model)
        norms = list(self._norms.values())
        trainer.gradient_norm = nn.utils.get_total_norm(norms) if norms else None
        return total.finish([], trainer.runtime.process_group)

    @contextmanager
    def optimizing(self, name: str) -> Iterator[None]:
        """Inside the block, ``backward`` adds gradients to one optimizer's parameters; at the end, it steps."""
        optimizers = self.trainer.training.optimizers
        if name not in optimizers:
            raise ConfigError(f"the trainer steps the optimizer {name!r}, but the config has {', '.join(optimizers)}")
        optimizer: ScheduledOptimizer = optimizers[name]
        if self.current is not None:
            raise ConfigError(
                f"self.optimizing({name!r}) inside self.optimizing({self.current.name!r}); let one block follow the "
                "other, and compute in each the loss that both train on"
            )
        step = self.step
        if step is not None and step.num_micro_batches > 1 and name in self._seen:
            raise ConfigError(
                f"self.optimizing({name!r}) cannot be used twice in a step with trainer.accumulate_steps above 1; "
                "let the others step less often instead, as in: if (self.progress.steps + 1) % 5 == 0"
            )
        self._seen.add(name)
        if step is not None and self._number > 1 and name not in self._losses:
            raise self._only_sometimes(name, step)
        if step is not None and self._number == 1:
            self.trainer.runtime.zero_grad(optimizer.optimizer)
            self._losses[name] = self.trainer.begin_step(step)
        own = set(map(id, optimizer.parameters))
        others = [each for each in self.trainer.training.parameters if id(each) not in own and each.requires_grad]
        self.current = optimizer
        try:
            for parameter in others:
                parameter.requires_grad_(False)
            yield
            self._finish_backward(optimizer)
        finally:
            self.current = None
            self._waiting = []
            for parameter in others:
                parameter.requires_grad_(True)
        if step is not None and self._number == step.num_micro_batches:
            self._move(optimizer)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss of shape () for the current optimizer."""
        if self.current is None:
            raise ConfigError(
                "self.backward was called outside self.optimizing(NAME), but the config has several optimizers: "
                f"{', '.join(self.trainer.training.optimizers)}"
            )
        if self.step is not None and self.trainer.waits_for_count:
            self._waiting.append(loss)
        else:
            self.trainer.runtime.backward(loss)

    def _finish_backward(self, optimizer: ScheduledOptimizer) -> None:
        """The backward pass of the losses of a block whose gradients are a share of the step's."""
        if not self._waiting:
            return
        loss = sum(self._waiting[1:], self._waiting[0])
        count = take_count_of(self._waiting, self.trainer.criterion)
        weight = self._losses[optimizer.name].add(loss, count, self._size)
        self.trainer.runtime.backward(loss, weight)
        self.count = self.count if count is None else count

    @staticmethod
    def _only_sometimes(name: str, step: StepBatches) -> ConfigError:
        return ConfigError(
            f"self.optimizing({name!r}) is called for some of the {step.num_micro_batches} micro-batches of a step "
            "(trainer.accumulate_steps), so that gradients would be lost; call it for each of them or for none, as by "
            "self.progress.steps, which counts whole steps"
        )

    def _move(self, optimizer: ScheduledOptimizer) -> None:
        runtime = self.trainer.runtime
        runtime.average_gradients(optimizer.parameters)
        runtime.unscale(optimizer.optimizer)
        self._losses[optimizer.name].finish(optimizer.parameters, runtime.process_group)
        logged = self.trainer.logs_this_step()
        norm = optimizer.clip_gradients(measure=logged)
        if logged and any(each.clips for each in self.trainer.training.optimizers.values()):
            self._norms[optimizer.name] = gradient_norm(optimizer.parameters) if norm is None else norm
        if not runtime.step(optimizer.optimizer, wait=optimizer.schedule.follows_steps):
            self._skipped.add(optimizer.name)

    def check_use(self) -> None:
        """Raise ConfigError if the last ``train_step`` did not step any optimizer."""
        if not self._seen:
            raise ConfigError(
                f"the config has several optimizers, but {type(self.trainer).__name__}.train_step steps none of them: "
                f"with self.optimizing({next(iter(self.trainer.training.optimizers))!r}): self.backward(loss)"
            )
