"""Files that a kill at any moment leaves whole: as they were, or as they were to be."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

Stamp = tuple[int, int, int]
"""Size, time of the last change of the content, and of the last change of anything, in nanoseconds."""


def file_signature(status: os.stat_result) -> Stamp:
    """What differs when a file was changed, exchanged or renamed, even where its old time was put back."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Write a file beside this path, which takes its name when it is on the disk. Raises OSError, leaving nothing."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def link(name: Path, target: Path) -> None:
    """Make a name stand for a file, at once: a hard link, so that it outlives the removal of the other name."""
    if not target.exists() or (name.exists() and name.samefile(target)):
        return
    temporary = name.with_name(f".{name.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(target, temporary)
    except OSError:  # a file system without hard links
        with atomic_write(name) as file:
            file.write(target.read_bytes())
    else:
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


def lock_file(file: IO[str]) -> bool:
    """Lock an open file, or close it if somebody else has.

    The system lets go when the process ends, so that no stale lock is left. It is a POSIX lock, which worker processes
    do not inherit: they live on for some seconds when their parent is killed.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        return False
    return True


class LogFile:
    """A file that only grows, and can be cut back to a length it had.

    What the disk does not take stays in memory and is tried again with what comes next, so that a full disk neither
    ends the training nor leaves half a line behind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: int | None = None
        self._handle: int | None = None  # kept open: to open a file takes longer than to write a line
        self._waiting = bytearray()
        self._lock = threading.Lock()  # the thread that writes checkpoints calls sync

    def append(self, data: bytes) -> None:
        with self._lock:
            self._waiting += data
            with contextlib.suppress(OSError):  # the next checkpoint tries again, and tells
                self._write()

    def length(self) -> int:
        """Bytes of all that was appended, on the disk or not."""
        with self._lock:
            return self._on_disk() + len(self._waiting)

    def truncate(self, length: int) -> None:
        """Take back what was appended after the file had this length."""
        self.close()
        self._waiting.clear()
        self._written = None
        if self._on_disk() > length:
            os.truncate(self.path, length)
            self._written = length

    def sync(self) -> None:
        """Bring everything on disk. Raises OSError if that fails."""
        with self._lock:
            self._write()
            if self.path.exists():
                with self.path.open("rb") as file:
                    os.fsync(file.fileno())
                sync_folder(self.path.parent)

    def close(self) -> None:
        """Let go of the file; what is appended later opens it again."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    __del__ = close  # a run ends in many ways

    def _write(self) -> None:
        if not self._waiting:
            return
        if self._handle is None:
            self._handle = os.open(
                self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666
            )
            self._written = min(self._on_disk(), os.fstat(self._handle).st_size)
            os.ftruncate(self._handle, self._written)  # what a write that failed has left
        try:
            while self._waiting:
                count = os.write(self._handle, self._waiting)
                self._written = self._on_disk() + count
                del self._waiting[:count]
        except OSError:
            self.close()
            raise

    def _on_disk(self) -> int:
        if self._written is None:
            self._written = self.path.stat().st_size if self.path.exists() else 0
        return self._written
