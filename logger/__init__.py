"""What a run shows and records.

console   messages on the terminal and in train.log, and progress bars
table     the epochs of a run as rows under one header
writers   metrics.jsonl and TensorBoard event files, truncated exactly on resume; extras/writers has more

base/training/training_log.py decides what to show and record, and when.
"""

from logger.writers import RunInfo, Writer

__all__ = ["RunInfo", "Writer"]
