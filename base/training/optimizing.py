"""Steps with several optimizers, and with one that evaluates the loss itself."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from base.data.batches import StepBatches
from base.training.loss import take_count
from base.training.metrics import StepLoss
from base.training.schedule import ScheduledOptimizer, gradient_norm
from utils.errors import ConfigError
from utils.random import generator_states, restore_generators


def closure_step(trainer: Any, step: StepBatches) -> Tensor | float:
    """Take a step of an optimizer whose ``step`` needs a closure, such as LBFGS. trainer: a BaseTrainer.

    The closure is deterministic: each evaluation draws the same random numbers, for example in dropout. The returned
    loss and the metrics are from the first evaluation, with the weights before the step, as with any optimizer.
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


@dataclass
class OpenMicroBatch:
    """The micro-batch on which ``train_step`` runs."""

    number: int
    """The first of a step is 1."""
    size: int
    """Its number of samples."""
    used: list[tuple[str, ...]] = field(default_factory=list)
    """The blocks that it has used."""
    count: Tensor | float | None = None
    """What the config's loss was averaged over in it, once an optimizer has used the loss; None: samples."""


@dataclass
class OpenStep:
    """The optimizer step that is being taken. A block is known by the names of its optimizers."""

    batches: StepBatches
    losses: dict[tuple[str, ...], StepLoss] = field(default_factory=dict)
    """The loss of each block."""
    skipped: set[str] = field(default_factory=set)
    """The optimizers that did not step, since their gradients overflowed in fp16."""
    norms: dict[str, Tensor] = field(default_factory=dict)
    """The gradient norm of each optimizer before clipping, if anything is clipped."""
    micro_batch: OpenMicroBatch = field(default_factory=lambda: OpenMicroBatch(number=0, size=0))

    @property
    def is_last(self) -> bool:
        """Whether the current micro-batch ends the step."""
        return self.micro_batch.number == len(self.batches.ranges)


