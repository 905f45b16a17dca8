"""An exponential moving average of the weights, evaluated in their place."""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from utils.distributed.strategy import Strategy
from utils.tree import has_strides


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
        averaged = {name: each for name, each in self._current().items() if name in self.saved and has_strides(each)}
        self.averages = {name: each.detach().clone() for name, each in averaged.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Call after each optimizer step."""
        pairs = self.strategy.local(self._pairs())
        averaged = [pair for pair in pairs if pair[0].is_floating_point() or pair[0].is_complex()]
        copied = [pair for pair in pairs if not (pair[0].is_floating_point() or pair[0].is_complex())]
        if averaged:
            average_all = get_ema_multi_avg_fn(self.decay)  # type: ignore[no-untyped-call]
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

    def _current(self) -> dict[str, Tensor]:
        """The model's tensors, each once, even if modules share it."""
        return dict(itertools.chain(self.model.named_parameters(), self.model.named_buffers()))

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Each average with the model's tensor. If its shape has changed, the average becomes a copy of it."""
        pairs = []
        for name, tensor in self._current().items():
            average = self.averages.get(name)
            if average is not None and (tensor.shape, tensor.dtype) != (average.shape, average.dtype):
                average = self.averages[name] = tensor.detach().clone()
            if average is not None:
                pairs.append((average, tensor))
        return pairs

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
