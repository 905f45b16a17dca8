"""The processes of one run, as torchrun starts them. With a single one, nothing here does anything."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from utils.errors import TrainingError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class LostError(TrainingError):
    """Another process of the run has gone, or did not answer in time."""


class ProcessGroup:
    """This process among those of its run, and what they tell each other. This is the form for a single one.

    Every method but ``claim_failure`` must be called by all of them, in the same order.
    """

    launched = False
    rank = 0
    world_size = 1
    timeout = 0.0
    """Seconds that one waits for another, once they are connected."""

    def connect(self, seconds: float) -> None:
        """Before anything else here but ``claim_failure``. seconds: how long to wait for another process."""

    def device(self, device: "torch.device") -> "torch.device":
        """The device of this process, if all were given this one."""
        return device

    @property
    def is_main_process(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    @property
    def key(self) -> tuple[int, ...]:
        """What is mixed into a seed, so that each process draws numbers of its own."""
        return (self.rank,) if self.rank else ()

    def broadcast_object(self, make: Callable[[], T]) -> T:
        """What the main process makes, given to all."""
        return make()

    def gather(self, value: T) -> list[T]:
        """The value of each process, in the order of their ranks; given to the main one, empty elsewhere."""
        return [value]

    def all_gather(self, value: T) -> list[T]:
        """The value of each process, in the order of their ranks; given to all."""
        return [value]

    def one_by_one(self, value: T) -> Iterator[T]:
        """As ``gather``, but the main process has only one of the values in memory at a time."""
        yield value

    def reduce_sum(self, counts: "torch.Tensor") -> None:
        """Add whole numbers, on the CPU, up over all processes, in place; what it leaves is of use in the main one."""

    def all_reduce_sum(self, values: Sequence[float]) -> Sequence[float]:
        """Each of these numbers, added up over all processes in double and in the order of their ranks."""
        return values

    def signal(self, received: int | None) -> int | None:
        """The signal that any process received. All learn of it at the same call, within a fraction of a second."""
        return received

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """The main process goes first, then the first of each machine, then all others: data are fetched once."""
        yield

    def claim_failure(self, status: int) -> tuple[bool, int]:
        """Whether this process is the first that fails, so that it is the one to tell; and the status of the first."""
        return True, status

    def peer_failure(self, error: BaseException) -> LostError | None:
        """What to say of an error if it comes from a process that has gone or hangs; None if it does not."""
        return None

    def finish(self) -> None:
        """Wait until all have come to their end."""

    def exit(self, status: int) -> int:
        """The command is over, with this exit status."""
        return status


_joined: ProcessGroup | None = None


def get_process_group() -> ProcessGroup:
    """The processes of this run. The first call joins them, if torchrun or the like started several."""
    global _joined
    if _joined is None:
        if "WORLD_SIZE" in os.environ and "RANK" in os.environ:
            from utils.distributed.torchrun import (
                TorchProcessGroup,
            )  # which imports what a single process does not need

            _joined = TorchProcessGroup()
        else:
            _joined = ProcessGroup()
    return _joined


def current() -> ProcessGroup:
    """The processes of this run as far as they are joined, for whoever has to say that this failed."""
    return _joined or ProcessGroup()


def launch() -> tuple[str | None, bool]:
    """What the launcher calls this job, the same after each restart, and whether this is a restart.

    The name is None where nothing could be found by it.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if name == "none":  # what torchrun calls every job that was given no name: then it is known by the launcher itself
        name = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}:{os.getppid()}"
    return name, restarted
