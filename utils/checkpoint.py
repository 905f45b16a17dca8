"""Checkpoints: written beside the training, whole or not at all, and checked byte for byte before they are used.

A file is torch's zip format with a SHA-256 of everything before it as the zip's comment, so that ``torch.load`` reads
it as it is. torch itself checks nothing: a flipped byte would load in silence.
"""

import contextlib
import hashlib
import io
import os
import pickle
import re
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from utils.errors import CheckpointError
from utils.files import point, replacing

FILE = re.compile(r"step-(\d{8,})\.pth")
MARK = b"sha256:"
COMMENT = len(MARK) + 64
ASIDE = "set-aside"
FORMAT = 1


def file_name(step: int) -> str:
    return f"step-{step:08d}.pth"


def step_files(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first."""
    found = [path for path in folder.glob("step-*.pth") if FILE.fullmatch(path.name)]
    return sorted(found, key=_step, reverse=True)


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
    with replacing(path) as file:
        hashing = _Hashing(file)
        torch.save({"format": FORMAT, **state}, hashing)  # type: ignore[arg-type]
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack("<H", COMMENT) + MARK + hashing.hash.hexdigest().encode())


def read(path: Path) -> dict[str, Any]:
    """The state in a checkpoint. Raises CheckpointError if it is missing, damaged, foreign or carries code."""
    verify(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
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


def newest_sound(folder: Path, warn: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a folder that is whole; damaged ones are named and passed over. None if there is none.

    Raises CheckpointError if there are checkpoints and all of them are damaged.
    """
    damaged: list[str] = []
    for path in _candidates(folder):
        try:
            state = read(path)
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
        self.failure = None
        self._thread = threading.Thread(target=self._write, args=(step, copied, best_step), name="checkpoint")
        self._thread.start()

    def resume(self, source: Path, step: int, *, best_step: int | None) -> None:
        """Go on from a checkpoint, of a step: later ones, of a course that is left, are set aside, not removed."""
        own = self.folder / file_name(step)
        point(own, source)  # which may be last.pth, or a copy, where the file itself is gone
        # newest first: a kill in between leaves a run whose newest checkpoint still has all of its logs
        later = [path for path in step_files(self.folder) if _step(path) > step]
        for path in later:
            self._set_aside(path)
        if later:
            self.warn(f"{len(later)} checkpoints after step {step} are set aside in {self.folder / ASIDE}")
        point(self.folder / "last.pth", own)
        if best_step is not None:
            self._find_best(best_step)

    def wait(self) -> bool:
        """Wait until the last save is on disk, and report it if it failed. Whether it stands."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if self.failure:
                self.warn(f"{self.failure}; the older checkpoints are whole")
        return self.failure is None

    def _write(self, step: int, state: dict[str, Any], best_step: int | None) -> None:
        path = self.folder / file_name(step)
        try:
            self.folder.mkdir(exist_ok=True)
            self.before_commit()
            write(path, state)
            point(self.folder / "last.pth", path)
            if best_step is not None:
                point(self.folder / "best.pth", self.folder / file_name(best_step))
            self._prune(best_step)
        except Exception as error:  # of whatever kind: a checkpoint that is not there must not pass unseen
            self.failure = f"checkpoint {path} could not be written: {_reason(error)}"

    def _prune(self, best_step: int | None) -> None:
        if self.keep_last is None:
            return
        for path in step_files(self.folder)[self.keep_last :]:
            if best_step is None or path.name != file_name(best_step):
                path.unlink(missing_ok=True)

    def _find_best(self, step: int) -> None:
        """Let best.pth stand for the best checkpoint again, or for none where that one was not kept."""
        name, own = self.folder / "best.pth", self.folder / file_name(step)
        if not own.exists() and name.exists():
            with contextlib.suppress(CheckpointError):
                if read(name)["progress"]["steps"] == step:
                    point(own, name)
        if own.exists():
            point(name, own)
        elif name.exists():
            self._set_aside(name)
            self.warn(f"the best checkpoint so far, of step {step}, is not there; best.pth comes with the next best")

    def _set_aside(self, path: Path) -> None:
        aside = self.folder / ASIDE
        aside.mkdir(exist_ok=True)
        path.replace(aside / path.name)


class NoCheckpoints(Checkpointer):
    """For a process that leaves the writing to another one."""

    def save(self, step: int, state: dict[str, Any], *, best_step: int | None) -> None:
        pass

    def resume(self, source: Path, step: int, *, best_step: int | None) -> None:
        pass


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _reason(error: BaseException) -> str:
    """Why a write failed. torch wraps what the system said, a full disk say, into an error of its own."""
    while error.__context__ is not None and not isinstance(error, OSError):
        error = error.__context__
    return str(error).partition("\n")[0]
