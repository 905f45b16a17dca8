"""Checkpoints: written beside the training, whole or not at all, and checked byte for byte before they are used.

A file is torch's zip format with a SHA-256 of everything before it as the zip's comment, so that ``torch.load`` reads
it as it is. torch itself checks nothing: a flipped byte would load in silence. The large tensors may lie in a folder
beside the file, written by all processes: utils/checkpoint/sharded.py.
"""

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

from utils.distributed.process_group import ProcessGroup
from utils.errors import CheckpointError
from utils.files import atomic_write

TensorAllocator = Callable[[tuple[Any, ...], Tensor], Tensor]
"""Where a tensor is read to, by its keys in the state and a tensor on device "meta" that shows its shape, type and
strides. Given back itself, it is not read."""

FILE = re.compile(r"step-(\d{8,})\.pth")
DATA = re.compile(r"(step-\d{8,})(-\d+)?")
MARK = b"sha256:"
COMMENT = len(MARK) + 64
FORMAT = 1


def file_name(step: int) -> str:
    return f"step-{step:08d}.pth"


def step_files(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first."""
    found = [path for path in folder.glob("step-*.pth") if FILE.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def snapshot(state: Any) -> Any:
    """A copy of a state on the CPU, which later training steps do not touch."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: snapshot(item) for key, item in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(map(snapshot, state))
    return state


class _Hashing(io.BufferedIOBase):
    """A file that keeps the SHA-256 of what is written, but for the last two bytes (the zip's comment length)."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.hash, self.tail = file, hashlib.sha256(), b""

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


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all. Raises OSError or RuntimeError and leaves nothing behind."""
    with atomic_write(path) as file:
        hashing = _Hashing(file)
        torch.save({"format": FORMAT, **state}, hashing)  # type: ignore[arg-type]
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack("<H", COMMENT) + MARK + hashing.hash.hexdigest().encode())


def read(path: Path, place: TensorAllocator | None = None) -> dict[str, Any]:
    """The state in a checkpoint. Raises CheckpointError if it is missing, damaged, foreign or carries code.

    place: for the large tensors of a sharded one, of which a process may want only its part; None reads all to the CPU.
    """
    verify(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(state, dict) and "sharded" in state:
            from utils.checkpoint.sharded import filled  # which imports what takes seconds

            state = filled(path, state, place)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and plain values, and nothing of it was run; it is not one of ours"
        ) from error
    except Exception as error:  # whatever somebody may have put there
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or "model" not in state:
        raise CheckpointError(f"{path} is no checkpoint of this project")
    return state


def verify(path: Path) -> None:
    """Read a file once and compare its SHA-256. Raises CheckpointError if a single byte of it is not as written."""
    hashed = hashlib.sha256()
    try:
        with path.open("rb") as file:
            left = path.stat().st_size - COMMENT - 2
            while left > 0 and (chunk := file.read(min(left, 1 << 20))):
                hashed.update(chunk)
                left -= len(chunk)
            comment = file.read()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if comment != struct.pack("<H", COMMENT) + MARK + hashed.hexdigest().encode():
        raise CheckpointError(f"{path} is damaged, or was not written by this project")


def read_together(path: Path, processes: ProcessGroup, place: TensorAllocator | None = None) -> dict[str, Any]:
    """What ``read`` gives, to each of these processes. If one of them cannot read its part, none of them does."""
    state, problem = dict[str, Any](), ""
    try:
        state = read(path, place)
    except CheckpointError as error:
        problem = str(error)
    problems = list(filter(None, processes.all_gather(problem)))
    if problems:
        raise CheckpointError(problems[0])
    return state


def newest_sound(
    folder: Path, warn: Callable[[str], None], processes: ProcessGroup, place: TensorAllocator | None = None
) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a folder that is whole; damaged ones are named and passed over. None if there is none.

    All processes must ask. Raises CheckpointError if there are checkpoints and all of them are damaged.
    """
    damaged: list[str] = []
    for path in processes.broadcast_object(lambda: list(_candidates(folder))):
        try:
            state = read_together(path, processes, place)
        except CheckpointError as error:
            damaged.append(str(error))
            warn(f"{error}; falling back to an older one")
            continue
        own = folder / file_name(state["progress"]["steps"])
        if not (own.exists() and own.samefile(path)):
            try:
                verify(own)
            except CheckpointError as error:
                warn(f"{error}; {path.name} stands for the same checkpoint")
        return path, state
    if damaged:
        raise CheckpointError(f"no checkpoint in {folder} can be used:\n  " + "\n  ".join(damaged))
    return None


def _candidates(folder: Path) -> Iterator[Path]:
    """The checkpoints of a folder, newest first. last.pth and best.pth count where the file they stand for is gone."""
    files = step_files(folder)

    def alone(path: Path) -> bool:
        return path.is_file() and not any(path.samefile(file) for file in files)

    last, best = folder / "last.pth", folder / "best.pth"
    if alone(last):
        yield last
    yield from files
    if alone(best):
        yield best
