"""Communication between the processes of a run. With a single process, nothing here does anything."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from utils.errors import TrainingError, UserError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
SAME_START = "start all with the same command, on copies of the same files"


class LostError(TrainingError):
    """Another process of the run died or did not answer in time."""


class ProcessGroup:
    """Communication between the processes of a run. This class is for a single process.

    All processes must call every method except those about failures, in the same order.
    """

    launched = False
    rank = 0
    world_size = 1
    timeout = 0.0
    """Seconds to wait for other processes, once connected."""

    def connect(self, seconds: float) -> None:
        """Must be called before anything but what is about failures. seconds: how long to wait for other processes."""

    def device(self, device: "torch.device") -> "torch.device":
        """This process's own device, given the device configured for all."""
        return device

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def key(self) -> tuple[int, ...]:
        """Mixed into a seed, so that each process draws different random numbers."""
        return (self.rank,) if self.rank else ()

    def broadcast_object(self, make: Callable[[], T]) -> T:
        """The main process's result of ``make``, in all processes."""
        return make()

    def gather(self, value: T) -> list[T]:
        """The values of all processes by rank in the main process; empty elsewhere."""
        return [value]

    def all_gather(self, value: T) -> list[T]:
        """The values of all processes by rank, in every process. UserError if a gradient should flow through them."""
        return [value]

    def check_same(self, own: Mapping[str, object], *, advice: str = SAME_START) -> None:
        """Raise UserError if a value differs between the processes. The names and the advice are for the message."""
        everyone = self.all_gather(own)
        for what in own:
            others = [str(rank) for rank, one in enumerate(everyone) if one[what] != everyone[0][what]]
            if others:
                raise UserError(f"process 0 and process {', '.join(others)} differ in their {what}; {advice}")

    def all_reduce_sum(self, values: Sequence[float]) -> Sequence[float]:
        """Each number summed over all processes, in float64 and in order of rank."""
        return values

    def signal(self, received: int | None) -> int | None:
        """The signal that any process received. All return it from the same call, within a fraction of a second."""
        return received

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Run the main process first, then the first of each machine, then the rest: data is downloaded once."""
        yield

    def claim_failure(self, status: int) -> tuple[bool, int]:
        """Whether this process is the first to fail, and so reports it; and the exit status of the first."""
        return True, status

    def peer_failure(self, error: BaseException) -> LostError | None:
        """The error to report instead, if this one was caused by a process that died or hangs; otherwise None."""
        return None

    def all_failed(self) -> bool:
        """Whether all processes have failed at the same point, and so can still communicate."""
        return True

    def finish(self) -> None:
        """Wait until all processes have finished."""

    def exit(self, status: int) -> int:
        """End the command with this exit status. Its output must have been flushed."""
        return status
