"""An array on disk of which only the requested rows are read, for data that are larger than memory."""

import functools
import hashlib
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from utils.errors import DataError
from utils.files import FileSignature, file_signature

CHUNK = 2**22  # bytes that are read, then hashed while they are still in the processor's cache


@dataclass(frozen=True)
class ArrayFile:
    """The array in a file of ``np.save``; takes the place of a tensor in a ``TensorSource``.

    Reads by position instead of mapping the file: the process needs the memory of a batch, and a file that shrinks is
    an error, not a crash. All rows of a batch are announced to the system at once, which reads them several times as
    fast as one after the other. Worker processes are sent the path, not the data.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    """Bytes before the first row."""
    row_bytes: int
    file_signature: FileSignature
    """Size and times of the file when it was first opened; a file that replaced it is refused."""

    @classmethod
    def open(cls, path: Path, *, row_shape: tuple[int, ...] | None = None) -> "ArrayFile":
        """row_shape: the shape that a row must have; None: any. Raises DataError if the file has no such array."""
        try:
            with path.open("rb") as file:
                shape, fortran, dtype = _header(file)
                offset = file.tell()
                signature = file_signature(os.fstat(file.fileno()))
            torch_dtype = torch.from_numpy(np.empty(0, dtype)).dtype
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError) as error:
            raise DataError(f"{path} is not an array of numbers written by np.save: {error}") from error
        row_bytes = int(np.prod(shape[1:], dtype=object)) * dtype.itemsize
        if not shape or (fortran and len(shape) > 1):
            raise DataError(
                f"{path} does not hold contiguous rows; write it with np.save(path, np.ascontiguousarray(a))"
            )
        if row_shape is not None and shape[1:] != row_shape:
            raise DataError(f"{path} holds rows of shape {shape[1:]}, not {row_shape}")
        file_bytes = offset + shape[0] * row_bytes
        if signature[0] < file_bytes:
            raise DataError(f"{path} is cut short: {signature[0]:,} bytes of {file_bytes:,}")
        array = cls(path, shape, torch_dtype, offset, row_bytes, signature)
        array._handle  # noqa: B018  (opened at once, before another file can replace it)
        return array

    def __len__(self) -> int:
        return self.shape[0]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_handle"}  # a worker opens it itself

    def rows(self, indices: Tensor | slice) -> Tensor:
        """Read some rows, (B, ...). indices: int64 of shape (B,), or a slice. Raises IndexError, DataError."""
        if isinstance(indices, slice):
            start, stop, _ = indices.indices(len(self))
            data, content = self._empty(max(0, stop - start))
            self._fill(content.reshape(-1), self.offset + start * self.row_bytes)
            return data
        numbers = indices.tolist()
        if numbers and not 0 <= min(numbers) <= max(numbers) < len(self):
            raise IndexError(f"{self.path} has rows 0 to {len(self) - 1}, not {min(numbers)} to {max(numbers)}")
        starts = [self.offset + number * self.row_bytes for number in numbers]
        if hasattr(os, "posix_fadvise"):
            for start in starts:
                os.posix_fadvise(self._handle, start, self.row_bytes, os.POSIX_FADV_WILLNEED)
        data, content = self._empty(len(numbers))
        for row, start in zip(content, starts, strict=True):
            self._fill(row, start)
        return data

    def read(self) -> tuple[Tensor, str]:
        """Read the whole array, (N, ...), and the SHA-256 of its bytes. Raises DataError."""
        data, content = self._empty(len(self))
        all_bytes = content.reshape(-1)
        digest = hashlib.sha256()
        for start in range(0, len(all_bytes), CHUNK):
            chunk = all_bytes[start : start + CHUNK]
            self._fill(chunk, self.offset + start)
            digest.update(chunk.data)
        return data, digest.hexdigest()

    def _empty(self, count: int) -> tuple[Tensor, npt.NDArray[np.uint8]]:
        """Uninitialised rows, (count, ...), and a view of their bytes, (count, row_bytes)."""
        data = torch.empty(count, *self.shape[1:], dtype=self.dtype)
        return data, data.view(torch.uint8).view(count, self.row_bytes).numpy()

    def _fill(self, data: npt.NDArray[np.uint8], position: int) -> None:
        """Fill (n,) bytes from a position in the file. Raises DataError if the file ends before."""
        while len(data):
            count = _read_at(self._handle, data, position)
            if not count:
                raise DataError(f"{self.path} was cut short while it was read")
            data = data[count:]
            position += count

    @functools.cached_property
    def _handle(self) -> int:
        """The file's handle in this process."""
        try:
            handle = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}") from error
        weakref.finalize(self, os.close, handle)
        if file_signature(os.fstat(handle)) != self.file_signature:
            raise DataError(f"{self.path} was replaced while it was in use; start the run again")
        if hasattr(os, "posix_fadvise"):  # reading ahead of a random row brings what is not needed
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_RANDOM)
        return handle


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the array is in Fortran order, and dtype, from the header at the start. Raises ValueError."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def _read_at(handle: int, data: npt.NDArray[np.uint8], position: int) -> int:
    """Read into (n,) bytes from a position. Returns the number of bytes read."""
    if hasattr(os, "preadv"):
        return os.preadv(handle, [data.data], position)
    # systems without preadv do not fork, so no other process moves the position
    os.lseek(handle, position, os.SEEK_SET)
    read = os.read(handle, data.nbytes)
    data[: len(read)] = np.frombuffer(read, np.uint8)
    return len(read)
