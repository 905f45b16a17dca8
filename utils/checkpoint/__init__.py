"""Checkpoints: what a file holds, how it is written beside the training, and how a damaged one is found.

file            the format: write, read and verify one checkpoint file
checkpointer    writes a run's checkpoints in a thread; keeps the newest and the best
sharded         the same when every process writes its own part; shards reads and writes the folders of tensors
"""

from utils.checkpoint.checkpointer import Checkpointer, NoCheckpoints
from utils.checkpoint.file import (
    MARK,
    TensorAllocator,
    file_name,
    newest_sound,
    read,
    read_together,
    snapshot,
    step_files,
    verify,
    write,
)

__all__ = [
    "MARK",
    "Checkpointer",
    "NoCheckpoints",
    "TensorAllocator",
    "file_name",
    "newest_sound",
    "read",
    "read_together",
    "snapshot",
    "step_files",
    "verify",
    "write",
]
