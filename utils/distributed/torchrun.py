"""Several processes with torch.distributed: imported only if a launcher such as torchrun started them."""

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from utils.distributed.process_group import LostError, ProcessGroup
from utils.errors import ConfigError, UserError
from utils.streams import say_error
from utils.tree import tensors

T = TypeVar("T")
SETS_ALL = "torchrun sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; unset them all to run a single process"
JOIN_SECONDS = 600.0
"""Timeout for connecting the processes, before the config with runtime.timeout is read."""
DOWNLOAD_TIMEOUT = timedelta(days=1)
"""For processes that wait while another downloads data. They notice at once if it dies, but not that it hangs."""
FAIL_TOGETHER = timedelta(seconds=5)
"""Within which processes fail that fail at the same point."""


class TorchProcessGroup(ProcessGroup):
    """Processes started by a launcher. They connect through its key-value store; ``connect`` creates the group."""

    launched = True
    AGREE_SECONDS = 0.1
    AGREE_CALLS = 64

    def __init__(self) -> None:
        self.rank = _number("RANK")
        self.world_size = _number("WORLD_SIZE")
        self.local_rank = _number("LOCAL_RANK", str(self.rank))
        if self.rank >= self.world_size or not os.environ.get("MASTER_ADDR"):
            address = os.environ.get("MASTER_ADDR")
            raise UserError(
                f"RANK is {self.rank}, WORLD_SIZE {self.world_size} and MASTER_ADDR {address!r}, which do not fit; "
                f"{SETS_ALL}"
            )
        _number("MASTER_PORT")
        self._calls = self._left = 1
        self._agreed = time.monotonic()
        self._pending: Any = None
        self._turns = self._communications = 0
        with self._communication(meeting=JOIN_SECONDS):
            wait = timedelta(seconds=JOIN_SECONDS)
            store, _, _ = next(iter(rendezvous("env://", timeout=wait)))
            prefix = _meet(store, self.rank, self.world_size, wait)
            self.store = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]

    def connect(self, seconds: float) -> None:
        """Create the group, once. seconds: how long a process waits for another before it gives up."""
        if dist.is_initialized():
            return
        self.timeout = seconds
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        backend = "gloo"
        if accelerator is not None:
            backend = f"cpu:gloo,{accelerator.type}:{dist.get_default_backend_for_device(accelerator)}"
        wait = timedelta(seconds=seconds)
        with self._communication(meeting=seconds):
            self._assemble("arrived", wait)
            dist.init_process_group(backend, store=self.store, rank=self.rank, world_size=self.world_size, timeout=wait)
            # apart from gradients, processes exchange only plain numbers on the CPU
            self.control: Any = None if accelerator is None else dist.new_group(backend="gloo", timeout=wait)
            self.download_group: Any = dist.new_group(backend="gloo", timeout=DOWNLOAD_TIMEOUT)

    def device(self, device: torch.device) -> torch.device:
        if device.type == "cpu":
            return device
        if device.index is not None and self.world_size > 1:
            message = f'"{device}" is a single device for {self.world_size} processes; try "{device.type}"'
            raise ConfigError(message, ("runtime", "device"))
        available = torch.accelerator.device_count()
        if self.local_rank >= available:
            message = f"{self.local_rank + 1} processes or more on a machine with {available} devices"
            raise ConfigError(message, ("runtime", "device"))
        return torch.device(device.type, self.local_rank)

    def broadcast_object(self, make: Callable[[], T]) -> T:
        made = [make() if self.is_main_process else None]
        with self._communication():
            dist.broadcast_object_list(made, src=0, group=self.control)
        return made[0]  # type: ignore[return-value]

    def all_gather(self, value: T) -> list[T]:
        if torch.is_grad_enabled() and any(tensor.grad_fn is not None for tensor in tensors(value)):
            raise UserError(
                "process_group.all_gather sends copies, which have no gradient: give it detached tensors, or use "
                "AllGather of docs/distributed.md, which returns gradients"
            )
        values: list[Any] = [None] * self.world_size
        with self._communication():
            dist.all_gather_object(values, value, group=self.control)
        return values

    def gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.world_size if self.is_main_process else []
        with self._communication():
            dist.gather_object(value, values or None, dst=0, group=self.control)
        return values

    def all_reduce_sum(self, values: Sequence[float]) -> Sequence[float]:
        own = torch.tensor(values, dtype=torch.float64)
        gathered = [torch.empty_like(own) for _ in range(self.world_size)]
        with self._communication():
            dist.all_gather(gathered, own, group=self.control)
        return list(sum(gathered[1:], gathered[0]).tolist())

    def signal(self, received: int | None) -> int | None:
        self._left -= 1
        if self._left > 0:  # an exchange in every step would cost small models 5% of their time
            return None
        agreed_signal, agreed_calls = 0, 1
        if self._pending:
            work, maxima = self._pending
            with self._communication():
                work.wait()
            agreed_signal, minus_calls = maxima.tolist()
            agreed_calls = -minus_calls

        calls = self._affordable_calls()
        self._calls = self._left = agreed_calls
        self._agreed = time.monotonic()
        # the maxima over the processes: a signal that any of them received, and minus the fewest calls
        maxima = torch.tensor([received or 0, -calls])
        with self._communication():  # runs beside training; the result is read at the next exchange
            work = dist.all_reduce(maxima, dist.ReduceOp.MAX, group=self.control, async_op=True)
        self._pending = work, maxima
        return agreed_signal or None

    def _affordable_calls(self) -> int:
        """The calls of ``signal`` from one exchange to the next that take about AGREE_SECONDS, as the last ones did."""
        seconds = max(time.monotonic() - self._agreed, 1e-9)
        affordable = int(self.AGREE_SECONDS * self._calls / seconds)
        return max(1, min(affordable, 2 * self._calls, self.AGREE_CALLS))

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        of_others = 1 if self.local_rank == 0 else 2
        turn = 0 if self.is_main_process else of_others
        for number in range(3):
            if number == turn:
                yield
            with self._communication():
                self._wait_for_turn()

    def _wait_for_turn(self) -> None:
        """A barrier that names, after ``timeout``, the processes that still prepare data, and then waits on."""
        self._turns += 1
        turn = f"turn {self._turns}"
        self.store.set(f"{turn}/{self.rank}", "")
        barrier = dist.barrier(self.download_group, async_op=True)
        until = time.monotonic() + self.timeout
        while not barrier.is_completed():
            time.sleep(0.005)
            if time.monotonic() > until:
                until = math.inf
                busy = [rank for rank in range(self.world_size) if not self.store.check([f"{turn}/{rank}"])]
                if busy and self.store.add(turn, 1) == 1:
                    names = ", ".join(map(str, busy))
                    say_error(f"still waiting for process {names} of {self.world_size}, which prepares the data")
        barrier.wait()

    def claim_failure(self, status: int) -> tuple[bool, int]:
        own = f"{self.rank} {status}"
        try:
            first = self.store.compare_set("failure", "", own).decode()
        except (RuntimeError, ValueError):  # the store died with its process
            first = own
        return first == own, int(first.split()[1])

    def peer_failure(self, error: BaseException) -> LostError | None:
        if isinstance(error, LostError):
            return error
        text = str(error)
        if not isinstance(error, RuntimeError) or not (
            isinstance(error, dist.DistError)
            or any(word in text for word in ("gloo", "NCCL", "Connection", "pair closure"))
        ):
            return None
        timed_out = "imed out" in text or "timeout" in text
        silent = self._silent(timed_out=timed_out)
        happened = f"hung or was stopped for more than {self.timeout:g} s" if timed_out else "has ended"
        what = f"process {', '.join(map(str, silent))} of {self.world_size} {happened}"
        if not silent:
            ask = "did only some of them call the model, or an operation such as all_gather?"
            what = f"the processes waited for each other for {self.timeout:g} s ({ask})"
        return LostError(
            f"{what}, and this run cannot continue.\n"
            "With torchrun --max-restarts 3 a run resumes automatically; otherwise resume it with -r. "
            f"runtime.timeout sets how long to wait. (process {self.rank}: {text.splitlines()[0].partition('. ')[0]})"
        )

    def all_failed(self) -> bool:
        with contextlib.suppress(RuntimeError, ValueError):
            self._assemble(f"failed after {self._communications}", FAIL_TOGETHER)
            return True
        return False

    def _assemble(self, where: str, wait: timedelta) -> None:
        """Wait until all processes are here. Raises RuntimeError after a time."""
        if self.store.add(where, 1) == self.world_size:
            self.store.set(f"{where}: all", "")
        _wait(self.store, f"{where}: all", wait)

    def finish(self) -> None:
        if dist.is_initialized():
            with self._communication():
                dist.barrier(self.control)

    def exit(self, status: int) -> int:
        # skip the interpreter's shutdown: torch's threads may still be waiting on the store, which aborts the process
        os._exit(status)

    def _silent(self, *, timed_out: bool) -> list[int]:
        """The ranks that do not respond: those that have not noticed, a moment later, that a process is missing.

        None may be left, if all wait for each other. timed_out: if not, one that gave up first may look as if it ended.
        """
        with contextlib.suppress(ValueError):  # in another thread than the main one
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher sends it when the first process ends
        missing = [rank for rank in range(self.world_size) if rank != self.rank]
        with contextlib.suppress(RuntimeError):
            self.store.set(f"noticed/{self.rank}", "yes")
            started, waited = time.monotonic(), 0.0
            while missing and waited < (3.0 if timed_out or len(missing) > 1 else 0.5):
                time.sleep(0.1)
                missing = [rank for rank in missing if not self.store.check([f"noticed/{rank}"])]
                waited = time.monotonic() - started
        return missing

    @contextmanager
    def _communication(self, *, meeting: float | None = None) -> Iterator[None]:
        """Names the process in errors from communication. meeting: seconds to wait, while processes still connect."""
        self._communications += 1
        try:
            yield
        except (RuntimeError, ValueError) as error:
            if meeting is None:
                raise (self.peer_failure(error) or error) from error
            address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            late = any(word in str(error) for word in ("imed out", "timeout", "no answer", "missing"))
            happened = f"timed out after {meeting:g} s waiting for" if late else "cannot connect to"
            raise UserError(
                f"process {self.rank} of {self.world_size}: {happened} the other processes at {address}: "
                f"{str(error).splitlines()[0]}"
            ) from error


