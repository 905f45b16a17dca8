"""An exponential moving average of the weights, evaluated in their place."""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from utils.tree import has_strides


class AveragedWeights:
    """An average of a model's parameters and buffers over its optimizer steps (Polyak and Juditsky, 1992).

    After each step: average = decay * average + (1 - decay) * weights. Integer and boolean buffers are copied, as are
    buffers that the model has replaced by others of another shape or dtype. Sparse and nested ones stay the model's.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self._average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        # of all tensors, of those in the model's state, and of those among them that are averaged
        self._names, self._saved, self._averaged = list[str](), set[str](), set[str]()
        self.restart()

    def restart(self) -> None:
        """Start over from the current weights."""
        self.averages = {name: tensor.detach().clone() for name, tensor in self._current().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Call after each optimizer step."""
        averages, weights = list[Tensor](), list[Tensor]()
        copies, integers = list[Tensor](), list[Tensor]()
        current = self._current()
        for name in self.averages.keys() - current.keys():  # a buffer that is None now
            del self.averages[name]
        for name, tensor in current.items():
            if not self._has(name, tensor):
                self.averages[name] = tensor.detach().clone()
            elif tensor.is_floating_point() or tensor.is_complex():
                averages.append(self.averages[name])
                weights.append(tensor)
            else:
                copies.append(self.averages[name])
                integers.append(tensor)
        self._average(averages, weights, 0)  # it ignores the number of updates
        if copies:
            torch._foreach_copy_(copies, integers)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside the block, exchange the averages and the model's weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, tensor in self._current().items():
            if self._has(name, tensor):
                weights = tensor.clone()
                tensor.copy_(self.averages[name])
                self.averages[name].copy_(weights)

    def _has(self, name: str, tensor: Tensor) -> bool:
        """Whether there is an average of a tensor, which the model may have replaced since the last step."""
        average = self.averages.get(name)
        return average is not None and (average.shape, average.dtype) == (tensor.shape, tensor.dtype)

    def _current(self) -> dict[str, Tensor]:
        """The tensors to average: each tensor of the model's state once, even if modules share it."""
        tensors = dict(itertools.chain(self.model.named_parameters(), self.model.named_buffers()))
        if (names := [*tensors]) != self._names:  # not in each step: the state takes longer to get than all else here
            self._names, self._saved = names, {*self.model.state_dict()}
            self._averaged = {name for name, tensor in tensors.items() if name in self._saved and has_strides(tensor)}
        return {name: tensor for name, tensor in tensors.items() if name in self._averaged}

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, under all names in the model's state."""
        names = {id(tensor): name for name, tensor in self._current().items()}
        every = (
            *self.model.named_parameters(remove_duplicate=False),
            *self.model.named_buffers(remove_duplicate=False),
        )
        saved = ((name, tensor) for name, tensor in every if name in self._saved)
        # a sparse buffer has no average, nor has one that an evaluation has just created
        return {name: self.averages.get(names.get(id(tensor), ""), tensor) for name, tensor in saved}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load after the model, which may have replaced its buffers. Raises ValueError if it is from another model."""
        parameters = dict(self.model.named_parameters())
        for name, tensor in parameters.items():
            if name not in state or state[name].shape != tensor.shape:
                raise ValueError(f"no average of {name} with shape {tuple(tensor.shape)}")
        self.restart()
        for name, average in self.averages.items():
            if name in state and (state[name].shape, state[name].dtype) == (average.shape, average.dtype):
                average.copy_(state[name])
            elif name in state:  # a buffer that has been replaced since
                self.averages[name] = state[name].to(average.device, copy=True)
