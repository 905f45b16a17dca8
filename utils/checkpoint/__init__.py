"""Checkpoints: written in a thread beside training, and checked byte for byte before they are used.

file            the format of a checkpoint file: write, read and verify one
checkpointer    a run's checkpoints while it trains: the newest ones and the best are kept
plain           what a checkpoint may hold; anything else is refused before the first step
loading         the checkpoint that was named, or the newest undamaged one, in one process or in several
sharded         the checkpointer when every process writes its part, imported only where it is asked for
shards          the folder with the tensors of a sharded checkpoint, by torch.distributed.checkpoint
"""

from utils.checkpoint.file import file_name, snapshot, step_files, verify, write
from utils.checkpoint.loading import newest_sound, read, read_together, saved_progress
from utils.checkpoint.plain import check_parts, plain

__all__ = [
    "check_parts",
    "file_name",
    "newest_sound",
    "plain",
    "read",
    "read_together",
    "saved_progress",
    "snapshot",
    "step_files",
    "verify",
    "write",
]
