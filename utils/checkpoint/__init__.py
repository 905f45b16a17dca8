"""Checkpoints: written in a background thread, and checked byte for byte before they are used.

file            the format of a checkpoint file: write, read and verify
checkpointer    a run's checkpoints during training: keeps the newest and the best
plain           what a checkpoint may contain; anything else is rejected before the first step
loading         finding the named checkpoint, or the newest undamaged one, in one process or several
weights_file    weights from a file of any origin
sharded         the checkpointer in which every process writes its part; imported on demand
shards          the folder with the tensors of a sharded checkpoint, in the format of torch.distributed.checkpoint
"""

from utils.checkpoint.file import file_name, snapshot, step_files, verify, write
from utils.checkpoint.loading import newest_intact, read, read_together, saved_progress
from utils.checkpoint.plain import check_parts, plain

__all__ = [
    "check_parts",
    "file_name",
    "newest_intact",
    "plain",
    "read",
    "read_together",
    "saved_progress",
    "snapshot",
    "step_files",
    "verify",
    "write",
]
