"""Device, precision, compilation and processes, hidden from the training step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from utils.checkpoint.file import TensorAllocator
from utils.distributed import get_process_group
from utils.errors import ConfigError
from utils.freed_memory import keep_freed_memory
from utils.optimizers import UnmarkedStep, forgets, inner_optimizers, load_exactly, needs_closure
from utils.schema import RuntimeConfig
from utils.tree import to_device

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
NO_AUTOCAST = nullcontext()
# optimizers with a fused kernel for all weights, and the devices that have it; results differ only by rounding
FUSED = {"SGD", "Adam", "AdamW"}
FUSED_DEVICES = {"cpu", "cuda", "mps", "xpu"}


def pick_device(name: str) -> torch.device:
    """The device with a name; "auto" picks an accelerator if available. Raises ConfigError if it does not exist."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind == "cpu" and not index:
        return torch.device("cpu")
    if accelerator is None or accelerator.type != kind:
        there = f'"cpu" or "{accelerator.type}"' if accelerator else '"cpu"'
        raise ConfigError(f'runtime.device: "{name}" is not available on this machine; use {there}')
    if index and int(index) >= torch.accelerator.device_count():
        raise ConfigError(
            f'runtime.device: "{name}" is out of range; this machine has {torch.accelerator.device_count()}'
        )
    return torch.device(name)


def _with_forward(model: nn.Module) -> Iterator[nn.Module]:
    """The model, or if it only holds parts, as a GAN's two nets: those, whose forward the trainer calls."""
    if type(model).forward is not nn.Module.forward:
        yield model
        return
    for part in model.children():
        yield from _with_forward(part)


