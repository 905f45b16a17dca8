"""Mistakes in a user's own optimizer that only its first step shows."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from base.training.schedule import ScheduledOptimizer
from utils.optimizers import is_own, parameters_in
from utils.tree import tensors

SAMPLE = 1000
"""How many numbers of a tensor are compared: copies of whole weights may not fit into memory."""
SAVED = {"param_groups", "state", "defaults"}


class FirstStep:
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
                if not _same(values, kept.get(attribute, [])):
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


def _same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))
