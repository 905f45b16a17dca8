"""Steps that are only tried: what they change is undone."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from base.training.loss import loss_module
from base.training.state import load_part, own_parts
from utils import checkpoint
from utils.random import isolated
from utils.tree import copied, same


@contextmanager
def untouched(trainer: Any, *key: int | str) -> Iterator[None]:
    """Inside the block, a BaseTrainer's steps may be tried, without gradients and without compiling the model.

    Afterwards the random generators, the modes, buffers and extra states of model and loss, and the parts that a
    subclass adds to ``stateful`` are as they were. key: what the random numbers inside the block depend on.
    """
    parts = own_parts(trainer.stateful())
    roots = [trainer.experiment.model, loss_module(trainer.experiment.criterion), *parts.values()]
    modules = [module for root in roots if isinstance(root, nn.Module) for module in root.modules()]
    modes = [(module, module.training) for module in modules]
    buffers = [(module, {name: (each, each.clone()) for name, each in _buffers(module)}) for module in modules]
    own = [each for each in modules if type(each).get_extra_state is not nn.Module.get_extra_state]
    states = [copied(each.get_extra_state()) for each in own]
    eager: Any = nullcontext()
    if trainer.runtime.settings.compile:
        eager = torch.compiler.set_stance("force_eager")  # compiling would take longer than the step
    with kept(parts), isolated(trainer.experiment.seed, *key), torch.no_grad(), eager:
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
            for module, state in zip(own, states, strict=True):
                module.set_extra_state(state)


@contextmanager
def kept(parts: dict[str, Any]) -> Iterator[None]:
    """Inside the block, these parts of a checkpoint may change; afterwards they are as they were."""
    states = copied(_states(parts))
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
