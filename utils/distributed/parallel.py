"""How a model is spread over processes: torch's DistributedDataParallel or fully_shard (FSDP2)."""

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from utils.checkpoint.file import TensorAllocator
from utils.checkpoint.weights_file import AVERAGED
from utils.errors import UserError
from utils.optimizers import load_exactly, parameters_in
from utils.text import listed
from utils.tree import Keys, has_strides, map_tensors

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
UNIT_PARAMETERS = 1_000_000
"""Number of parameters above which a module is gathered separately, so that not all weights are in memory at once."""


# ------------------------------------------------------------------ DDP


class GradientReducer:
    """Sums a model's gradients over the processes during a backward pass, by torch's DistributedDataParallel.

    DDP prepares its reducer in its own forward pass. Here ``prepare`` does, before the backward pass, so that a trainer
    calls the model itself, in any way. A backward pass that is not prepared only adds to this process's gradients.
    """

    def __init__(self, model: nn.Module, device: torch.device, *, unused_parameters: bool) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        devices = None if device.type == "cpu" else [device]
        self.ddp = DistributedDataParallel(
            model, device_ids=devices, gradient_as_bucket_view=True, find_unused_parameters=unused_parameters
        )
        # as in DDP's forward pass: a compiled model is split where buckets end, so that each can be sent early
        DistributedDataParallel._active_ddp_module = self.ddp
        self.unused_parameters = unused_parameters
        if not unused_parameters:
            self._rebuild_gradient_buckets()

    def prepare(self, loss: Tensor) -> None:
        """Let the next backward pass, for this loss, sum the gradients."""
        self.ddp.reducer.prepare_for_backward([loss] if self.unused_parameters else [])

    def check_reduced(self) -> None:
        """Raise UserError if a backward pass left out parameters, for whose gradients the other processes wait.

        Also if others have been thawed, whose gradients would come from this process alone.
        """
        if any(parameter.requires_grad for parameter in self.frozen):
            raise UserError(
                "with several processes, parameters can only be thawed between epochs, by trainer.freeze or begin_epoch"
            )
        try:
            self.ddp.reducer._rebuild_buckets()  # they are never rebuilt again, but checked
        except RuntimeError as error:
            if "finished reduction" not in str(error):
                raise
            waited_for = set(self.parameters)
            named = self.ddp.module.named_parameters()
            unused = [name for name, each in named if each in waited_for and each.grad is None]
            raise UserError(
                f"the loss of a batch does not depend on {listed(unused) or 'some parameters'}, and other processes "
                "wait for the gradients. Remove what is unused from the model, or set runtime.unused_parameters=true"
            ) from error

    def _rebuild_gradient_buckets(self) -> None:
        """Arrange the gradients in DDP's buckets in the order of all later steps.

        DDP rebuilds its buckets after the first backward pass, in the order in which gradients became ready; and the
        order of summation over three or more processes depends on the position in a bucket. Without this, the first
        step of a resumed run would differ by rounding. torch has no public API for it.
        """
        self.ddp.reducer.prepare_for_backward([])
        sums = [parameter.sum() for parameter in self.parameters]
        torch.autograd.backward(sums, [torch.zeros_like(each) for each in sums])
        for parameter in self.parameters:
            parameter.grad = None
        self.ddp.reducer._rebuild_buckets()


def refuse_sparse(model: nn.Module) -> None:
    """Raise UserError for sparse gradients, and for buffers without strides, which processes cannot sum or send."""
    layers = ((name, module) for name, module in model.named_modules() if isinstance(module, EMBEDDINGS))
    found = [name for name, module in layers if module.sparse and module.weight.requires_grad]
    found += [name for name, buffer in model.named_buffers() if not has_strides(buffer)]
    if found:
        raise UserError(
            f"several processes cannot sum sparse gradients or send sparse or nested buffers: {listed(found)}; leave "
            "out sparse=True, or train in one process"
        )


# ------------------------------------------------------------------ FSDP2


