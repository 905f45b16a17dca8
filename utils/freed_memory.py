"""Memory that a step frees stays with the process, for the next step."""

import ctypes
import functools
import os
import sys

# of glibc's malloc.h
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4
VARIABLES = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
    "GLIBC_TUNABLES",
)
WANTED = {
    TRIM_THRESHOLD: 2**30,  # bytes that are free at the end of the heap before they go back to the system
    TOP_PAD: 2**26,  # bytes by which the heap grows
    MMAP_THRESHOLD: 2**25,  # bytes from which a block is the system's own: the most that glibc takes
}


@functools.cache
def keep_freed_memory() -> bool:
    """Let glibc keep what a step frees. Gives whether it does.

    By default it gives the end of the heap back, and takes it again in the next step: with batches of 512 or more, a
    fault for every page. Other systems and other C libraries stay as they are, and so does one that is set by an
    environment variable.
    """
    if sys.platform != "linux" or any(name in os.environ for name in VARIABLES):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all(library.mallopt(option, value) == 1 for option, value in WANTED.items())
