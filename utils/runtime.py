"""The machine: device, arithmetic, compilation. The training step asks it and never looks at what it runs on."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from utils.checkpoint.file import TensorAllocator
from utils.distributed import get_process_group
from utils.errors import ConfigError
from utils.optimizers import drop_gradients, fitting, take_step
from utils.schema import RuntimeConfig

T = TypeVar("T")
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
NOTHING = nullcontext()
# optimizers with one fused kernel for all weights, and where; the results differ by rounding alone
FUSED = {"SGD", "Adam", "AdamW"}
FUSED_DEVICES = {"cpu", "cuda", "mps", "xpu"}


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


class Runtime:
    """Runs the arithmetic of a step on one device. Its state is the scale of the loss in fp16, of all processes."""

    def __init__(self, settings: RuntimeConfig, *, whole_states: bool = True) -> None:
        """whole_states: with "fsdp", whether a state is that of the whole model, or this process's part of it."""
        self.settings, self.whole_states = settings, whole_states
        self.processes = get_process_group()
        self.processes.connect(settings.timeout)
        self.device = self.processes.device(pick_device(settings.device))
        self._on_cpu = self.device.type == "cpu"
        self.sharded = settings.strategy == "fsdp"
        if self.sharded and not self.processes.launched:
            raise ConfigError(
                'runtime.strategy: "fsdp" needs several processes, as in torchrun --nproc-per-node 2 train.py; '
                "in a single one, runtime.strategy=ddp gives the same"
            )
        self._exchange: Callable[[bool], None] | None = None
        self._exchanges: bool | None = None  # what it was told last
        self._weight: tuple[float, Tensor] = (1.0, torch.ones(()))  # of the last backward pass
        self.dtype = PRECISIONS.get(settings.precision)
        self.scaled = settings.precision == "fp16"
        # ``backward`` multiplies by the number of processes too, and what overflows in one must overflow in several
        scale = 2.0**16 / self.processes.world_size
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=scale, enabled=self.scaled)
        self.gradient_norm: Tensor | None = None  # of the last step, before clipping; None where nothing is clipped

    def prepare(self, model: nn.Module) -> None:
        """Move a model to the device, in the memory format and the compiled form that it runs in."""
        model.to(self.device)
        if self.sharded:
            from utils.distributed.parallel import shard

            self._exchange = shard(model, self.device, whole_state=self.whole_states)
        elif any(parameter.dim() == 4 for parameter in model.parameters()):
            model.to(memory_format=torch.channels_last)  # convolutions are faster in it
        if self.settings.compile:
            model.compile()  # in place: the names in checkpoints stay as they are

    def wrap_ddp(self, model: nn.Module) -> nn.Module:
        """The model as the training calls it: with several processes, so that their gradients are added up."""
        if self.processes.world_size == 1 or self.sharded:
            return model
        from utils.distributed.parallel import replicate

        unused = self.settings.unused_parameters
        replicated, self._exchange = replicate(model, self.device, unused_parameters=unused)
        return replicated

    def supports_fused(self, optimizer: str) -> bool | None:
        """Whether an optimizer of this name has a fused kernel here; None if it never has one."""
        if optimizer not in FUSED:
            return None
        return self.device.type in FUSED_DEVICES and not (self.sharded and optimizer == "SGD")

    def prepare_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the state of an optimizer fit any machine and be that of the whole model, however it is spread."""
        if self.sharded:
            from utils.distributed.parallel import portable_state

            portable_state(optimizer, whole=self.whole_states)
        else:
            optimizer.register_load_state_dict_pre_hook(fitting)

    def place(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> TensorAllocator | None:
        """Where to read the state of a model and its optimizer to; None: whole tensors on the CPU."""
        if not self.sharded:
            return None
        from utils.distributed.parallel import placed

        return placed(model, optimizer)

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

    def exchanging(self, batches: Sequence[T]) -> Iterable[T]:
        """These batches of an optimizer step. With the last one the processes add up their gradients."""
        if self._exchange is None or (len(batches) == 1 and self._exchanges):
            return batches
        return self._exchange_with_last(batches, self._exchange)

    def _exchange_with_last(self, batches: Sequence[T], exchange: Callable[[bool], None]) -> Iterator[T]:
        for number, batch in enumerate(batches, start=1):
            last = number == len(batches)
            if last != self._exchanges:
                exchange(last)
                self._exchanges = last
            yield batch

    def backward(self, loss: Tensor, weight: float = 1.0) -> None:
        """Add the gradient of weight * loss. weight: this batch's share of its optimizer step."""
        weight *= self.processes.world_size  # torch gives the mean of the processes' gradients, and this is a sum
        if self.scaled:
            loss = self.scaler.scale(loss)
        # as the incoming gradient, the weight costs no operation of its own
        loss.backward(None if weight == 1.0 else self._gradient(loss, weight))  # type: ignore[no-untyped-call]

    def _gradient(self, loss: Tensor, weight: float) -> Tensor:
        """The weight as a tensor like the loss. It is mostly that of the step before."""
        before, tensor = self._weight
        if before != weight or tensor.dtype != loss.dtype or tensor.device != loss.device:
            tensor = loss.new_tensor(weight)
            self._weight = weight, tensor
        return tensor

    def optimizer_step(
        self, optimizer: torch.optim.Optimizer, evaluate: Callable[[], Tensor], *, clip_grad_norm: float | None
    ) -> bool:
        """One optimizer step on the gradients that ``evaluate`` leaves. False if fp16 overflowed and it was skipped."""
        if isinstance(optimizer, torch.optim.LBFGS):  # evaluates several times a step, and looks at the loss
            optimizer.step(lambda: self._total(self._gradients(optimizer, evaluate, clip_grad_norm)))  # type: ignore[no-untyped-call]
            return True
        self._gradients(optimizer, evaluate, clip_grad_norm)
        if not self.scaled:
            take_step(optimizer)
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
            self.gradient_norm = nn.utils.clip_grad_norm_(parameters, clip_grad_norm)
        return loss

    def _total(self, loss: Tensor) -> Tensor:
        return (
            loss if self.processes.world_size == 1 else loss.new_tensor(self.processes.all_reduce_sum([loss.item()])[0])
        )

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self.scaler.state_dict()
        return state | {"scale": state["scale"] * self.processes.world_size} if state else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state and self.scaled:
            self.scaler.load_state_dict(state | {"scale": state["scale"] / self.processes.world_size})
