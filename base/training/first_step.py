"""Mistakes in a user's own optimizer that only its first step shows."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from base.training.schedule import ScheduledOptimizer
from utils.tree import tensors

SAMPLE = 1000
"""How many numbers of a tensor are compared: copies of whole weights may not fit into memory."""
SAVED = {"param_groups", "state", "defaults"}


class FirstStep:
    """The weights and attributes of the user's own optimizers before their first step in this process."""

    def __init__(self, optimizers: Iterable[ScheduledOptimizer]) -> None:
        self.own = [each for each in optimizers if not type(each.optimizer).__module__.startswith("torch.")]
        self._weights = [[_sample(parameter) for parameter in _parameters(each.optimizer)] for each in self.own]
        self._kept = [_kept(each.optimizer) for each in self.own]

    def warnings(self) -> Iterator[str]:
        """Likely mistakes, once the step is taken."""
        for scheduled, weights, before in zip(self.own, self._weights, self._kept, strict=True):
            name = type(scheduled.optimizer).__name__
            if _is_idle(scheduled, weights):
                yield (
                    f"{name} changed no parameter in its first step, although they have gradients; change them in "
                    "place, as by parameter.sub_(...), not by parameter = parameter - ..."
                )
            for attribute, values in _kept(scheduled.optimizer).items():
                if not _same(values, before.get(attribute, [])):
                    yield (
                        f"{name}.{attribute} changes in a step but is in no checkpoint, so a resume is only exact if "
                        "each step computes it anew; keep it in self.state[parameter]"
                    )


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _sample(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1)[:SAMPLE].clone()


def _is_idle(scheduled: ScheduledOptimizer, before: list[Tensor]) -> bool:
    """Whether the step left all parameters as they were, although plain gradient descent would have changed them."""
    moves = False
    rates = [
        rate
        for group, rate in zip(scheduled.optimizer.param_groups, scheduled.schedule.used(), strict=True)
        for _ in group["params"]
    ]
    for parameter, weights, rate in zip(_parameters(scheduled.optimizer), before, rates, strict=True):
        if not torch.equal(_sample(parameter), weights):
            return False
        if parameter.grad is not None and parameter.grad.layout is torch.strided:
            moved = weights - rate * _sample(parameter.grad)  # not finite if fp16 overflowed: the step was skipped
            moves |= bool(moved.isfinite().all()) and not torch.equal(moved, weights)
    return moves


def _kept(optimizer: Optimizer) -> dict[str, list[Tensor]]:
    """Samples of the tensors in each attribute that a checkpoint lacks. A state_dict() of its own is trusted.

    Single numbers are left out: many are only computed to be shown.
    """
    if type(optimizer).state_dict is not Optimizer.state_dict:
        return {}
    parameters = _parameters(optimizer)
    known: list[Any] = [parameters, [parameter.grad for parameter in parameters], dict(optimizer.state)]
    storages = {tensor.untyped_storage().data_ptr() for tensor in _dense(known)}
    found = {name: list(_dense(value)) for name, value in vars(optimizer).items() if name not in SAVED}
    return {
        name: [_sample(each) for each in values if each.untyped_storage().data_ptr() not in storages]
        for name, values in found.items()
    }


def _dense(nest: Any) -> Iterator[Tensor]:
    return (each for each in tensors(nest) if each.layout is torch.strided and each.numel() > 1)


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))