def shard(
    model: nn.Module, device: torch.device, *, unused_parameters: bool, whole_state: bool
) -> tuple[Callable[[bool], None], Callable[[Tensor], Tensor]]:
    """Keep only this process's shard of each parameter, in place.

    Returns what sets whether gradients are summed, and what a loss passes through before its backward pass.

    whole_state: whether the model's state_dict contains whole tensors. Both kinds can be loaded.
    """
    refuse_sparse(model)
    named = model.named_parameters()
    hooked = [name for name, each in named if each._backward_hooks or each._post_accumulate_grad_hooks]
    if hooked:
        raise UserError(
            f'runtime.strategy "fsdp" replaces the parameters, and would lose the hooks of {listed(hooked)}; change '
            "gradients in the trainer's compute_gradients (docs/training.md), or set runtime.strategy=ddp"
        )
    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(tensor.detach(), src=0)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in _units(model):
        own = [name for name, each in module.named_parameters() if not isinstance(each, DTensor)]
        fully_shard(module, mesh=mesh)
        assert isinstance(module, FSDPModule)
        parameters = [module.get_parameter(name) for name in own]
        # torch's name for its interface is private
        reduce_scatter: Any = _ReduceScatter(parameters, unused_parameters=unused_parameters)
        module.set_custom_reduce_scatter(reduce_scatter)
    assert isinstance(model, FSDPModule)
    with_weights = _call_with_weights(model)
    for name, _ in inspect.getmembers(type(model), inspect.isfunction):
        if not name.startswith("_") and not hasattr(nn.Module, name) and not hasattr(FSDPModule, name):
            setattr(model, name, _gathering(getattr(model, name), with_weights))
    if whole_state:
        model.register_state_dict_post_hook(_gather_state)  # type: ignore[no-untyped-call]
    model.register_load_state_dict_pre_hook(_shard_state)  # type: ignore[no-untyped-call]
    # torch notices a backward pass by what such calls return, but not in objects such as distributions
    return model.set_requires_gradient_sync, lambda loss: with_weights(lambda: loss)


def _call_with_weights(model: nn.Module) -> Callable[[Callable[[], Any]], Any]:
    """A function that makes a call with gathered weights, as ``forward`` has them; such calls may be nested.

    torch would reduce the gradients as soon as it has those of the inputs, although other calls may add to them. It
    sees no inputs here, and so reduces them at the end of the backward pass.
    """
    name, depth = "_call_with_weights", 0
    setattr(model, name, lambda call: call())
    register_fsdp_forward_method(model, name)
    gathering: Callable[[Callable[[], Any]], Any] = getattr(model, name)

    def enter(*_: Any) -> None:
        nonlocal depth
        depth += 1

    def leave(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    def with_weights(call: Callable[[], Any]) -> Any:
        if depth:  # torch would free the weights at the end of a call two levels within another, which needs them
            return call()
        enter()
        try:
            return gathering(call)
        finally:
            leave()

    model.register_forward_pre_hook(enter)
    model.register_forward_hook(leave, always_call=True)
    return with_weights


def _gathering(method: Callable[..., Any], with_weights: Callable[[Callable[[], Any]], Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def gathering(*args: Any, **kwargs: Any) -> Any:
        return with_weights(lambda: method(*args, **kwargs))

    return gathering


class _ReduceScatter:
    """Sums the gradients of a module of FSDP. torch sends those that exist, and aborts if other processes have others.

    unused_parameters: ask the others how many they send, instead of requiring that none is missing.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, unused_parameters: bool) -> None:
        self.parameters, self.unused_parameters = parameters, unused_parameters

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False) -> Any:
        world_size, sizes = group.size(), [output_tensor.numel()]
        if self.unused_parameters:
            sizes *= world_size
            dist.all_gather_object(sizes, output_tensor.numel(), group)
        else:  # each is padded, so that the processes have equal shards
            shapes = [each.shape for each in self.parameters if each.requires_grad]
            sizes.append(sum(-(-shape[0] // world_size) * shape[1:].numel() for shape in shapes))
        if len(set(sizes)) > 1:
            raise UserError(
                "the loss of a batch does not depend on all parameters, and other processes wait for the gradients. "
                "Remove what is unused from the model. If all processes leave out the same, set "
                "runtime.unused_parameters=true; if not, runtime.strategy=ddp as well"
            )
        # the older name is deprecated
        reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        return reduce_scatter(output_tensor, input_tensor, op, group, async_op)


def _units(model: nn.Module) -> list[nn.Module]:
    """The modules to gather separately, inner ones first, the model last."""
    units: dict[nn.Module, None] = {}  # a module may be at several places

    def uses(module: nn.Module) -> Counter[nn.Parameter]:
        return Counter(each for part in module.modules() for each in part.parameters(recurse=False))

    in_model = uses(model)

    def visit(module: nn.Module) -> int:
        """The number of parameters gathered together with the enclosing module."""
        rest = sum(p.numel() for p in module.parameters(recurse=False)) + sum(map(visit, module.children()))
        if module is not model and (rest < UNIT_PARAMETERS or type(module).forward is nn.Module.forward):
            return rest
        if all(in_model[each] == number for each, number in uses(module).items()):  # shares none with other modules
            units[module] = None
            return 0
        return rest

    visit(model)
    return list(units)


def broadcast_buffers(model: nn.Module) -> None:
    """Give all processes the main process's buffers, such as BatchNorm's running means: one message per dtype.

    Each keeps its own buffers that are not saved: a table of positions may be as long as its longest input so far.
    """
    buffers = {
        buffer: None  # once, even if modules share it
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }
    kinds: dict[Any, list[Tensor]] = {}
    for buffer in buffers:
        kinds.setdefault((buffer.dtype, buffer.device), []).append(buffer)
    for alike in kinds.values():
        flat = torch.cat([buffer.flatten() for buffer in alike])
        dist.broadcast(flat, src=0)
        for buffer, part in zip(alike, torch.split(flat, [each.numel() for each in alike]), strict=True):
            buffer.copy_(part.view_as(buffer))


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes, counting it as 0 where a process has none.

    A parameter without a gradient in every process is left without one.
    """
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    exists = gradients[0].new_tensor([each.grad is not None for each in parameters])
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), exists])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    *parts, exists = torch.split(flat, [*(each.numel() for each in parameters), len(parameters)])
    complete = all(each.grad is not None for each in parameters)  # no need to wait for the device
    anywhere = [1.0] * len(parameters) if complete else exists.tolist()
    for parameter, gradient, part, number in zip(parameters, gradients, parts, anywhere, strict=True):
        if number:
            parameter.grad = gradient.copy_(part.view_as(parameter))


