"""How a model is spread over processes: torch's DistributedDataParallel, or its fully_shard (FSDP2)."""

import contextlib
import ctypes
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from utils.checkpoint.file import TensorAllocator
from utils.errors import UserError

Exchange = Callable[[bool], None]
"""Told before each backward pass whether the gradients are added up over the processes with it."""

MMAP_THRESHOLD = -3  # of glibc's malloc.h
OWN_GROUP = 1_000_000
"""Parameters from which on a module is gathered by itself, so that not all weights are in memory at once."""


class _Replicated(DistributedDataParallel):
    def forward(self, *inputs: Any, **named: Any) -> Any:
        try:
            return super().forward(*inputs, **named)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if "finished reduction" not in str(error):
                raise
            raise UserError(
                "some parameters of the model took no part in the loss of the step before, and the other processes "
                "wait for their gradients. Leave them out of the model, or set runtime.unused_parameters=true"
            ) from error


def replicate(model: nn.Module, device: torch.device, *, unused_parameters: bool) -> tuple[nn.Module, Exchange]:
    """The whole model in each process; gradients are added up while the backward pass goes on."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return model, lambda last: None
    devices = None if device.type == "cpu" else [device]
    # the buffers (running means of BatchNorm, say) follow those of the main process before each forward pass
    replicated = _Replicated(
        model, device_ids=devices, gradient_as_bucket_view=True, find_unused_parameters=unused_parameters
    )
    if not unused_parameters:
        _settle(replicated)

    def exchange(last: bool) -> None:
        replicated.require_backward_grad_sync = last  # what no_sync() does, without a scope

    return replicated, exchange


def _settle(replicated: DistributedDataParallel) -> None:
    """Lay the gradients out for the exchange as they will lie in every step.

    torch lays them out anew after the first backward pass, in the order in which they came; and of three numbers or
    more, which are added first depends on where they lie. The first step of a resumed run would be off by a rounding.
    """
    parameters = [parameter for parameter in replicated.module.parameters() if parameter.requires_grad]
    replicated.reducer.prepare_for_backward([])
    sums = [parameter.sum() for parameter in parameters]
    torch.autograd.backward(sums, [torch.zeros_like(each) for each in sums])
    for parameter in parameters:
        parameter.grad = None
    replicated.reducer._rebuild_buckets()


def shard(model: nn.Module, device: torch.device, *, whole_state: bool) -> Exchange:
    """Keep only this process's part of each parameter, in place.

    whole_state: whether the model's state_dict stays that of the whole. Either kind can be loaded.
    """
    if device.type == "cpu":
        _give_memory_back()
    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(tensor.detach(), src=0)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in _groups(model):
        fully_shard(module, mesh=mesh)
    assert isinstance(model, FSDPModule)
    model.register_forward_pre_hook(_same_buffers)
    if whole_state:
        model.register_state_dict_post_hook(_give_whole)  # type: ignore[no-untyped-call]
    model.register_load_state_dict_pre_hook(_take_part)  # type: ignore[no-untyped-call]
    return model.set_requires_gradient_sync


def _give_memory_back() -> None:
    """Let what was gathered and freed go back to the system at once.

    glibc learns to keep pieces as large as the largest that was freed: with it a process needed more than with DDP.
    """
    with contextlib.suppress(AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 1 << 20)


def portable_state(optimizer: torch.optim.Optimizer, *, whole: bool) -> None:
    """Let an optimizer over sharded parameters load the state of the whole model; and give it, if ``whole``."""

    def take_part(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if len(state["state"]) > len(parameters):
            return state  # torch says what is wrong with it
        parts = {
            index: {name: _like(value, parameters[index]) for name, value in values.items()}
            for index, values in state["state"].items()
        }
        kernels = [
            {key: group[key] for key in ("fused", "foreach") if key in group} for group in optimizer.param_groups
        ]
        groups = [saved | own for saved, own in zip(state["param_groups"], kernels, strict=True)]
        return {"state": parts, "param_groups": groups}

    if whole:
        optimizer.register_state_dict_post_hook(lambda _, state: _whole(state))
    optimizer.register_load_state_dict_pre_hook(take_part)


def placed(model: nn.Module, optimizer: torch.optim.Optimizer) -> TensorAllocator:
    """Room for a state that is read: of what belongs to a sharded parameter, this process's part."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def place(keys: tuple[Any, ...], shape: Tensor) -> Tensor:
        like = None
        if keys[0] == "model":
            like = weights.get(keys[1])
        elif keys[:2] == ("optimizer", "state") and keys[2] in range(len(parameters)):
            like = parameters[keys[2]]
        if isinstance(like, DTensor) and like.shape == shape.shape:
            return torch.empty_like(like, dtype=shape.dtype, requires_grad=False)
        return torch.empty_like(shape, device="cpu")

    return place


def _groups(model: nn.Module) -> list[nn.Module]:
    """The modules that are gathered by themselves, inner ones first, the model last."""
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> int:
        """Parameters that are gathered with the module around this one."""
        left = sum(p.numel() for p in module.parameters(recurse=False)) + sum(map(visit, module.children()))
        if left < OWN_GROUP or module is model or type(module).forward is nn.Module.forward:
            return left
        found.append(module)
        return 0

    visit(model)
    return [*found, model]


def _same_buffers(model: nn.Module, _: Any) -> None:
    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)


def _give_whole(model: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in state:
        state[name] = _whole(state[name])


def _take_part(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name in state:
        if name in own:
            state[name] = _like(state[name], own[name])


def _whole(state: Any) -> Any:
    """Sharded tensors put together on the CPU. Only the main process keeps them; the others give empty ones."""
    if isinstance(state, DTensor):
        with torch.no_grad():
            full = state.full_tensor()
        return full.cpu() if dist.get_rank() == 0 else full.new_empty(0, device="cpu")
    if isinstance(state, dict):
        return {key: _whole(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(map(_whole, state))
    return state


def _like(value: Any, sharded: Any) -> Any:
    """A whole tensor as this process's part of it, if it belongs to a sharded parameter of this shape."""
    if not isinstance(sharded, DTensor) or not isinstance(value, Tensor) or isinstance(value, DTensor):
        return value
    if value.shape != sharded.shape:
        return value
    moved = value.to(sharded.device)
    # each process has read all of it: nothing is sent
    return distribute_tensor(moved, sharded.device_mesh, sharded.placements, src_data_rank=None)
