"""Device, precision and processes, hidden from the training step."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from utils.device import pick_device
from utils.device_errors import device_failure
from utils.distributed import get_process_group
from utils.distributed.strategy import Strategy
from utils.errors import ConfigError
from utils.fast_step import backward_unchecked, step_unmarked, zero_grad_unmarked
from utils.freed_memory import keep_freed_memory
from utils.optimizers import step_error
from utils.schema import RuntimeConfig
from utils.tree import to_device

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
NO_AUTOCAST = nullcontext()


class Runtime:
    """Device, precision and processes of a run. Its state is the fp16 loss scale, summed over the processes."""

    def __init__(self, settings: RuntimeConfig, *, full_states: bool = True) -> None:
        """full_states: with "fsdp", whether a state has the whole model or only this process's shard."""
        keep_freed_memory()
        self.settings = settings
        self.process_group = get_process_group()
        self.process_group.connect(settings.timeout)
        self.device = self.process_group.device(pick_device(settings.device))
        if self.device.index is not None:  # the generator and the memory that torch reports are the current device's
            torch.accelerator.set_device_index(self.device.index)
        self.on_cpu = self.device.type == "cpu"
        self.sharded = settings.strategy == "fsdp"
        self.strategy = Strategy()
        if self.sharded:
            if not self.process_group.launched:
                message = (
                    '"fsdp" needs several processes, as in torchrun --nproc-per-node 2 train.py; '
                    "in a single process, runtime.strategy=ddp is equivalent"
                )
                raise ConfigError(message, ("runtime", "strategy"))
            from utils.distributed.fsdp import FSDP  # imports what a single process does not need

            self.strategy = FSDP(self.process_group, self.device, settings, whole_states=full_states)
        elif self.process_group.world_size > 1:
            from utils.distributed.parallel import DDP

            self.strategy = DDP(self.process_group, self.device, settings)
        self.resumed = False
        """Whether the optimizers have a saved state."""
        self.dtype = PRECISIONS.get(settings.precision)
        self.scaled = settings.precision == "fp16"
        # ``backward`` also multiplies by the number of processes: the product starts as 2**16 for any number of them
        scale = 2.0**16 / self.process_group.world_size
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=scale, enabled=self.scaled)

    def autocast(self) -> AbstractContextManager[Any]:
        return NO_AUTOCAST if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def to_device(self, batch: Any) -> Any:
        """Move a batch to the device: any nest of tensors, dataclasses and objects with a method ``to``."""
        return batch if self.on_cpu else to_device(batch, self.device)

    def backward(self, loss: Tensor, weight: Tensor | float = 1.0) -> None:
        """Add the gradients of weight * loss. weight: the fraction of the optimizer step that this loss makes up."""
        if self.scaled:
            loss = self.scaler.scale(loss)
        if self.process_group.launched:
            loss = self.strategy.before_backward(loss)
            weight = weight * self.process_group.world_size  # DDP and FSDP average, but this is a sum
        # passed as the loss's gradient, the weight needs no operation of its own
        if isinstance(weight, Tensor):
            backward_unchecked(loss, weight.to(loss.dtype))
        else:
            backward_unchecked(loss, None if weight == 1.0 else torch.full_like(loss, weight))

    zero_grad = staticmethod(zero_grad_unmarked)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """With fp16: divide the gradients by the loss scale."""
        if self.scaled:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, *, wait: bool = True, last: bool = True) -> bool:
        """Update the parameters. Returns False if fp16 overflowed and the step was skipped.

        wait: whether the result matters. To know it, the host waits for the device. last: of several optimizers whose
        gradients were unscaled together, after which the scale may change.
        """
        try:
            if not self.scaled:
                step_unmarked(optimizer)
                return True
            self.scaler.step(optimizer)
        except Exception as error:
            if device_failure(error) or self.process_group.peer_failure(error):
                raise
            raise step_error(optimizer, error, resumed=self.resumed) from error
        skipped = wait and any(self.scaler._found_inf_per_device(optimizer).values())
        if last:
            self.scaler.update()
        return not skipped

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self.scaler.state_dict()
        return state | {"scale": state["scale"] * self.process_group.world_size} if state else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.resumed = True
        if state and self.scaled:
            self.scaler.load_state_dict(state | {"scale": state["scale"] / self.process_group.world_size})
