"""Memory that a step frees stays with the process, for the next step."""

import ctypes
import functools
import os
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h
VARIABLES = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
    "GLIBC_TUNABLES",
)
WANTED = {
    TRIM_THRESHOLD: -1,  # what is free at the end of the heap stays there
    TOP_PAD: 2**26,  # bytes by which the heap grows
    # bytes from which a block is the system's own: the most that glibc takes. Without such blocks, batches of 4,096
    # have a quarter fewer faults, but batches of varying sizes leave holes in the heap: 1,820 MB in place of 1,330
    MMAP_THRESHOLD: 2**25,
}


@functools.cache
def keep_freed_memory() -> bool:
    """Let glibc keep what a step frees. Returns whether it does.

    By default it gives the end of the heap back, and takes it again in the next step: with batches of 512, a fault for
    every page. Blocks of 32 MB and more still go back. Other systems and other C libraries stay as they are, and so
    does one that is set by an environment variable.
    """
    if sys.platform != "linux" or any(name in os.environ for name in VARIABLES):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all(library.mallopt(option, value) == 1 for option, value in WANTED.items())
