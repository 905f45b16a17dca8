"""What the processes of a run exchange. With a single one, nothing here does anything."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from utils.errors import TrainingError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class LostError(TrainingError):
    """Another process of the run has died, or did not answer in time."""


class ProcessGroup:
    """This process among those of its run, and what they exchange. This is the form for a single one.

    Every method except ``claim_failure`` must be called by all of them, in the same order.
    """

    launched = False
    rank = 0
    world_size = 1
    timeout = 0.0
    """Seconds to wait for another process, once they are connected."""

    def connect(self, seconds: float) -> None:
        """To be called first, before all but ``claim_failure``. seconds: how long to wait for another process."""

    def device(self, device: "torch.device") -> "torch.device":
        """The device of this process, where all were given this one."""
        return device

    @property
    def is_main_process(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    @property
    def key(self) -> tuple[int, ...]:
        """What is mixed into a seed, so that each process draws different random numbers."""
        return (self.rank,) if self.rank else ()

    def broadcast_object(self, make: Callable[[], T]) -> T:
        """What ``make`` returns in the main process, in all of them."""
        return make()

    def gather(self, value: T) -> list[T]:
        """The value of each process, in the order of their ranks, in the main one; empty elsewhere."""
        return list(self.one_by_one(value))

    def all_gather(self, value: T) -> list[T]:
        """The value of each process, in the order of their ranks, in all of them."""
        return [value]

    def one_by_one(self, value: T) -> Iterator[T]:
        """As ``gather``, but the main process has only one of the values in memory at a time."""
        yield value

    def reduce_sum(self, counts: "torch.Tensor") -> None:
        """Sum integers on the CPU over all processes, in place. Only the main process may use the result."""

    def all_reduce_sum(self, values: Sequence[float]) -> Sequence[float]:
        """The sum of each of these numbers over all processes, in float64 and in the order of their ranks."""
        return values

    def signal(self, received: int | None) -> int | None:
        """The signal that any process received. All return it at the same call, within a fraction of a second."""
        return received

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """The main process runs first, then the first of each machine, then all others: data are downloaded once."""
        yield

    def claim_failure(self, status: int) -> tuple[bool, int]:
        """Whether this process is the first to fail, which reports it; and the exit status of the first."""
        return True, status

    def peer_failure(self, error: BaseException) -> LostError | None:
        """The error to report instead if this one comes from a process that has died or hangs; else None."""
        return None

    def finish(self) -> None:
        """Wait until all processes have finished."""

    def exit(self, status: int) -> int:
        """End the command with this exit status."""
        return status
