"""The format of a checkpoint file: written whole or not at all, and checked byte for byte before it is used.

A file is torch's zip format with a SHA-256 of everything before it as the zip's comment, so that ``torch.load`` reads
it as it is. torch itself checks nothing: a flipped byte would load in silence.
"""

import contextlib
import errno
import hashlib
import io
import os
import pickle
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from utils.errors import CheckpointError
from utils.files import atomic_write, open_regular
from utils.tree import Keys, map_tensors

STEP_FILE = re.compile(r"step-(\d{8,})\.pth")
DATA = re.compile(r"(step-\d{8,})(-\d+)?")
"""The folder with the tensors of a sharded checkpoint; group 1 is the stem of its step file."""

TensorAllocator = Callable[[Keys, Tensor], Tensor]
"""Allocates the memory that a tensor of a sharded checkpoint is read into. Takes its keys in the state and a tensor on
device "meta" with its shape, dtype and strides; where it returns a tensor on device "meta", nothing is read."""

MARK = b"sha256:"
COMMENT_LENGTH = len(MARK) + 64
FORMAT = 1


def file_name(step: int) -> str:
    return f"step-{step:08d}.pth"


def step_files(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first."""
    files = [path for path in folder.glob("step-*.pth") if STEP_FILE.fullmatch(path.name)]
    return sorted(files, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def snapshot(state: Any) -> Any:
    """A copy of a state on the CPU, which later training steps do not touch."""
    return map_tensors(lambda tensor: tensor.detach().to("cpu", copy=True), state)


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all. Raises OSError or RuntimeError and leaves nothing behind."""
    with atomic_write(path) as file:
        hashing = _HashingFile(file)
        torch.save({"format": FORMAT, **state}, hashing)  # type: ignore[arg-type]
        file.seek(-2, os.SEEK_END)
        file.write(_comment(hashing.hash))
        file.flush()
        _read_back(file, path)


def _read_back(file: BinaryIO, path: Path) -> None:
    """Raise OSError if the disk does not return what was written, before it replaces an earlier checkpoint."""
    os.fsync(file.fileno())
    if hasattr(os, "posix_fadvise"):  # or the bytes would come from the memory that was just written
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        verify(Path(file.name))
    except CheckpointError as error:
        raise OSError(errno.EIO, "the disk returned other bytes than were written", str(path)) from error


class _HashingFile(io.BufferedIOBase):
    """Keeps the SHA-256 of what is written, except for the last two bytes (the length of the zip's comment)."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.hash = hashlib.sha256()
        self.tail = b""

    def write(self, data: Any) -> int:
        self.file.write(data)
        if len(data) >= 2:
            self.hash.update(self.tail)
            self.hash.update(memoryview(data)[:-2])
            self.tail = bytes(memoryview(data)[-2:])
        else:
            tail = self.tail + data
            self.hash.update(tail[:-2])
            self.tail = tail[-2:]
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def read_file(path: Path) -> dict[str, Any]:
    """The state in a checkpoint file; the large tensors of a sharded checkpoint are on device "meta".

    Raises CheckpointError if the file is missing, damaged, written by something else, or carries code.
    """
    verify(path)
    with as_checkpoint_errors(path):
        state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise CheckpointError(f"{path} is not a checkpoint written by this project")
    if type(state.get("format")) is not int or state["format"] != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint written by this project")
    return state


@contextlib.contextmanager
def as_checkpoint_errors(path: Path) -> Iterator[None]:
    """Turn any error from reading an untrusted file into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and plain values, and no code in it was run; "
            "it was not written by this project"
        ) from error
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def verify(path: Path) -> None:
    """Read a file once and compare its SHA-256. Raises CheckpointError if a single byte of it is not as written."""
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            left = os.fstat(file.fileno()).st_size - COMMENT_LENGTH - 2
            while left > 0 and (chunk := file.read(min(left, 1 << 20))):
                digest.update(chunk)
                left -= len(chunk)
            comment = file.read()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if comment != _comment(digest):
        raise CheckpointError(f"{path} is damaged, or was not written by this project")


def _comment(digest: Any) -> bytes:
    """The end of the file: the length of the zip's comment, and the comment."""
    return struct.pack("<H", COMMENT_LENGTH) + MARK + str(digest.hexdigest()).encode()
