"""What a run shows and records.

console   messages on the terminal and in train.log, and progress bars
table     the epochs of a run as rows under one header
writers   metrics.jsonl and TensorBoard's event files, truncated exactly on resume; extras/writers has more

base/training/training_log.py decides what is shown and recorded, and when.
"""

from logger.console import Console
from logger.table import EpochTable
from logger.writers import ConsoleLog, EventWriter, JsonlWriter, RunInfo, Writer, Writers

__all__ = [
    "Console",
    "ConsoleLog",
    "EpochTable",
    "EventWriter",
    "JsonlWriter",
    "RunInfo",
    "Writer",
    "Writers",
]
