"""The machine: device, arithmetic, compilation. The training step asks it and never looks at what it runs on."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import ConfigError
from utils.schema import RuntimeConfig

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
NOTHING = nullcontext()


def pick_device(name: str) -> torch.device:
    """The device of a name; "auto" takes an accelerator if there is one. Raises ConfigError if it is not there."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind == "cpu" and not index:
        return torch.device("cpu")
    if accelerator is None or accelerator.type != kind:
        there = f'"cpu" and "{accelerator.type}"' if accelerator else '"cpu"'
        raise ConfigError(f'runtime.device: there is no device "{name}" on this machine; there is {there}')
    if index and int(index) >= torch.accelerator.device_count():
        raise ConfigError(f'runtime.device: "{name}" is out of range; there are {torch.accelerator.device_count()}')
    return torch.device(name)


def drop_gradients(optimizer: torch.optim.Optimizer) -> None:
    """What ``optimizer.zero_grad()`` does, which spends 12 us on a mark for the profiler."""
    if type(optimizer).zero_grad is not torch.optim.Optimizer.zero_grad:  # one that does more
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


class Runtime:
    """Runs the arithmetic of a step on one device. Its state is the scale of the loss in fp16."""

    def __init__(self, settings: RuntimeConfig) -> None:
        self.settings = settings
        self.device = pick_device(settings.device)
        self._on_cpu = self.device.type == "cpu"
        self.dtype = PRECISIONS.get(settings.precision)
        self.scaled = settings.precision == "fp16"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.scaled)

    def prepare(self, model: nn.Module) -> None:
        """Move a model to the device, in the memory format and the compiled form that it runs in."""
        model.to(self.device)
        if any(parameter.dim() == 4 for parameter in model.parameters()):
            model.to(memory_format=torch.channels_last)  # convolutions are faster in it
        if self.settings.compile:
            model.compile()  # in place: the names in checkpoints stay as they are

    def autocast(self) -> AbstractContextManager[Any]:
        return NOTHING if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def to_device(self, batch: Any) -> Any:
        """A batch (a tensor, or any nest of lists, tuples and dicts of them) on the device."""
        if self._on_cpu:
            return batch  # where it was loaded
        if isinstance(batch, Tensor):
            return batch if batch.device == self.device else batch.to(self.device, non_blocking=True)
        if isinstance(batch, dict):
            return {key: self.to_device(item) for key, item in batch.items()}
        if isinstance(batch, (list, tuple)):
            return type(batch)(map(self.to_device, batch))
        return batch

    def backward(self, loss: Tensor, weight: float = 1.0) -> None:
        """Add the gradient of weight * loss. weight: this batch's share of its optimizer step."""
        if self.scaled:
            loss = self.scaler.scale(loss)
        # as the incoming gradient, the weight costs no operation of its own
        loss.backward(None if weight == 1.0 else loss.new_tensor(weight))  # type: ignore[no-untyped-call]

    def optimizer_step(
        self, optimizer: torch.optim.Optimizer, evaluate: Callable[[], Tensor], *, clip_grad_norm: float | None
    ) -> bool:
        """One optimizer step on the gradients that ``evaluate`` leaves. False if fp16 overflowed and it was skipped."""
        if isinstance(optimizer, torch.optim.LBFGS):  # evaluates several times a step
            closure = functools.partial(self._gradients, optimizer, evaluate, clip_grad_norm)
            optimizer.step(closure)  # type: ignore[no-untyped-call]
            return True
        self._gradients(optimizer, evaluate, clip_grad_norm)
        if not self.scaled:
            optimizer.step()
            return True
        scale = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= scale

    def _gradients(
        self, optimizer: torch.optim.Optimizer, evaluate: Callable[[], Tensor], clip_grad_norm: float | None
    ) -> Tensor:
        """The gradients of one evaluation, clipped; and its loss."""
        drop_gradients(optimizer)
        loss = evaluate()
        if self.scaled:
            self.scaler.unscale_(optimizer)
        if clip_grad_norm is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, clip_grad_norm)
        return loss

    def state_dict(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state and self.scaled:
            self.scaler.load_state_dict(state)
