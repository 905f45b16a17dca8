"""How a model is spread over processes: what all ways have in common, and torch's DistributedDataParallel."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.device_errors import device_failure
from utils.distributed.process_group import ProcessGroup
from utils.distributed.strategy import Strategy
from utils.errors import UserError
from utils.schema import RuntimeConfig
from utils.text import listed
from utils.tree import has_strides

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


class Parallel(Strategy):
    """Several processes, each with its part of a batch."""

    def __init__(self, process_group: ProcessGroup, device: torch.device, settings: RuntimeConfig) -> None:
        self.process_group, self.device, self.settings = process_group, device, settings
        self.sync: bool | None = None
        """Whether the next backward pass reduces gradients; None before the first one."""
        self.backward_called = False
        """Whether there was one since that was set."""

    def sync_gradients(self, sync: bool) -> None:
        self.sync, self.backward_called = sync, False

    def before_backward(self, loss: Tensor) -> Tensor:
        self.backward_called = True
        return loss

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        if self.process_group.world_size > 1:
            self.check_reduced()
            if parameters:
                average_gradients(parameters)

    def check_reduced(self) -> None:
        """After a backward pass that reduces gradients, raise UserError if other processes wait for more of them."""
        if not self.backward_called:
            raise UserError(
                f"train_step did not call self.backward in process {self.process_group.rank}, and the other processes "
                "wait for its gradients. Without a loss, call self.backward(0 * outputs.sum())"
            )

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Give all processes the main process's buffers, such as BatchNorm's running means: one message per dtype.

        Each keeps its own buffers that are not saved: a table of positions may be as long as its longest input so far.
        """
        buffers = {
            buffer: None  # once, even if modules share it
            for module in model.modules()
            for name, buffer in module.named_buffers(recurse=False)
            if name not in module._non_persistent_buffers_set
        }
        kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for buffer in buffers:
            kinds.setdefault((buffer.dtype, buffer.device), []).append(buffer)
        for alike in kinds.values():
            flat = torch.cat([buffer.flatten() for buffer in alike])
            dist.broadcast(flat, src=0)
            for buffer, part in zip(alike, torch.split(flat, [each.numel() for each in alike]), strict=True):
                buffer.copy_(part.view_as(buffer))

    @contextmanager
    def refusing(self, model: nn.Module, *ways: str) -> Iterator[None]:
        """Inside the block, raise as UserError why torch refuses a model, as FSDP one with a parameter of shape ().

        ways: further ones out, for the message.
        """
        try:
            yield
        except (RuntimeError, ValueError) as error:
            if device_failure(error) or self.process_group.peer_failure(error):
                raise
            raise UserError(
                f'runtime.strategy "{self.settings.strategy}" cannot train {type(model).__name__}: {error}\n'
                f"Either {', '.join(['change the model', *ways])}, or train in a single process."
            ) from error


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


# ------------------------------------------------------------------ DDP


class DDP(Parallel):
    """Each process has the whole model."""

    reducer: "GradientReducer | None" = None
    """Sums the gradients of the parameters that require one."""

    def begin_epoch(self, model: nn.Module, *, several_optimizers: bool) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if self.reducer is not None and [*map(id, trained)] == [*map(id, self.reducer.parameters)]:
            return
        refuse_sparse(model)
        self.reducer = None
        if trained and not several_optimizers:
            unused = self.settings.unused_parameters
            with self.refusing(model):
                self.reducer = GradientReducer(model, self.device, unused_parameters=unused)

    def before_backward(self, loss: Tensor) -> Tensor:
        if self.reducer is not None and self.sync:
            self.reducer.prepare(loss)
        return super().before_backward(loss)

    def check_reduced(self) -> None:
        if self.reducer is not None:
            super().check_reduced()
            self.reducer.check_reduced()


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
