"""An array on disk, read row by row on request, for data larger than memory."""

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

from utils.errors import DataError, os_errors_as
from utils.files import FileSignature, file_signature

CHUNK = 2**22  # bytes to read, then hash while they are still in the CPU cache


@dataclass(frozen=True)
class ArrayFile:
    """An array in a file written by ``np.save``; takes the place of a tensor in a ``TensorSource``.

    Reads by position instead of mapping the file: the process needs memory for one batch, and a file that shrinks
    raises an error instead of a crash. All rows of a batch are announced to the system in advance, which reads them
    several times as fast. Worker processes are sent the path, not the data.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    """Bytes before the first row."""
    row_bytes: int
    file_signature: FileSignature
    """Size and times of the file when first opened; a replaced file is rejected."""

    @classmethod
    def open(cls, path: Path) -> "ArrayFile":
        """Raises DataError if the file has no such array."""
        try:
            with os_errors_as(DataError, f"{path} cannot be read"), path.open("rb") as file:
                shape, fortran, dtype = read_header(file)
                offset = file.tell()
                signature = file_signature(os.fstat(file.fileno()))
            torch_dtype = torch.from_numpy(np.empty(0, dtype)).dtype
        except (ValueError, TypeError) as error:
            raise DataError(f"{path} is not an array of numbers written by np.save: {error}") from error
        row_bytes = int(np.prod(shape[1:], dtype=object)) * dtype.itemsize
        if not shape or (fortran and len(shape) > 1):
            raise DataError(
                f"{path} does not have contiguous rows; write it with np.save(path, np.ascontiguousarray(a))"
            )
        file_bytes = offset + shape[0] * row_bytes
        if signature[0] < file_bytes:
            raise DataError(f"{path} is truncated: {signature[0]:,} bytes of {file_bytes:,}")
        array = cls(path, shape, torch_dtype, offset, row_bytes, signature)
        array._handle  # noqa: B018  (open now, before the file can be replaced)
        return array

    def __len__(self) -> int:
        return self.shape[0]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_handle"}  # each worker opens its own

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
        """Fill (n,) bytes from a position in the file. Raises DataError if the file ends early."""
        while len(data):
            count = _read_at(self._handle, data, position)
            if not count:
                raise DataError(f"{self.path} was truncated while being read")
            data = data[count:]
            position += count

    @functools.cached_property
    def _handle(self) -> int:
        """This process's file handle."""
        with os_errors_as(DataError, f"{self.path} cannot be read"):
            handle = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, handle)
        if file_signature(os.fstat(handle)) != self.file_signature:
            raise DataError(f"{self.path} was replaced while in use; start the run again")
        if hasattr(os, "posix_fadvise"):  # read-ahead is useless for random rows
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_RANDOM)
        return handle


def read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the array is in Fortran order, and dtype, from the file's header. Raises ValueError."""
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
