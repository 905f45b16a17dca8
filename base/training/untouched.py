"""Trial steps of a trainer, whose effects are undone."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from base.training.buffers import load_part
from base.training.parameters import loss_module
from base.training.state import own_parts
from utils import checkpoint
from utils.random import isolated
from utils.tree import same


@contextmanager
def untouched(trainer: Any, *key: int | str) -> Iterator[None]:
    """Inside the block, a BaseTrainer's steps may be tried, without gradients and without compiling the model.

    Afterwards the random generators, the modes and buffers of model and loss, and the parts that a subclass adds to
    ``stateful`` are as they were. key: what the random numbers inside the block depend on.
    """
    parts = own_parts(trainer)
    roots = [trainer.experiment.model, loss_module(trainer.experiment.criterion), *parts.values()]
    modules = [module for root in roots if isinstance(root, nn.Module) for module in root.modules()]
    modes = [(module, module.training) for module in modules]
    buffers = [(module, {name: (each, each.clone()) for name, each in _buffers(module)}) for module in modules]
    with ExitStack() as stack:
        stack.enter_context(kept(parts))
        stack.enter_context(isolated(trainer.experiment.seed, *key))
        stack.enter_context(torch.no_grad())
        if trainer.runtime.settings.compile:  # which would take longer than the step
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for module, before in buffers:
                for name in {name for name, _ in _buffers(module)} - before.keys():  # registered as None
                    setattr(module, name, None)
                for name, (buffer, values) in before.items():
                    setattr(module, name, buffer.copy_(values))  # the module may have replaced it


@contextmanager
def kept(parts: dict[str, Any]) -> Iterator[None]:
    """Inside the block, these parts of a checkpoint may change; afterwards they are as they were."""
    states = copy.deepcopy(_states(parts))
    try:
        yield
    finally:
        for name, state in _states(parts).items():
            if not same(state, states[name]):
                load_part(parts[name], states[name])


def _states(parts: dict[str, Any]) -> dict[str, Any]:
    """The states of some parts, as a checkpoint would return them."""
    return checkpoint.plain({name: part.state_dict() for name, part in parts.items()})


def _buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers of a module, without those of the modules in it."""
    return module.named_buffers(recurse=False, remove_duplicate=False)