def _number(name: str, default: str | None = None) -> int:
    """A number that the launcher has set. Raises UserError."""
    text = os.environ.get(name) or default or ""
    if not (text.isascii() and text.isdigit() and int(text) < 2**16):
        raise UserError(f"the environment variable {name} is {text!r}, not a number below 65536; {SETS_ALL}")
    return int(text)


def _wait(store: Any, key: str, wait: timedelta) -> None:
    """Wait for a key by polling: during the store's own ``wait``, signals are not handled."""
    until = time.monotonic() + wait.total_seconds()
    pause = 0.005
    while not store.check([key]):
        if time.monotonic() > until:
            raise RuntimeError(f"no answer in {wait.total_seconds():g} s")
        time.sleep(pause)
        pause = min(2 * pause, 0.1)


def _meet(store: Any, rank: int, world_size: int, wait: timedelta) -> str:
    """A token that the main process gives to all processes of this start, and to none of an earlier one.

    A launcher may keep one store across restarts: its keys may be from dead processes.
    """
    own = os.urandom(8).hex()
    if rank:
        store.set(f"hello/{rank}", own)
        _wait(store, f"welcome/{own}", wait)
        word: str = store.get(f"welcome/{own}").decode()
        store.set(f"{own}/{word}", "")
        return word

    until = time.monotonic() + wait.total_seconds()
    missing = list(range(1, world_size))
    while missing and time.monotonic() < until:
        for other in [other for other in missing if store.check([f"hello/{other}"])]:
            name = store.get(f"hello/{other}").decode()
            store.set(f"welcome/{name}", own)
            if store.check([f"{name}/{own}"]):
                missing.remove(other)
        time.sleep(0.01)
    if missing:
        raise RuntimeError(f"still missing: {', '.join(map(str, missing))}")
    return own
