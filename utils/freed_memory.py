"""Keeps memory that a step frees in the process, for the next step."""

import ctypes
import functools
import os
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h
VARIABLES = (
    "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES",
)  # fmt: skip
WANTED = {
    TRIM_THRESHOLD: -1,  # keep free memory at the end of the heap
    TOP_PAD: 2**26,  # bytes by which the heap grows
    # bytes from which a block is mapped separately: glibc's maximum. Without separate blocks, batches of 4,096 have
    # 25 % fewer page faults, but batches of varying sizes fragment the heap: 1,820 MB instead of 1,330
    MMAP_THRESHOLD: 2**25,
}


@functools.cache
def keep_freed_memory() -> bool:
    """Let glibc keep the memory that a step frees. Returns whether it does.

    By default it returns the end of the heap to the system and requests it again in the next step: with batches of 512,
    one page fault per page. Blocks of 32 MB or more are still returned. No effect with other systems or C libraries, or
    if an environment variable configures malloc.
    """
    if sys.platform != "linux" or any(name in os.environ for name in VARIABLES):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all(library.mallopt(option, value) == 1 for option, value in WANTED.items())
