"""An array on disk, read row by row on request, for data larger than memory."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from utils.errors import DataError, os_errors_as
from utils.files import FileSignature, file_signature


@dataclass(frozen=True, eq=False)
class ArrayFile:
    """An array in a file written by ``np.save``; takes the place of a tensor in a ``TensorSource``.

    The file is mapped into memory, and the system reads what is asked for. All rows of a batch are announced to it in
    advance, which reads them several times as fast. Worker processes are sent the path, not the data.
    """

    path: Path
    array: npt.NDArray[Any]
    """The mapped file, (N, ...)."""
    offset: int
    """Bytes before the first row."""
    file_signature: FileSignature
    """Size and times of the file when first opened; a replaced file is rejected."""

    @classmethod
    def open(cls, path: Path, expected: FileSignature | None = None) -> "ArrayFile":
        """Raises DataError if the file has no such array, or another signature than expected."""
        try:
            with os_errors_as(DataError, f"{path} cannot be read"):
                signature = file_signature(path.stat())
                mapped = np.lib.format.open_memmap(path, mode="r")
            torch.from_numpy(np.empty(0, mapped.dtype))  # torch has this dtype
        except (ValueError, TypeError) as error:
            raise DataError(f"{path} is not an array of numbers written by np.save: {error}") from error
        if not mapped.shape or not mapped.flags.c_contiguous:
            raise DataError(
                f"{path} does not have contiguous rows; write it with np.save(path, np.ascontiguousarray(a))"
            )
        if expected not in (None, signature):
            raise DataError(f"{path} was replaced while in use; start the run again")
        return cls(path, np.asarray(mapped), mapped.offset, signature)

    def __reduce__(self) -> Any:
        return ArrayFile.open, (self.path, self.file_signature)

    def __len__(self) -> int:
        return len(self.array)

    def rows(self, indices: Tensor | slice) -> Tensor:
        """Read some rows, (B, ...). indices: int64 of shape (B,), or a slice."""
        if isinstance(indices, slice):
            return torch.from_numpy(self.array[indices].copy())
        if hasattr(os, "posix_fadvise"):
            row_bytes = self.array.strides[0]
            with suppress(OSError), self.path.open("rb", buffering=0) as file:
                for start in (self.offset + indices * row_bytes).tolist():
                    os.posix_fadvise(file.fileno(), start, row_bytes, os.POSIX_FADV_WILLNEED)
        return torch.from_numpy(self.array.take(indices.numpy(), axis=0))
