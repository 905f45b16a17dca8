"""Prepares a model and its optimizers for the device, the precision and the processes, before the first step."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from utils.errors import ConfigError
from utils.optimizers import forgets, inner_optimizers, needs_closure
from utils.runtime import Runtime
from utils.tree import is_dense

# optimizers with a fused kernel for all weights, and the devices that have it; results differ only by rounding
FUSED = {"SGD", "Adam", "AdamW"}
FUSED_DEVICES = {"cpu", "cuda", "mps", "xpu"}


def prepare_model(runtime: Runtime, model: nn.Module) -> None:
    """Move a model to the device, set its memory format and compile it."""
    model.to(runtime.device)
    runtime.strategy.prepare_model(model)
    if not runtime.sharded and any(parameter.dim() == 4 for parameter in model.parameters()):
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
        runtime.strategy.prepare_optimizer(each)
