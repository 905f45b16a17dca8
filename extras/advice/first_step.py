"""Likely mistakes that only the first optimizer step shows."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from base.base_trainer import BaseTrainer
from base.training.parameters import stateful_loss
from base.training.schedule import ScheduledOptimizer
from base.training.state import own_parts
from utils import checkpoint
from utils.optimizers import is_own, parameters_in
from utils.tree import map_tensors, same, tensors

SAMPLE = 1000
"""How many numbers of a tensor are compared: copies of whole weights may not fit into memory."""
SAVED = {"param_groups", "state", "defaults"}


# ------------------------------------------------------------------ a user's own optimizers


class OwnOptimizers:
    """The weights and attributes of the user's own optimizers before their first step in this process."""

    def __init__(self, optimizers: Iterable[ScheduledOptimizer]) -> None:
        own = [each for each in optimizers if is_own(each.optimizer)]
        self._before = [(each, _weights(each.optimizer), _kept(each.optimizer)) for each in own]

    def warnings(self) -> Iterator[str]:
        """Likely mistakes, once the step is taken."""
        for scheduled, weights, kept in self._before:
            name = type(scheduled.optimizer).__name__
            if _is_idle(scheduled, weights):
                yield (
                    f"{name} changed no parameter in its first step, although they have gradients; change them in "
                    "place, as by parameter.sub_(...), not by parameter = parameter - ..."
                )
            for attribute, values in _kept(scheduled.optimizer).items():
                if not same(values, kept.get(attribute, [])):
                    yield (
                        f"{name}.{attribute} changes in a step but is in no checkpoint, so a resume is only exact if "
                        "each step computes it from scratch; keep it in self.state[parameter]"
                    )


def _weights(optimizer: Optimizer) -> list[tuple[Tensor, Tensor]]:
    """Each parameter with a sample of it; none if some are not plain, such as those of FSDP."""
    parameters = parameters_in(optimizer)
    return [(each, _sample(each)) for each in parameters] if all(map(_is_plain, parameters)) else []


def _is_idle(scheduled: ScheduledOptimizer, before: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Whether the step left all parameters as they were, although plain gradient descent would have changed them."""
    if not all(torch.equal(_sample(parameter), weights) for parameter, weights in before):
        return False
    groups = zip(scheduled.optimizer.param_groups, scheduled.schedule.used(), strict=False)
    rates = {id(parameter): rate for group, rate in groups for parameter in group["params"]}
    for parameter, weights in before:
        if parameter.grad is not None and _is_plain(parameter.grad):
            moved = weights - rates.get(id(parameter), 0.0) * _sample(parameter.grad)
            if moved.isfinite().all() and not torch.equal(moved, weights):  # else fp16 overflowed: no step was taken
                return True
    return False


def _kept(optimizer: Optimizer) -> dict[str, list[Tensor]]:
    """Samples of the tensors in each attribute that a checkpoint lacks. A state_dict() of its own is trusted.

    Only those as large as a parameter, or all of them: others may be constants, or are computed to be shown.
    """
    if type(optimizer).state_dict is not Optimizer.state_dict:
        return {}
    parameters = parameters_in(optimizer)
    sizes = [parameter.numel() for parameter in parameters]
    known = tensors([parameters, [parameter.grad for parameter in parameters], dict(optimizer.state)])
    storages = {tensor.untyped_storage().data_ptr() for tensor in filter(_is_plain, known)}
    attributes = {name: filter(_is_plain, tensors(value)) for name, value in vars(optimizer).items()}
    return {
        name: [
            _sample(each)
            for each in values
            if each.numel() in {*sizes, sum(sizes)} - {1} and each.untyped_storage().data_ptr() not in storages
        ]
        for name, values in attributes.items()
        if name not in SAVED
    }


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided


def _sample(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1)[:SAMPLE].clone()


# ------------------------------------------------------------------ several optimizers


class IdleOptimizers:
    """Which of several optimizers have not stepped on any gradient, from a BaseTrainer's first step on."""

    def __init__(self, trainer: BaseTrainer) -> None:
        self._trainer = trainer
        optimizers = trainer.training.optimizers
        self._names = {name for name, each in optimizers.items() if not _has_gradients(each)}
        self._hooks = [
            optimizers[name].optimizer.register_step_pre_hook(partial(self._before_step, name)) for name in self._names
        ]

    def _before_step(self, name: str, *_: Any) -> None:
        if _has_gradients(self._trainer.training.optimizers[name]):
            self._names.discard(name)

    def warnings(self) -> Iterator[str]:
        """Likely mistakes, once the first epoch is over."""
        for hook in self._hooks:
            hook.remove()
        step = f"{type(self._trainer).__name__}.train_step"
        for name in sorted(self._names):
            if any(parameter.requires_grad for parameter in self._trainer.training.optimizers[name].parameters):
                yield (
                    f"the optimizer {name} changed nothing in the first epoch, since {step} computed no gradients for "
                    f"it: with self.optimizing({name!r}): self.backward(loss)"
                )


def _has_gradients(scheduled: ScheduledOptimizer) -> bool:
    return any(parameter.grad is not None for parameter in scheduled.parameters)


# ------------------------------------------------------------------ several processes


def differing_part_warnings(trainer: BaseTrainer) -> Iterator[str]:
    """Warnings about the loss or parts added by a subclass that differ between processes. A collective operation."""
    for name in parts_that_differ(trainer):
        yield (
            f"{name} differs between the processes, and a checkpoint keeps that of the first: compute it from the "
            "samples of all, as with self.runtime.process_group.all_reduce_sum, or save each process's "
            "(docs/distributed.md)"
        )


def parts_that_differ(trainer: BaseTrainer) -> list[str]:
    """The parts added by a subclass, and the loss, whose state differs between processes."""
    if trainer.runtime.process_group.world_size == 1:
        return []
    loss = stateful_loss(trainer.experiment.criterion)
    parts = {**own_parts(trainer), **({"loss": loss} if loss else {})}.items()
    digests = {name: _digest(checkpoint.plain({name: part.state_dict()})) for name, part in parts}
    everyone = trainer.runtime.process_group.all_gather(digests)
    return [name for name in digests if any(other[name] != digests[name] for other in everyone)]


def _digest(state: Any) -> str:
    """A hash that is the same for equal states."""

    def content(tensor: Tensor) -> str:
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        return blake2b(data.numpy().tobytes()).hexdigest()

    return blake2b(repr(map_tensors(content, state)).encode()).hexdigest()
