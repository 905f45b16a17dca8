"""One process or several: the same calls everywhere, which do nothing in a single process.

process_group   what processes exchange; the form for a single one
torchrun        the same by torch.distributed, imported only where a launcher started the processes
parallel        how a model is spread over them: DDP or FSDP2, imported only then
"""

import os

from utils.distributed.process_group import ProcessGroup

__all__ = ["ProcessGroup", "current", "get_process_group", "launch"]

_group: ProcessGroup | None = None


def get_process_group() -> ProcessGroup:
    """The processes of this run. The first call meets the others, if torchrun or the like started several."""
    global _group
    if _group is None:
        if "WORLD_SIZE" in os.environ and "RANK" in os.environ:
            from utils.distributed.torchrun import TorchProcessGroup  # imports what a single process does not need

            _group = TorchProcessGroup()
        else:
            _group = ProcessGroup()
    return _group


def current() -> ProcessGroup:
    """The processes of this run as far as they have met, for code that has to report that this failed."""
    return _group or ProcessGroup()


def launch() -> tuple[str | None, bool]:
    """The launcher's name for this job, the same after each restart, and whether this is a restart.

    The name is None without a launcher.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if name == "none":  # torchrun's name for every job that was given none: then the launcher itself identifies it
        name = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}:{os.getppid()}"
    return name, restarted
