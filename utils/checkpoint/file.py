"""The format of a checkpoint file: written atomically, and verified byte for byte before use.

A file is torch's zip format, with the SHA-256 of everything before it as the zip comment; ``torch.load`` can read it.
torch itself verifies nothing: a flipped byte would load silently.
"""

import contextlib
import errno
import hashlib
import io
import os
import pickle
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from utils.errors import CheckpointError, os_errors_as
from utils.files import atomic_write, open_regular
from utils.tree import Keys, map_tensors, size_of

STEP_FILE = re.compile(r"step-(\d{8,})\.pth")
DATA = re.compile(r"(step-\d{8,})-\d+-\d+")
"""The folder with the tensors of a sharded checkpoint; group 1 is the stem of its step file."""

TensorAllocator = Callable[[Keys, Tensor], Tensor]
"""Allocates memory for a tensor of a sharded checkpoint, given its keys in the state and a tensor on device "meta" with
its shape, dtype and strides. Returns a tensor on device "meta" to skip it."""

MARK = b"sha256:"
COMMENT_LENGTH = len(MARK) + 64
FORMAT = 1
SMALL = 2**24
"""Bytes of a state that is serialized at once, in about 10 ms. A thread doing so would take some hundred turns at the
interpreter, and a training step would wait for each: with 10 MB in 200 tensors, 14 ms in all instead of 8."""


def file_name(step: int) -> str:
    return f"step-{step:08d}.pth"


def step_files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    files = [path for path in folder.glob("step-*.pth") if STEP_FILE.fullmatch(path.name)]
    return sorted(files, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def is_copy(path: Path) -> bool:
    """Whether last.pth or best.pth exists and is not the same file as a step file, as in a copied folder."""
    return path.is_file() and not any(path.samefile(file) for file in step_files(path.parent))


def snapshot(state: Any) -> Any:
    """A copy of a state on the CPU, unaffected by later training steps."""
    return map_tensors(lambda tensor: tensor.detach().to("cpu", copy=True), state)


def staged(state: dict[str, Any]) -> dict[str, Any] | bytes:
    """What ``write`` takes, unaffected by later training steps: a copy, or the content of the file of a small state."""
    copied: dict[str, Any] = snapshot(state)
    if size_of(copied) > SMALL:
        return copied
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **copied}, buffer)
    return buffer.getvalue()


def write(path: Path, state: dict[str, Any] | bytes) -> None:
    """Write a checkpoint atomically. Raises OSError or RuntimeError, and then leaves nothing behind.

    state: or its ``staged`` form.
    """
    with atomic_write(path) as file:
        if isinstance(state, bytes):
            file.write(state)
        else:
            torch.save({"format": FORMAT, **state}, file)
        end = file.seek(-2, os.SEEK_END)  # the zip comment is empty so far
        with open_regular(Path(file.name)) as written:
            file.write(_comment(written, end))
        file.flush()
        _read_back(file, path)


def _read_back(file: BinaryIO, path: Path) -> None:
    """Raise OSError unless the disk returns what was written, before the file replaces an earlier checkpoint."""
    os.fsync(file.fileno())
    if hasattr(os, "posix_fadvise"):  # otherwise the bytes would come from the page cache
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        verify(Path(file.name))
    except CheckpointError as error:
        raise OSError(errno.EIO, "the disk did not return what was written", str(path)) from error


def read_file(path: Path) -> dict[str, Any]:
    """The state in a checkpoint file; the large tensors of a sharded checkpoint are on device "meta".

    Raises CheckpointError if the file is missing, damaged, not written by this project, or contains code.
    """
    verify(path)
    with as_checkpoint_errors(path), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Validating sparse tensor invariants")  # as it should
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not isinstance(state.get("model"), dict) or state.get("format") != FORMAT:
            raise CheckpointError(f"{path} is not a checkpoint written by this project")
    return state


@contextlib.contextmanager
def as_checkpoint_errors(path: Path) -> Iterator[None]:
    """Convert any error from reading an untrusted file into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} contains more than tensors and plain values, so this project did not write it; "
            "no code in it was run"
        ) from error
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def verify(path: Path) -> None:
    """Read a file once and compare its SHA-256. Raises CheckpointError if any byte has changed since it was written."""
    with os_errors_as(CheckpointError, f"{path} cannot be read"), open_regular(path) as file:
        expected = _comment(file, os.fstat(file.fileno()).st_size - COMMENT_LENGTH - 2)
        if file.read() != expected:
            raise CheckpointError(f"{path} is damaged, or was not written by this project")


def _comment(file: BinaryIO, length: int) -> bytes:
    """The end of a file that begins with these bytes: the length of the zip comment, and the comment."""
    digest = hashlib.sha256()
    while length > 0 and (chunk := file.read(min(length, 1 << 20))):
        digest.update(chunk)
        length -= len(chunk)
    return struct.pack("<H", COMMENT_LENGTH) + MARK + digest.hexdigest().encode()
