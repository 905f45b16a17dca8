"""Memory that is freed stays with the process, on Linux with glibc."""

import platform
import subprocess
import sys

import pytest

from tests.helpers import ROOT

# a step that takes blocks of 1 to 24 MB and frees them; the faults of 20 such steps after the first one
STEPS = """
import ctypes, resource, sys
from utils.freed_memory import keep_freed_memory
keep_freed_memory()
library = ctypes.CDLL(None)
library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def step():
    sizes = [2**20, 2**22, 2**24, 24 * 2**20]
    blocks = [library.malloc(size) for size in sizes]
    for block, size in zip(blocks, sizes):
        ctypes.memset(block, 1, size)
    for block in blocks:
        library.free(block)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
@pytest.mark.parametrize("variables", [{}, {"MALLOC_TRIM_THRESHOLD_": "131072"}])
def test_what_a_step_frees_is_not_faulted_in_again(variables: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-c", STEPS], cwd=ROOT, env=variables, capture_output=True, text=True, check=True
    )
    faults = done.stdout
    if variables:  # the user's own setting holds: every page of every step
        assert int(faults) > 20 * 24 * 2**20 // 4096 // 2
    else:
        assert int(faults) < 1000
