"""Prepares a model and its optimizers for the device, the precision and the processes, before the first step."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from utils.checkpoint.file import TensorAllocator
from utils.device_errors import device_failure
from utils.errors import ConfigError, UserError
from utils.optimizers import forgets, inner_optimizers, load_exactly, needs_closure
from utils.runtime import Runtime
from utils.tree import is_dense

# optimizers with a fused kernel for all weights, and the devices that have it; results differ only by rounding
FUSED = {"SGD", "Adam", "AdamW"}
FUSED_DEVICES = {"cpu", "cuda", "mps", "xpu"}


def prepare_model(runtime: Runtime, model: nn.Module) -> None:
    """Move a model to the device, set its memory format and compile it."""
    model.to(runtime.device)
    if runtime.sharded:
        from utils.distributed.parallel import shard

        unused, whole = runtime.settings.unused_parameters, runtime.full_states
        with _refusing(runtime, model):
            runtime.set_gradient_sync, runtime.prepare_loss = shard(
                model, runtime.device, unused_parameters=unused, whole_state=whole
            )
    elif any(parameter.dim() == 4 for parameter in model.parameters()):
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dim() == 4:  # not those of 5 dimensions, as model.to(memory_format=...) would
                tensor.data = tensor.data.to(memory_format=torch.channels_last)  # faster convolutions
    if mode := runtime.settings.compile:
        for part in _with_forward(model):
            part.compile(mode=mode if isinstance(mode, str) else None)  # in place: keeps the names in checkpoints


def _with_forward(model: nn.Module) -> Iterator[nn.Module]:
    """The model, or if it only holds parts, as a GAN's two nets: those, whose forward the trainer calls."""
    if type(model).forward is not nn.Module.forward:
        yield model
        return
    for part in model.children():
        yield from _with_forward(part)


def prepare_ddp(runtime: Runtime, model: nn.Module, *, several_optimizers: bool = False) -> None:
    """With several processes and DDP: let backward passes sum the gradients of the parameters that now require one.

    several_optimizers: they average the gradients themselves, as each steps.
    """
    if runtime.process_group.world_size == 1 or runtime.sharded:
        return
    from utils.distributed.parallel import GradientReducer, refuse_sparse

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if runtime.reducer is not None and [*map(id, trained)] == [*map(id, runtime.reducer.parameters)]:
        return
    refuse_sparse(model)
    runtime.reducer = None
    if trained and not several_optimizers:
        unused = runtime.settings.unused_parameters
        with _refusing(runtime, model):
            runtime.reducer = GradientReducer(model, runtime.device, unused_parameters=unused)


def reshard(runtime: Runtime, model: Any) -> None:
    """With FSDP: let the model's parameters be its shards again.

    After a forward pass without a backward pass they are the gathered weights, and what is done to them would be lost:
    a change of their values, or ``requires_grad_``.
    """
    if runtime.sharded:
        model.reshard()


@contextmanager
def sharded_between_calls(runtime: Runtime, model: Any) -> Iterator[None]:
    """Inside the block, with FSDP: the model's parameters are its shards, except during a call."""
    reshard(runtime, model)
    if runtime.sharded:
        model.set_reshard_after_forward(True, recurse=False)
    try:
        yield
    finally:
        if runtime.sharded:
            model.set_reshard_after_forward(False, recurse=False)


@contextmanager
def _refusing(runtime: Runtime, model: nn.Module) -> Iterator[None]:
    """Inside the block, raise as UserError why torch refuses a model, as FSDP one with a parameter of shape ()."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if device_failure(error) or runtime.process_group.peer_failure(error):
            raise
        ways = "change the model, set runtime.strategy=ddp" if runtime.sharded else "change the model"
        raise UserError(
            f'runtime.strategy "{runtime.settings.strategy}" cannot train {type(model).__name__}: {error}\n'
            f"Either {ways}, or train in a single process."
        ) from error


def supports_fused(
    runtime: Runtime, model: nn.Module, optimizer: str, args: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]
) -> bool | None:
    """Whether the named optimizer has a fused kernel for these arguments and groups; None if it never has one."""
    if optimizer not in FUSED:
        return None
    if runtime.device.type not in FUSED_DEVICES or (runtime.sharded and optimizer == "SGD"):
        return False
    if any("dampening" in given for given in (args, *groups)):
        return False  # see start_state
    if any(getattr(module, "sparse", False) for module in model.modules()):
        return False  # sparse gradients, as of Embedding
    parameters = [parameter for group in groups for parameter in group["params"]]
    if not runtime.sharded and not all(map(is_dense, parameters)):
        return False  # part of a larger tensor: the kernels would read what lies between its values
    return all(parameter.is_floating_point() for parameter in parameters)  # not complex


def prepare_optimizer(runtime: Runtime, model: nn.Module, optimizer: Optimizer) -> None:
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
        if runtime.scaled:
            raise ConfigError(
                f"{kind} evaluates the loss several times per step, which fp16 loss scaling "
                "does not allow; set runtime.precision to bf16 or fp32"
            )
        # LBFGS flattens gradients by view(-1), which channels_last does not allow
        model.to(memory_format=torch.contiguous_format)
    for each in (optimizer, *inner_optimizers(optimizer).values()):
        if runtime.sharded:
            from utils.distributed.parallel import portable_state

            portable_state(each, whole=runtime.full_states)
        else:
            load_exactly(each)


def whole_tensors(runtime: Runtime, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With FSDP: a state with whole tensors instead of shards, for a checkpoint that the main process writes.

    All processes must call it.
    """
    if not (runtime.sharded and runtime.full_states):
        return state
    from utils.distributed.parallel import gather

    return {name: gather(tensor) for name, tensor in state.items()}


def shard_like(runtime: Runtime, saved: Any, own: Any) -> Any:
    """With FSDP: this process's shard of a saved tensor, if ``own`` is one."""
    if not runtime.sharded:
        return saved
    from utils.distributed.parallel import shard_like

    return shard_like(saved, own)


def allocator(runtime: Runtime, model: nn.Module, optimizer: Optimizer) -> TensorAllocator | None:
    """Allocates tensors for loading the state of a model and its optimizer; None: whole tensors on the CPU."""
    if not runtime.sharded:
        return None
    from utils.distributed.parallel import shard_allocator

    return shard_allocator(model, optimizer)
