"""Files that survive a kill at any moment: with the old content or the new, never a part of it."""

import contextlib
import errno
import json
import os
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from utils.streams import say_error

UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of file systems that have no locks, or cannot flush a folder, as some of networks and virtual machines."""

FileSignature = tuple[int, int, int]
"""Size in bytes; last change of the content (mtime) and of anything (ctime), in nanoseconds."""


def file_signature(status: os.stat_result) -> FileSignature:
    """A value that differs if the file was changed, replaced or renamed, even if its old mtime was restored."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Write a file that replaces this path once it is on disk. Raises OSError, and then leaves nothing behind."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        replace(temporary, path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def replace(source: Path, target: Path) -> None:
    """Rename a file over another, atomically.

    Windows refuses this while a process has either open, if only to read it or to scan it for viruses: then it is tried
    again for a second.
    """
    for seconds in (0.01, 0.05, 0.2, 0.7) if os.name == "nt" else ():
        try:
            source.replace(target)
            return
        except PermissionError:
            time.sleep(seconds)
    source.replace(target)


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
        replace(temporary, name)
        sync_folder(name.parent)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises OSError for anything else: opening a named pipe would block forever."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(handle, "rb")


def read_text(path: Path) -> str:
    """The text of a regular file in UTF-8. Raises OSError, or ValueError if it is not UTF-8."""
    with open_regular(path) as file:
        return file.read().decode()


def read_json_object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if the file is missing, cannot be read or holds something else."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        value = json.loads(read_text(path))
        return value if isinstance(value, dict) else None
    return None


def size(path: Path) -> int:
    """Size of a file in bytes; 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


def sync_folder(folder: Path) -> None:
    """Flush a folder to disk, so that a rename survives a power cut. Windows cannot, and need not; some file systems
    cannot either.
    """
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(handle)


def lock_file(file: IO[Any]) -> bool:
    """Lock an open file, or close it and return False if another process holds the lock.

    The system releases the lock when the process ends, so none becomes stale. It is a POSIX lock, which worker
    processes do not inherit: they can outlive a killed parent by some seconds. Raises OSError, with one of the numbers
    UNSUPPORTED on a file system without locks.
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
    """An append-only file that can be truncated to an earlier length.

    Data that the disk does not accept stays in memory until the next append, so a full disk neither ends the training
    nor leaves half a line behind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written = False
        self._waiting = bytearray()
        self._lock = threading.Lock()  # the thread that writes checkpoints calls sync

    def append(self, data: bytes) -> None:
        with self._lock:
            self._waiting += data
            with contextlib.suppress(OSError):  # the next checkpoint tries again, and reports it
                self._write()

    def length(self) -> int:
        """Bytes appended so far, whether on disk or not."""
        with self._lock:
            return size(self.path) + len(self._waiting)

    def truncate(self, length: int) -> None:
        """Remove everything after this length in bytes."""
        self._waiting.clear()
        if size(self.path) > length:
            os.truncate(self.path, length)

    def sync(self) -> None:
        """Flush everything to disk. Raises OSError if that fails."""
        with self._lock:
            self._write()
            if self.path.exists():
                with self.path.open("ab") as file:  # Windows flushes only what may be written
                    os.fsync(file.fileno())
                sync_folder(self.path.parent)

    def _write(self) -> None:
        if not self._waiting:
            return
        if self._written and self.path.parent.is_dir() and not self.path.exists():
            say_error(f"{self.path} is gone; from now on, the run logs into a new file of this name")
        with self.path.open("ab", buffering=0) as file:  # each time: the file may have been moved
            self._written = True
            while self._waiting:
                del self._waiting[: file.write(self._waiting)]
