"""How a model is spread over processes. With a single process, nothing here does anything."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from torch.optim import Optimizer

from utils.checkpoint.file import TensorAllocator
from utils.optimizers import load_exactly


class Strategy:
    """For a single process. With several: ``DDP`` in parallel.py and ``FSDP`` in fsdp.py."""

    def prepare_model(self, model: nn.Module) -> None:
        """Call once the model is on its device."""

    def prepare_optimizer(self, optimizer: Optimizer) -> None:
        """Make the optimizer's state independent of the device and of the number of processes."""
        load_exactly(optimizer)

    def begin_epoch(self, model: nn.Module, *, several_optimizers: bool) -> None:
        """Call before the steps of an epoch, once it is known which parameters require a gradient.

        several_optimizers: they average the gradients themselves, as each steps.
        """

    def sync_gradients(self, sync: bool) -> None:
        """Set whether the processes reduce gradients in the next backward pass."""

    def before_backward(self, loss: Tensor) -> Tensor:
        """Call before the backward pass of a loss. Returns the loss to call it for."""
        return loss

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average the gradients that the backward pass does not reduce, after those that it does."""

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Give all processes the main process's buffers."""

    def reshard(self, model: nn.Module) -> None:
        """With FSDP: let the model's parameters be its shards again.

        After a forward pass without a backward pass they are the gathered weights, and what is done to them would be
        lost: a change of their values, or ``requires_grad_``.
        """

    @contextmanager
    def sharded_between_calls(self, model: nn.Module) -> Iterator[None]:
        """Inside the block, with FSDP: the model's parameters are its shards, except during a call."""
        yield

    def local(self, pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """With FSDP: this process's shards of pairs of tensors. They share memory, and may be mixed with buffers."""
        return pairs

    def whole(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """With FSDP: a state of shards as the main process saves it, with whole tensors. All processes must call it."""
        return state

    def shard_like(self, saved: Tensor, own: Tensor) -> Tensor:
        """With FSDP: this process's shard of a saved tensor, if ``own`` is one."""
        return saved

    def allocator(self, model: nn.Module, optimizer: Optimizer) -> TensorAllocator | None:
        """Allocates tensors for loading the state of a model and its optimizer; None: whole tensors on the CPU."""
        return None