class Runtime:
    """Device, precision and processes of a run. Its state is the fp16 loss scale, summed over the processes."""

    def __init__(self, settings: RuntimeConfig, *, whole_states: bool = True) -> None:
        """whole_states: with "fsdp", whether a state has the whole model or only this process's shard."""
        keep_freed_memory()
        self.settings = settings
        self.whole_states = whole_states
        self.process_group = get_process_group()
        self.process_group.connect(settings.timeout)
        self.device = self.process_group.device(pick_device(settings.device))
        self.on_cpu = self.device.type == "cpu"
        self.sharded = settings.strategy == "fsdp"
        if self.sharded and not self.process_group.launched:
            raise ConfigError(
                'runtime.strategy: "fsdp" needs several processes, as in torchrun --nproc-per-node 2 train.py; '
                "in a single process, runtime.strategy=ddp is equivalent"
            )
        self._set_gradient_sync: Callable[[bool], None] | None = None
        self._gradient_sync: bool | None = None  # the last value that was set
        self._last_weight: tuple[float, Tensor] = (1.0, torch.ones(()))
        self.dtype = PRECISIONS.get(settings.precision)
        self.scaled = settings.precision == "fp16"
        # ``backward`` also multiplies by the number of processes, so an overflow in one must be an overflow in several
        scale = 2.0**16 / self.process_group.world_size
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=scale, enabled=self.scaled)

    # ------------------------------------------------------------------ before the first step

    def prepare(self, model: nn.Module) -> None:
        """Move a model to the device, set its memory format and compile it."""
        model.to(self.device)
        if self.sharded:
            from utils.distributed.parallel import shard

            self._set_gradient_sync = shard(model, self.device, whole_state=self.whole_states)
        elif any(parameter.dim() == 4 for parameter in model.parameters()):
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.dim() == 4:  # not those of 5 dimensions, as model.to(memory_format=...) would
                    tensor.data = tensor.data.to(memory_format=torch.channels_last)  # faster convolutions
        if mode := self.settings.compile:
            for part in _with_forward(model):
                part.compile(mode=mode if isinstance(mode, str) else None)  # in place: keeps the names in checkpoints

    def wrap_ddp(self, model: nn.Module) -> nn.Module:
        """The model as called in training: with several processes, wrapped to average gradients."""
        if self.process_group.world_size == 1 or self.sharded:
            return model
        from utils.distributed.parallel import replicate

        unused = self.settings.unused_parameters
        replicated, self._set_gradient_sync = replicate(model, self.device, unused_parameters=unused)
        return replicated

    def supports_fused(self, optimizer: str) -> bool | None:
        """Whether the named optimizer has a fused kernel on this device; None if it never has one."""
        if optimizer not in FUSED:
            return None
        return self.device.type in FUSED_DEVICES and not (self.sharded and optimizer == "SGD")

    def prepare_optimizer(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Make the optimizer's state independent of the device and of the number of processes.

        Raises ConfigError if a checkpoint would lack a part of it.
        """
        kind = type(optimizer).__name__
        for name, inner in inner_optimizers(optimizer).items():
            if forgets(optimizer, inner):
                raise ConfigError(
                    f"{kind}.{name} is itself an optimizer, {type(inner).__name__}, whose state a checkpoint would "
                    f"lack: give {kind} a state_dict() that contains {name}.state_dict(), and a load_state_dict() "
                    "that loads it"
                )
        if needs_closure(optimizer):
            if self.scaled:
                raise ConfigError(
                    f"{kind} evaluates the loss several times per step, which fp16 loss scaling "
                    "does not allow; set runtime.precision to bf16 or fp32"
                )
            # LBFGS flattens gradients by view(-1), which channels_last does not allow
            model.to(memory_format=torch.contiguous_format)
        for each in (optimizer, *inner_optimizers(optimizer).values()):
            if self.sharded:
                from utils.distributed.parallel import portable_state

                portable_state(each, whole=self.whole_states)
            else:
                load_exactly(each)

    def allocator(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> TensorAllocator | None:
        """Allocates tensors for loading the state of a model and its optimizer; None: whole tensors on the CPU."""
        if not self.sharded:
            return None
        from utils.distributed.parallel import placed

        return placed(model, optimizer)

    # ------------------------------------------------------------------ in a step

    def autocast(self) -> AbstractContextManager[Any]:
        return NO_AUTOCAST if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def to_device(self, batch: Any) -> Any:
        """Move a batch to the device: any nest of tensors, dataclasses and objects with a method ``to``."""
        return batch if self.on_cpu else to_device(batch, self.device)

    def sync_gradients(self, sync: bool) -> None:
        """Set whether the processes reduce gradients in the next backward pass."""
        if self._set_gradient_sync is not None and sync != self._gradient_sync:
            self._set_gradient_sync(sync)
            self._gradient_sync = sync

    def backward(self, loss: Tensor, weight: Tensor | float = 1.0) -> None:
        """Add the gradients of weight * loss. weight: the fraction of the optimizer step that this loss makes up."""
        weight = weight * self.process_group.world_size  # DDP and FSDP average, but this is a sum
        if self.scaled:
            loss = self.scaler.scale(loss)
        # passed as the loss's gradient, the weight needs no operation of its own
        gradient = weight.to(loss.dtype) if isinstance(weight, Tensor) else self._as_gradient(loss, weight)
        loss.backward(gradient)  # type: ignore[no-untyped-call]

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """With several processes: average the gradients that neither DDP nor FSDP reduces."""
        if parameters and self.process_group.world_size > 1:
            from utils.distributed.parallel import average_gradients

            average_gradients(parameters)

    def broadcast_buffers(self, model: nn.Module) -> None:
        """With several processes: copy the main process's buffers to all, as DDP does before a forward pass."""
        if self.process_group.world_size > 1:
            from utils.distributed.parallel import broadcast_buffers

            broadcast_buffers(model)

    def zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        UnmarkedStep.zero_grad(optimizer)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """With fp16: divide the gradients by the loss scale."""
        if self.scaled:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, *, wait: bool = True) -> bool:
        """Update the parameters. Returns False if fp16 overflowed and the step was skipped.

        wait: whether the result matters. To know it, the host waits for the device.
        """
        if not self.scaled:
            UnmarkedStep.step(optimizer)
            return True
        scale = self.scaler.get_scale() if wait else 0.0
        self.scaler.step(optimizer)
        self.scaler.update()
        return not wait or self.scaler.get_scale() >= scale

    def sum_over_processes(self, loss: Tensor) -> Tensor:
        """The sum of a loss of shape () over the processes."""
        if self.process_group.world_size == 1:
            return loss
        return loss.new_tensor(self.process_group.all_reduce_sum([loss.item()])[0])

    def _as_gradient(self, loss: Tensor, weight: float) -> Tensor | None:
        """The weight as a tensor like the loss; None for 1. Cached, since it rarely changes between steps."""
        if weight == 1.0:
            return None
        last, tensor = self._last_weight
        if last != weight or tensor.dtype != loss.dtype or tensor.device != loss.device:
            tensor = loss.new_tensor(weight)
            self._last_weight = weight, tensor
        return tensor

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self.scaler.state_dict()
        return state | {"scale": state["scale"] * self.process_group.world_size} if state else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state and self.scaled:
            self.scaler.load_state_dict(state | {"scale": state["scale"] / self.process_group.world_size})
