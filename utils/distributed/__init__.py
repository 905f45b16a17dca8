"""One process or several: the same calls everywhere; in a single process they do nothing.

process_group   communication between processes, and the version for a single process
torchrun        the same with torch.distributed; imported only if a launcher started the processes
strategy        how a model is spread over processes, and the version for a single process
parallel        the same with DDP, and fsdp with FSDP2; imported only then
"""

import os

from utils.distributed.process_group import ProcessGroup

__all__ = ["ProcessGroup", "current", "get_process_group", "launch"]

_group: ProcessGroup | None = None


def get_process_group() -> ProcessGroup:
    """The processes of this run. The first call connects to the others, if a launcher started several."""
    global _group
    if _group is None:
        if _launched():
            from utils.distributed.torchrun import TorchProcessGroup  # imports what a single process does not need

            _group = TorchProcessGroup()
        else:
            _group = ProcessGroup()
    return _group


def _launched() -> bool:
    """Whether the environment says that this is one of several processes, or perhaps says so: then it is checked."""
    rank, size, address = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))
    if size == "1":
        return bool(rank and address)
    return bool(size) or rank not in (None, "", "0")


def current() -> ProcessGroup:
    """The processes of this run as far as they are connected, for code that reports a failure to connect."""
    return _group or ProcessGroup()


def launch() -> tuple[str | None, bool]:
    """The launcher's id for this job, the same after each restart, and whether this is a restart.

    The id is None without a launcher.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if name == "none":  # torchrun's id for jobs without one: the launcher itself then identifies the job
        name = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}:{os.getppid()}"
    return name, restarted