class SeveralOptimizers:
    """The optimizers of a BaseTrainer over the micro-batches of a step, in which ``train_step`` steps each or all.

    Each works like a single optimizer: cleared gradients, fp16 scale, clipping, schedule, and the gradients of all
    micro-batches and processes.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.step: OpenStep | None = None
        """None outside of a step, where gradients are computed without stepping."""
        self.block: Sequence[ScheduledOptimizer] = ()
        """The optimizers of the open block."""
        self._without_block = ExitStack()  # has the block that ``backward`` opened

    def take_step(self, batches: StepBatches) -> Tensor | float:
        """Take one step. Returns its loss from the trainer's result, by ``to_scalar``."""
        trainer = self.trainer
        self.step = step = OpenStep(batches)
        step_loss: StepLoss = trainer.begin_step(batches)
        for optimizer in trainer.training.optimizers.values():  # one may not step this time
            trainer.runtime.zero_grad(optimizer.optimizer)
        try:
            for number, micro_batch in enumerate(batches.micro_batches, start=1):
                step.micro_batch = OpenMicroBatch(number, micro_batch.size)
                trainer.run_micro_batch(micro_batch, step_loss)
                if set(step.micro_batch.used) != step.losses.keys():
                    raise _differs(step)
            if not trainer.has_started:
                self._check_use(step)
        finally:
            self.step = None
            self.block = ()
            self._without_block.pop_all()  # of a step that failed
        for optimizer in trainer.training.optimizers.values():
            optimizer.schedule.after_step(stepped=optimizer.name not in step.skipped)
        norms = list(step.norms.values())
        trainer.gradient_norm = nn.utils.get_total_norm(norms) if norms else None
        return step_loss.finish([], trainer.runtime.process_group)

    @contextmanager
    def optimizing(self, *names: str) -> Iterator[None]:
        """Inside the block, ``backward`` adds gradients to the parameters of these optimizers; at the end, they step.

        Without names: all of them.
        """
        optimizers = self.trainer.training.optimizers
        for name in names:
            if name not in optimizers:
                expected = ", ".join(optimizers)
                raise ConfigError(f"the trainer steps the optimizer {name!r}, but the config has {expected}")
        names = tuple(name for name in optimizers if name in names or not names)
        if self.block:
            raise ConfigError(
                f"{_block(names)} inside {_block(each.name for each in self.block)}; let one block follow the other, "
                f"or step both at once: {_block(optimizers)}"
            )
        if self.step is not None:
            self._begin_block(names, self.step)
        self.block = current = [optimizers[name] for name in names]
        own_ids = {id(parameter) for optimizer in current for parameter in optimizer.parameters}
        others = [each for each in self.trainer.training.parameters if id(each) not in own_ids and each.requires_grad]
        try:
            for parameter in others:
                parameter.requires_grad_(False)
            yield
            if self.step is not None:
                self._finish_backward(names, self.step)
        finally:
            self.block = ()
            self.trainer.waiting_losses.clear()
            for parameter in others:
                parameter.requires_grad_(True)
        if self.step is not None and self.step.is_last:
            self._step_optimizers(names, current, self.step)

    def _begin_block(self, names: tuple[str, ...], step: OpenStep) -> None:
        several = len(step.batches.ranges) > 1
        is_first = step.micro_batch.number == 1
        twice = any(not set(names).isdisjoint(each) for each in step.micro_batch.used)
        step.micro_batch.used.append(names)
        if several and (twice or not (is_first or names in step.losses)):
            raise _differs(step)
        if is_first:
            for name in names:
                self.trainer.runtime.zero_grad(self.trainer.training.optimizers[name].optimizer)
            step.losses[names] = self.trainer.begin_step(step.batches)

    def ensure_block(self) -> None:
        """Before ``backward``: outside of a block, a supervised trainer's loss belongs to all optimizers."""
        if not self.block and not self.trainer.supervised:
            names = self.trainer.training.optimizers
            raise ConfigError(
                "self.backward was called outside self.optimizing(NAME), but the config has several optimizers: "
                f"{', '.join(names)}; to step all of them on one loss: with {_block(names)}"
            )
        if not self.block and self.step is not None:
            self._without_block.enter_context(self.optimizing())

    def after_train_step(self) -> Tensor | float | None:
        """Close the block that ``backward`` opened. Returns what the config's loss was averaged over in the blocks."""
        self._without_block.close()
        return self.step.micro_batch.count if self.step else None

    def _finish_backward(self, names: tuple[str, ...], step: OpenStep) -> None:
        """The backward pass of the losses of a block whose gradients are a share of the step's."""
        waiting = self.trainer.waiting_losses
        if not waiting:
            return
        count = take_count(self.trainer.criterion, *waiting)
        loss = sum(waiting[1:], waiting[0])
        weight = step.losses[names].add(loss, count, step.micro_batch.size)
        self.trainer.finish_backward(weight)
        if count is not None:
            step.micro_batch.count = count

    def _step_optimizers(
        self, names: tuple[str, ...], optimizers: Sequence[ScheduledOptimizer], step: OpenStep
    ) -> None:
        runtime = self.trainer.runtime
        parameters = [parameter for optimizer in optimizers for parameter in optimizer.parameters]
        runtime.average_gradients(parameters)
        for optimizer in optimizers:
            runtime.unscale(optimizer.optimizer)
        step.losses[names].finish(parameters, runtime.process_group)
        logged = self.trainer.logs_this_step()
        for optimizer in optimizers:
            norm = optimizer.clip_gradients(measure=logged)
            if logged and any(each.clips for each in self.trainer.training.optimizers.values()):
                step.norms[optimizer.name] = gradient_norm(optimizer.parameters) if norm is None else norm
        for optimizer in optimizers:
            last = optimizer is optimizers[-1]
            if not runtime.step(optimizer.optimizer, wait=optimizer.schedule.per_step, last=last):
                step.skipped.add(optimizer.name)

    def _check_use(self, step: OpenStep) -> None:
        """Raise ConfigError if ``train_step`` stepped no optimizer, or one without a loss."""
        optimizers = self.trainer.training.optimizers
        if not step.losses:
            raise ConfigError(
                f"the config has several optimizers, but {type(self.trainer).__name__}.train_step steps none of them: "
                f"with self.optimizing({next(iter(optimizers))!r}): self.backward(loss)"
            )
        for names in step.losses:
            parameters = [each for name in names for each in optimizers[name].parameters]
            if all(each.grad is None for each in parameters) and not self.trainer.runtime.sharded:
                raise ConfigError(f"{_block(names)} steps without gradients; call self.backward(loss) in the block")


def unnamed_optimizer(*names: str) -> ConfigError:
    """For a block although the config's single optimizer, which steps after ``train_step``, has no name."""
    if names:
        steps, config = (
            f"the optimizer {names[0]!r}",
            f'each: "optimizer": {{"{names[0]}": {{"type": ..., "args": ...}}, ...}}',
        )
    else:
        steps, config = "all optimizers", 'it: "optimizer": {"all": {"type": ..., "args": ..., "params": ["*"]}}'
    return ConfigError(f"the trainer steps {steps}, but the config's single optimizer has no name; name {config}")


def _block(names: Iterable[str]) -> str:
    """A block as in code: "self.optimizing('generator')"."""
    return f"self.optimizing({', '.join(map(repr, names))})"


def _differs(step: OpenStep) -> ConfigError:
    """For blocks that some micro-batches use twice or not at all."""
    used, others = (" and ".join(map(_block, blocks)) or "no block" for blocks in (step.micro_batch.used, step.losses))
    return ConfigError(
        f"micro-batch {step.micro_batch.number} of {len(step.batches.ranges)} uses {used}, and the first one {others}. "
        "With trainer.accumulate_steps, use each block once in all micro-batches of a step or in none; decide by "
        "self.progress.steps, which counts whole steps"
    )
