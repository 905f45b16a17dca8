"""Steps with several optimizers, and with one that evaluates the loss itself."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from base.data.batches import StepBatches
from base.experiment import Training
from base.training.loss import Loss, take_count
from base.training.metrics import StepLoss
from base.training.schedule import gradient_norm
from utils.errors import ConfigError
from utils.random import generator_states, restore_generators
from utils.runtime import Runtime

Names = tuple[str, ...]


def closure_step(trainer: Any, step: StepBatches) -> Tensor | float:
    """Take a step of an optimizer whose ``step`` needs a closure, such as LBFGS. trainer: a BaseTrainer.

    The closure is deterministic: each evaluation draws the same random numbers, for example in dropout. The returned
    loss and the metrics are from the first evaluation, with the weights before the step, as with any optimizer.
    """
    runtime, scheduled = trainer.runtime, trainer.training.scheduled
    step.micro_batches = list(step.micro_batches)  # each evaluation iterates over them
    states = generator_states()
    losses: list[Tensor | float] = []
    # in float32, a line search in a model of float64 would end early
    in_float64 = any(each.dtype == torch.float64 for each in scheduled.parameters)
    dtype = torch.float64 if in_float64 else torch.float32

    def closure() -> Tensor:
        restore_generators(states)
        losses.append(trainer.compute_gradients(step, measure=not losses))
        [summed] = runtime.process_group.all_reduce_sum([float(losses[-1])])
        return torch.tensor(summed, dtype=dtype, device=runtime.device)

    scheduled.optimizer.step(closure)
    scheduled.schedule.after_step(stepped=True)
    return losses[0]


@dataclass
class OpenStep:
    """The optimizer step that is being taken. A block is known by the names of its optimizers."""

    loss: StepLoss
    """What the results of ``train_step`` add up to."""
    micro_batches: int
    """Their number."""
    criterion: Loss
    measure: bool
    """Whether the gradient norms are logged."""
    size: int = 0
    """Samples of the current micro-batch."""
    count: Tensor | float | None = None
    """What the config's loss was averaged over in it, once a block has used the loss; None: samples."""
    used: list[list[Names]] = field(default_factory=list)
    """The blocks of each micro-batch so far."""
    losses: dict[Names, StepLoss] = field(default_factory=dict)
    """The loss of each block."""
    skipped: set[str] = field(default_factory=set)
    """The optimizers that did not step, since their gradients overflowed in fp16."""
    norms: dict[str, Tensor] = field(default_factory=dict)
    """The gradient norm of each optimizer before clipping, if anything is clipped."""

    def begin_micro_batch(self, size: int) -> None:
        self.size, self.count = size, None
        self.used.append([])


