"""Deterministic kernels, without which a resumed run equals an uninterrupted one only up to rounding.

Other kernels let threads add in the order in which they happen to finish: many on a GPU, and on the CPU the gradient of
``x[indices]`` and some others. torch lists them under ``torch.use_deterministic_algorithms``.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
import torch.utils.deterministic

DEBUG_MODES = {False: 0, "warn": 1, True: 2}
CUBLAS_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
UNCHANGED = nullcontext()
_set_here = 0


def use_deterministic_kernels(setting: bool | Literal["warn"], device: torch.device) -> None:
    """Apply ``runtime.deterministic`` to this process. A mode that the user's code has chosen is kept.

    device: of the run.
    """
    global _set_here
    if device.type == "cuda":
        accept_cublas(device)
    if torch.get_deterministic_debug_mode() != _set_here:
        return
    _set_here = DEBUG_MODES[setting]
    # not use_deterministic_algorithms, which imports torch's compiler
    torch.set_deterministic_debug_mode(_set_here)
    if setting:
        # takes time, and serves to find other mistakes
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # of the module


@contextmanager
def restore_kernels() -> Iterator[None]:
    """Inside the block, a run may choose its kernels; afterwards they are the caller's again, as in a notebook."""
    global _set_here
    before, mode = _set_here, torch.get_deterministic_debug_mode()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        yield
    finally:
        _set_here = before
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]


def accept_cublas(device: torch.device) -> None:
    """Let torch take cuBLAS's matrix products as deterministic. They are, since torch gives each stream its workspace:
    https://docs.nvidia.com/cuda/cublas/#results-reproducibility

    At the first product of a process, in any mode, torch looks for a variable that users are expected to set. While it
    is set, torch 2.11 parses it in each product, which takes ten times as long as launching a kernel.
    """
    if CUBLAS_VARIABLE in os.environ:
        return
    matrix = torch.ones(2, 2, device=device)
    os.environ[CUBLAS_VARIABLE] = ":4096:8"
    with _debug_mode(DEBUG_MODES[True]):
        try:
            matrix @ matrix
            if torch.version.hip is None:  # its workspace may be larger than that of the variable
                del os.environ[CUBLAS_VARIABLE]
                matrix @ matrix
        except RuntimeError:  # this torch looks for it at each product
            os.environ[CUBLAS_VARIABLE] = ":4096:8"


def fastest_kernels() -> AbstractContextManager[None]:
    """Without deterministic kernels, for whole numbers, whose sums do not depend on the order."""
    return _debug_mode(DEBUG_MODES[False]) if torch.are_deterministic_algorithms_enabled() else UNCHANGED


@contextmanager
def _debug_mode(mode: int) -> Iterator[None]:
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode(mode)
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
