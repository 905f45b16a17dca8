"""torch's fully_shard (FSDP2): each process keeps only a shard of each parameter."""

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from utils.checkpoint.file import TensorAllocator
from utils.checkpoint.weights_file import AVERAGED
from utils.distributed.parallel import Parallel, refuse_sparse
from utils.errors import UserError
from utils.optimizers import load_exactly, parameters_in
from utils.text import listed
from utils.tree import Keys, map_tensors

UNIT_PARAMETERS = 1_000_000
"""Number of parameters above which a module is gathered separately, so that not all weights are in memory at once."""


class FSDP(Parallel):
    """Each process has a shard of the model.

    whole_states: whether the states of model and optimizer contain whole tensors. Both kinds can be loaded.
    """

    def __init__(self, *args: Any, whole_states: bool) -> None:
        super().__init__(*args)
        self.whole_states = whole_states

    def prepare_model(self, model: nn.Module) -> None:
        """Keep only this process's shard of each parameter, in place."""
        refuse_sparse(model)
        named = model.named_parameters()
        hooked = [name for name, each in named if each._backward_hooks or each._post_accumulate_grad_hooks]
        if hooked:
            raise UserError(
                f'runtime.strategy "fsdp" replaces the parameters, and would lose the hooks of {listed(hooked)}; '
                "change gradients in the trainer's compute_gradients (docs/training.md), or set runtime.strategy=ddp"
            )
        with self.refusing(model, "set runtime.strategy=ddp"):
            self._shard(model)
        assert isinstance(model, FSDPModule)
        self.set_sync = model.set_requires_gradient_sync
        self.with_weights = _call_with_weights(model)
        for name, _ in inspect.getmembers(type(model), inspect.isfunction):
            if not name.startswith("_") and not hasattr(nn.Module, name) and not hasattr(FSDPModule, name):
                setattr(model, name, _gathering(getattr(model, name), self.with_weights))
        if self.whole_states:
            model.register_state_dict_post_hook(_gather_state)  # type: ignore[no-untyped-call]
        model.register_load_state_dict_pre_hook(_shard_state)  # type: ignore[no-untyped-call]

    def _shard(self, model: nn.Module) -> None:
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), src=0)
        mesh = init_device_mesh(self.device.type, (dist.get_world_size(),))
        for module in _units(model):
            own = [name for name, each in module.named_parameters() if not isinstance(each, DTensor)]
            fully_shard(module, mesh=mesh)
            assert isinstance(module, FSDPModule)
            parameters = [module.get_parameter(name) for name in own]
            # torch's name for its interface is private
            reduce_scatter: Any = _ReduceScatter(parameters, unused_parameters=self.settings.unused_parameters)
            module.set_custom_reduce_scatter(reduce_scatter)

    def prepare_optimizer(self, optimizer: Optimizer) -> None:
        """Let an optimizer over sharded parameters load the whole model's state; and return it, if ``whole_states``."""
        if self.whole_states:
            optimizer.register_state_dict_post_hook(lambda _, state: map_tensors(_gather, state))
        load_exactly(optimizer, adapt=_shard_like)

    def sync_gradients(self, sync: bool) -> None:
        if sync != self.sync:
            self.set_sync(sync)
        super().sync_gradients(sync)

    def before_backward(self, loss: Tensor) -> Tensor:
        # torch notices a backward pass by what such calls return, but not in objects such as distributions
        loss = super().before_backward(loss)
        return self.with_weights(lambda: loss)  # type: ignore[no-any-return]

    def reshard(self, model: Any) -> None:
        model.reshard()

    @contextmanager
    def sharded_between_calls(self, model: Any) -> Iterator[None]:
        model.reshard()
        model.set_reshard_after_forward(True, recurse=False)
        try:
            yield
        finally:
            model.set_reshard_after_forward(False, recurse=False)

    def local(self, pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        return [(_local(one), _local(other)) for one, other in pairs]

    def whole(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return map_tensors(_gather, state) if self.whole_states else state

    def shard_like(self, saved: Tensor, own: Tensor) -> Tensor:
        return _shard_like(saved, own)  # type: ignore[no-any-return]

    def allocator(self, model: nn.Module, optimizer: Optimizer) -> TensorAllocator:
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


# ------------------------------------------------------------------ the state of a sharded model


def _gather_state(model: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in state:
        state[name] = map_tensors(_gather, state[name])


def _shard_state(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    own = dict[str, Tensor](tensors)
    for name in state:
        if name in own:
            state[name] = _shard_like(state[name], own[name])


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _gather(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor on the CPU of the main process. The others return an empty tensor, to save memory."""
    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():
        whole = tensor.full_tensor()
    return whole.cpu() if dist.get_rank() == 0 else whole.new_empty(0, device="cpu")


def _shard_like(value: Any, sharded: Any) -> Any:
    """This process's shard of a whole tensor, if it belongs to a sharded parameter of the same shape."""
    is_whole = isinstance(value, Tensor) and not isinstance(value, DTensor)
    if not is_whole or not isinstance(sharded, DTensor) or value.shape != sharded.shape:
        return value
    # each process has read the whole tensor: nothing is sent
    mesh, placements = sharded.device_mesh, sharded.placements
    return distribute_tensor(value.to(sharded.device), mesh, placements, src_data_rank=None)