class SeveralOptimizers:
    """Optimizers over the micro-batches of a step, in which ``train_step`` steps each or all, in blocks.

    Each works like a single optimizer: cleared gradients, fp16 scale, clipping, schedule, and the gradients of all
    micro-batches and processes.
    """

    def __init__(self, training: Training, runtime: Runtime, *, supervised: bool) -> None:
        self.training, self.runtime, self.supervised = training, runtime, supervised
        self.step: OpenStep | None = None
        """None outside of a step, where gradients are computed without stepping."""
        self.block: Names = ()
        """The open block."""

    @contextmanager
    def taking_step(self, step: OpenStep) -> Iterator[None]:
        """Inside the block, a step is taken. Then the schedules step."""
        optimizers = self.training.optimizers.values()
        for optimizer in optimizers:  # one may not step this time
            self.runtime.zero_grad(optimizer.optimizer)
        self.step = step
        try:
            yield
        finally:
            self.step, self.block = None, ()
        for optimizer in optimizers:
            optimizer.schedule.after_step(stepped=optimizer.name not in step.skipped)

    @contextmanager
    def optimizing(self, *names: str) -> Iterator[None]:
        """Inside the block, ``backward`` adds gradients to the parameters of these optimizers; at the end, they step.

        Without names: all of them.
        """
        optimizers = self.training.optimizers
        for name in names:
            if name not in optimizers:
                expected = ", ".join(optimizers)
                raise ConfigError(f"the trainer steps the optimizer {name!r}, but the config has {expected}")
        self._begin_block(tuple(name for name in optimizers if name in names or not names))
        others = [each for name in optimizers.keys() - self.block for each in optimizers[name].parameters]
        frozen = [each for each in others if each.requires_grad]
        try:
            for parameter in frozen:
                parameter.requires_grad_(False)
            yield
            self._end_block()
        finally:
            self.block = ()
            for parameter in frozen:
                parameter.requires_grad_(True)

    def open_loss(self) -> StepLoss | None:
        """The accumulator of the open block; None outside of a step.

        Outside of a block, a supervised trainer's loss belongs to all optimizers: begins a block of all.
        """
        if not self.block and not self.supervised:
            names = self.training.optimizers
            raise ConfigError(
                "self.backward was called outside self.optimizing(NAME), but the config has several optimizers: "
                f"{', '.join(names)}; to step all of them on one loss: with {_block(names)}"
            )
        if self.step is None:
            return None
        if not self.block:
            self._begin_block(tuple(self.training.optimizers))
        return self.step.losses[self.block]

    def end_train_step(self) -> Tensor | float | None:
        """End the block that ``open_loss`` began. Returns what the config's loss was averaged over in the blocks.

        Raises ConfigError for a block that some micro-batches of a step use twice or not at all.
        """
        if self.block:
            self._end_block()
            self.block = ()
        assert self.step is not None
        first, current = self.step.used[0], self.step.used[-1]
        names = [name for block in current for name in block]
        if self.step.micro_batches > 1 and (len(set(names)) < len(names) or set(current) != set(first)):
            uses, first_uses = (" and ".join(map(_block, blocks)) or "no block" for blocks in (current, first))
            raise ConfigError(
                f"micro-batch {len(self.step.used)} of {self.step.micro_batches} uses {uses}, and the first one "
                f"{first_uses}. With trainer.accumulate_steps, use each block once in all micro-batches of a step or "
                "in none; decide by self.progress.steps, which counts whole steps"
            )
        return self.step.count

    def check_use(self, trainer: str) -> None:
        """Raise ConfigError if ``train_step`` of the named class stepped no optimizer, or one without a loss."""
        losses = self.step.losses if self.step else {}
        if not losses:
            raise ConfigError(
                f"the config has several optimizers, but {trainer}.train_step steps none of them: "
                f"with self.optimizing({next(iter(self.training.optimizers))!r}): self.backward(loss)"
            )
        for names in losses:
            parameters = [each for name in names for each in self.training.optimizers[name].parameters]
            if all(each.grad is None for each in parameters) and not self.runtime.sharded:
                raise ConfigError(f"{_block(names)} steps without gradients; call self.backward(loss) in the block")

    def _begin_block(self, names: Names) -> None:
        if self.block:
            raise ConfigError(
                f"{_block(names)} inside {_block(self.block)}; let one block follow the other, "
                f"or step both at once: {_block(self.training.optimizers)}"
            )
        self.block, step = names, self.step
        if step is None:
            return
        step.used[-1].append(names)
        if len(step.used) == 1 or names not in step.losses:
            for name in names:
                self.runtime.zero_grad(self.training.optimizers[name].optimizer)
            step.losses[names] = StepLoss(step.loss.samples, alone=step.loss.alone, sum_loss=step.loss.sum_loss)
        step.losses[names].waiting.clear()  # of a block that raised an error, which train_step caught

    def _end_block(self) -> None:
        """Run the backward passes that wait and, in the last micro-batch, step the optimizers."""
        step, runtime = self.step, self.runtime
        if step is None:
            return
        loss = step.losses[self.block]
        if loss.waiting:
            count = take_count(step.criterion, *loss.waiting)
            total = loss.take_waiting()
            runtime.backward(total, loss.add(total, count, step.size))
            if count is not None:
                step.count = count
        if len(step.used) < step.micro_batches:
            return
        optimizers = [self.training.optimizers[name] for name in self.block]
        parameters = [parameter for optimizer in optimizers for parameter in optimizer.parameters]
        runtime.strategy.average_gradients(parameters)
        for optimizer in optimizers:
            runtime.unscale(optimizer.optimizer)
        loss.finish(parameters, runtime.process_group)
        for optimizer in optimizers:
            norm = optimizer.clip_gradients(measure=step.measure)
            if step.measure and any(each.clips for each in self.training.optimizers.values()):
                step.norms[optimizer.name] = gradient_norm(optimizer.parameters) if norm is None else norm
        for optimizer in optimizers:
            last = optimizer is optimizers[-1]
            if not runtime.step(optimizer.optimizer, wait=optimizer.schedule.per_step, last=last):
                step.skipped.add(optimizer.name)


def unnamed_optimizer(*names: str) -> ConfigError:
    """For a block, or a second one, although the config's single optimizer, which steps once, has no name."""
    unnamed = "but the config's single optimizer has no name; name"
    if names:
        named = f'"optimizer": {{"{names[0]}": {{"type": ..., "args": ...}}, ...}}'
        return ConfigError(f"the trainer steps the optimizer {names[0]!r}, {unnamed} each: {named}")
    named = '"optimizer": {"all": {"type": ..., "args": ..., "params": ["*"]}}'
    return ConfigError(f"the trainer steps all optimizers twice, {unnamed} it: {named}")


def _block(names: Iterable[str]) -> str:
    """A block as in code: "self.optimizing('generator')"."""
    return f"self.optimizing({', '.join(map(repr, names))})"
