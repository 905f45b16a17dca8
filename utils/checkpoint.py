"""Checkpoints: written beside the training, whole or not at all, and checked byte for byte before they are used.

A file is torch's zip format with a SHA-256 of everything before it as the zip's comment, so that ``torch.load`` reads
it as it is. torch itself checks nothing: a flipped byte would load in silence.
"""

import hashlib
import io
import os
import pickle
import re
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from utils.errors import CheckpointError

FILE = re.compile(r"step-(\d{8,})\.pth")
MARK = b"sha256:"
COMMENT = len(MARK) + 64
FORMAT = 1


def file_name(step: int) -> str:
    return f"step-{step:08d}.pth"


def step_files(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first."""
    found = [path for path in folder.glob("step-*.pth") if FILE.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.stem.removeprefix("step-")), reverse=True)


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
    """Write a temporary file, flush it to disk, rename it. Raises OSError or RuntimeError and leaves nothing behind."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            hashing = _Hashing(file)
            torch.save({"format": FORMAT, **state}, hashing)  # type: ignore[arg-type]
            file.seek(-2, os.SEEK_END)
            file.write(struct.pack("<H", COMMENT) + MARK + hashing.hash.hexdigest().encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read(path: Path) -> dict[str, Any]:
    """The state in a checkpoint. Raises CheckpointError if it is missing, damaged, foreign or carries code."""
    verify(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and plain values, and nothing of it was run; it is not one of ours"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
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


def newest_sound(folder: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest checkpoint of a folder that is whole; damaged ones are named and passed over. None if there is none.

    Raises CheckpointError if there are checkpoints and all of them are damaged.
    """
    damaged: list[str] = []
    for path in step_files(folder):
        try:
            return read(path)
        except CheckpointError as error:
            damaged.append(str(error))
            warn(f"{error}; falling back to the one before it")
    if damaged:
        raise CheckpointError(f"no checkpoint in {folder} can be used:\n  " + "\n  ".join(damaged))
    return None


class Checkpointer:
    """Keeps the newest checkpoints of a run and its best one; writes them in a thread of its own.

    keep_last: how many of the newest stay; None keeps all. The best one and the newest are never removed.
    before_commit: called in the thread before a checkpoint counts, to bring on disk what it refers to.
    warn: told of a save that failed; the run goes on and tries again at the next.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_last: int | None,
        warn: Callable[[str], None],
        before_commit: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.keep_last = folder, keep_last
        self.warn, self.before_commit = warn, before_commit
        self.failure: str | None = None
        self._thread: threading.Thread | None = None

    def save(self, step: int, state: dict[str, Any], *, best_step: int | None) -> None:
        """Copy the state and return; it is written while training goes on. Waits for an earlier save first."""
        self.wait()
        copied = snapshot(state)
        self._thread = threading.Thread(target=self._write, args=(step, copied, best_step), name="checkpoint")
        self._thread.start()

    def resume(self, step: int, *, best_step: int | None) -> None:
        """Go on from the checkpoint of a step: later ones, of a course that is left, are set aside, not removed."""
        later = [path for path in step_files(self.folder) if path.name > file_name(step)]
        if later:
            aside = self.folder / "set-aside"
            aside.mkdir(exist_ok=True)
            for path in later:
                path.replace(aside / path.name)
            self.warn(f"{len(later)} checkpoints after step {step} are set aside in {aside}")
        _point(self.folder / "last.pth", self.folder / file_name(step))
        if best_step is not None:
            _point(self.folder / "best.pth", self.folder / file_name(best_step))

    def wait(self) -> None:
        """Wait until the last save is on disk, and report it if it failed."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if self.failure:
            self.warn(f"{self.failure}; the older checkpoints are whole, and the next save is tried again")

    def _write(self, step: int, state: dict[str, Any], best_step: int | None) -> None:
        path = self.folder / file_name(step)
        try:
            self.before_commit()
            write(path, state)
            _point(self.folder / "last.pth", path)
            if best_step is not None:
                _point(self.folder / "best.pth", self.folder / file_name(best_step))
            self._prune(best_step)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
            self.failure = f"checkpoint {path} could not be written: {error}"
        else:
            self.failure = None

    def _prune(self, best_step: int | None) -> None:
        if self.keep_last is None:
            return
        for path in step_files(self.folder)[self.keep_last :]:
            if best_step is None or path.name != file_name(best_step):
                path.unlink(missing_ok=True)


def _point(name: Path, target: Path) -> None:
    """Make a name stand for a checkpoint, at once: a hard link, so that it outlives the pruning of its target."""
    if not target.exists() or (name.exists() and name.samefile(target)):
        return
    temporary = name.with_name(f".{name.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(target, temporary)
    except OSError:  # a file system without hard links
        temporary.write_bytes(target.read_bytes())
    temporary.replace(name)
    sync_folder(name.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder on disk, so that a rename outlives a power cut. Windows cannot and need not."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
