"""Files that survive a kill at any moment: with the old content or the new one, never with a part of it."""

import contextlib
import errno
import os
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

FileSignature = tuple[int, int, int]
"""Size in bytes, and the times of the last change of the content (mtime) and of anything (ctime), in nanoseconds."""


def file_signature(status: os.stat_result) -> FileSignature:
    """Differs when a file was changed, replaced or renamed, even where its old mtime was restored."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Write a file that replaces this path once it is on the disk. Raises OSError and leaves nothing behind."""
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
    """Make a name point to a file, atomically: a hard link, so that it survives the removal of the other name."""
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


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read it. Raises OSError for anything else: to open a named pipe would wait forever."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(handle, "rb")


def read_text(path: Path) -> str:
    """The text of a regular file in UTF-8. Raises OSError, or ValueError if it is something else."""
    with open_regular(path) as file:
        return file.read().decode()


def size(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def ends_with_newline(path: Path) -> bool:
    """Whether a line can be appended to a file as it is: also if it is empty or not there."""
    if not size(path):
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def sync_folder(folder: Path) -> None:
    """Flush a folder to disk, so that a rename survives a power cut. Windows cannot, and does not need it."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock_file(file: IO[str]) -> bool:
    """Lock an open file, or close it and return False if another process holds the lock.

    The system releases it when the process ends, so that no stale lock is left. It is a POSIX lock, which worker
    processes do not inherit: they outlive a killed parent by some seconds.
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
    """A file that is appended to, and can be truncated to an earlier length.

    What the disk does not take stays in memory and is written with the next append, so that a full disk neither
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
            with contextlib.suppress(OSError):  # the next checkpoint tries again, and reports it
                self._write()

    def length(self) -> int:
        """Bytes appended so far, on the disk or not."""
        with self._lock:
            return self._on_disk() + len(self._waiting)

    def truncate(self, length: int) -> None:
        """Remove what was appended after the file had this length, in bytes."""
        self.close()
        self._waiting.clear()
        self._written = None
        if self._on_disk() > length:
            os.truncate(self.path, length)
            self._written = length

    def sync(self) -> None:
        """Flush everything to disk. Raises OSError if that fails."""
        with self._lock:
            self._write()
            if self.path.exists():
                with self.path.open("rb") as file:
                    os.fsync(file.fileno())
                sync_folder(self.path.parent)

    def close(self) -> None:
        """Close the file; a later append opens it again."""
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
            self._written = size(self.path)
        return self._written
