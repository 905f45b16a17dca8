"""An exponential moving average of the weights, evaluated in their place."""

import functools
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from utils.distributed.strategy import Strategy
from utils.tree import has_strides

average_function: Any = functools.lru_cache(maxsize=1)(get_ema_multi_avg_fn)


class AveragedWeights:
    """An average of a model's parameters and buffers over its optimizer steps (Polyak and Juditsky, 1992).

    After each step: average = decay * average + (1 - decay) * weights. Integer and boolean buffers are copied,
    and so are buffers that the model replaces with one of another shape. Sparse and nested buffers, and those that
    the model creates later, are not averaged. With FSDP, each process averages its shards.

    decay: a trainer may change it from step to step.
    """

    def __init__(self, model: nn.Module, decay: float, strategy: Strategy) -> None:
        self.model, self.decay, self.strategy = model, decay, strategy
        self.saved = set(model.state_dict())
        """The names in the model's state."""
        tensors = itertools.chain(model.named_parameters(), model.named_buffers())  # each once, even if it is shared
        averaged = [(name, each) for name, each in tensors if name in self.saved and has_strides(each)]
        self.averages = {name: each.detach().clone() for name, each in averaged}
        self._known_modules: list[nn.Module | None] = []
        self._places: list[tuple[Mapping[str, Any], str, str]] = []
        """What ``_find`` found in these modules."""

    @torch.no_grad()
    def update(self) -> None:
        """Call after each optimizer step."""
        pairs = self.strategy.local(self._pairs())
        averaged, copied = list[tuple[Tensor, Tensor]](), list[tuple[Tensor, Tensor]]()
        for pair in pairs:
            (averaged if pair[0].is_floating_point() or pair[0].is_complex() else copied).append(pair)
        if averaged:
            average_all = average_function(self.decay)
            average_all([average for average, _ in averaged], [tensor for _, tensor in averaged], 0)  # 0: not used
        if copied:
            torch._foreach_copy_([average for average, _ in copied], [tensor for _, tensor in copied])

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
        self.strategy.reshard(self.model)
        for average, tensor in self._pairs():
            weights = tensor.clone()
            tensor.copy_(average)
            average.copy_(weights)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Each average with the model's tensor. If its shape has changed, the average becomes a copy of it."""
        modules: list[nn.Module | None] = [self.model]
        for module in modules:  # grows; named_parameters and named_buffers take many times as long
            if module is not None:
                modules += module._modules.values()
        if modules != self._known_modules:
            self._known_modules, self._places = modules, [*self._find()]
        pairs = dict[int, tuple[Tensor, Tensor]]()  # by tensor, of which each counts once
        for tensors, key, name in self._places:
            if key not in tensors or (tensor := tensors[key]) is None or id(tensor) in pairs:
                continue
            average = self.averages[name]
            if tensor.shape != average.shape or tensor.dtype != average.dtype:
                average = self.averages[name] = tensor.detach().clone()
            pairs[id(tensor)] = (average, tensor)
        return [*pairs.values()]

    def _find(self) -> Iterator[tuple[Mapping[str, Any], str, str]]:
        """Where the tensor of each average is now: the parameters or buffers of a module, its key, and its name."""
        modules = dict(self.model.named_modules(remove_duplicate=False))
        for name in self.averages:
            path, _, key = name.rpartition(".")
            module = modules.get(path)
            for tensors in (module._parameters, module._buffers) if module is not None else ():
                if key in tensors:
                    yield tensors, key, name

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, under all names in the model's state, and the model's own tensors that have none."""
        averages = {id(tensor): average for average, tensor in self._pairs()}
        every = itertools.chain(
            self.model.named_parameters(remove_duplicate=False), self.model.named_buffers(remove_duplicate=False)
        )
        state = {name: averages.get(id(tensor), tensor) for name, tensor in every if name in self.saved}
        return self.strategy.whole(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load after the model, which refuses another model's state and may have replaced its buffers."""
        for name, average in self.averages.items():
            if name in state:
                saved = self.strategy.shard_like(state[name], average)
                alike = (saved.shape, saved.dtype) == (average.shape, average.dtype)
                self.averages[name] = average.copy_(saved) if alike else saved.to(average.device, copy=True)