# ------------------------------------------------------------------ the state of a sharded model


def portable_state(optimizer: torch.optim.Optimizer, *, whole: bool) -> None:
    """Let an optimizer over sharded parameters load the whole model's state; and return it, if ``whole``."""
    if whole:
        optimizer.register_state_dict_post_hook(lambda _, state: map_tensors(gather, state))
    load_exactly(optimizer, adapt=shard_like)


def shard_allocator(model: nn.Module, optimizer: torch.optim.Optimizer) -> TensorAllocator:
    """Allocates this process's shard of anything that belongs to a sharded parameter, and all else whole."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    parameters = parameters_in(optimizer)

    def allocate(keys: Keys, saved: Tensor) -> Tensor:
        parameter = None
        if keys[0] in ("model", AVERAGED):
            parameter = weights.get(keys[1])
        elif keys[:2] == ("optimizer", "state") and keys[2] in range(len(parameters)):
            parameter = parameters[keys[2]]
        if isinstance(parameter, DTensor) and parameter.shape == saved.shape:
            return torch.empty_like(parameter, dtype=saved.dtype, requires_grad=False)
        return torch.empty_like(saved, device="cpu")

    return allocate


def _gather_state(model: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in state:
        state[name] = map_tensors(gather, state[name])


def _shard_state(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    own = dict[str, Tensor](tensors)
    for name in state:
        if name in own:
            state[name] = shard_like(state[name], own[name])


def gather(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor on the CPU of the main process. The others return an empty tensor, to save memory."""
    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():
        whole = tensor.full_tensor()
    return whole.cpu() if dist.get_rank() == 0 else whole.new_empty(0, device="cpu")


def shard_like(value: Any, sharded: Any) -> Any:
    """This process's shard of a whole tensor, if it belongs to a sharded parameter of the same shape."""
    is_whole = isinstance(value, Tensor) and not isinstance(value, DTensor)
    if not is_whole or not isinstance(sharded, DTensor) or value.shape != sharded.shape:
        return value
    # each process has read the whole tensor: nothing is sent
    mesh, placements = sharded.device_mesh, sharded.placements
    return distribute_tensor(value.to(sharded.device), mesh, placements, src_data_rank=None)
