"""One process or several: the same calls everywhere, which do nothing in a single process.

launcher        the process group of this run, by how its processes were started
process_group   what processes exchange; the form for a single one
torchrun        the same by torch.distributed, imported only where a launcher started the processes
parallel        how a model is spread over them: DDP or FSDP2, imported only then
"""

from utils.distributed.launcher import current, get_process_group, launch
from utils.distributed.process_group import ProcessGroup

__all__ = ["ProcessGroup", "current", "get_process_group", "launch"]
