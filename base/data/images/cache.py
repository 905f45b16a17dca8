"""Images decoded once and stored next to the data as one array, which is used until the data changes."""

import contextlib
import hashlib
import os
import time
import zipfile
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from base.array_file import ArrayFile
from utils.errors import DataError
from utils.files import atomic_write, file_signature, lock_file
from utils.paths import display_path
from utils.streams import say_error

Pixels = npt.NDArray[np.uint8]


class Images(NamedTuple):
    pixels: Tensor | ArrayFile
    """uint8 of shape (N, H, W, 3)."""
    labels: Tensor
    """int64 of shape (N,)."""


class Decoded(NamedTuple):
    """Decoded images on their way into a cache."""

    shape: tuple[int, int, int, int]
    """(N, H, W, 3)."""
    labels: npt.NDArray[np.int64]
    chunks: Generator[Pixels, None, None]
    """The images in order, in chunks of uint8 of shape (n, H, W, 3). Closing it ends the decoding processes."""


class ImageCache:
    """NAME.npy with the pixels, and NAME.npz with the labels, the origin of the pixels, and the signature of NAME.npy.

    made_from: a digest of everything that determines the images, from ``fingerprint``. A cache with another digest is
    ignored, and so is an array that was changed since it was written.
    """

    def __init__(self, folder: Path, name: str, made_from: str) -> None:
        self.pixels = folder / f"{name}.npy"
        self.notes = folder / f"{name}.npz"
        self.lock = folder / f".{name}.lock"
        self.made_from = made_from

    def load(self, *, in_memory: bool) -> Images | None:
        """The images; None without a valid cache. in_memory: read the pixels; otherwise they stay on disk."""
        unreadable = (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, DataError)
        with contextlib.suppress(*unreadable), self.notes.open("rb") as file, np.load(file) as notes:
            pixels = ArrayFile.open(self.pixels)
            signature = tuple(notes["file_signature"].tolist())
            if str(notes["made_from"]) == self.made_from and signature == pixels.file_signature:
                return Images(pixels.rows(slice(None)) if in_memory else pixels, torch.from_numpy(notes["labels"]))
        return None

    def keep(self, decode: Callable[[], Decoded], *, in_memory: bool) -> Images:
        """Write the images, unless another process has, and load them. On any error, no cache is left."""
        with self._locked():
            if self.load(in_memory=False) is None:
                self._write(decode())
        if (images := self.load(in_memory=in_memory)) is None:
            raise OSError("its content is not what was written; another run may be writing it")
        return images

    def _write(self, decoded: Decoded) -> None:
        self.notes.unlink(missing_ok=True)
        written = 0
        with atomic_write(self.pixels) as file, contextlib.closing(decoded.chunks):
            header = {"descr": "|u1", "fortran_order": False, "shape": decoded.shape}
            np.lib.format.write_array_header_1_0(file, header)
            for chunk in decoded.chunks:
                file.write(np.ascontiguousarray(chunk).data)
                written += len(chunk)
            assert written == decoded.shape[0] == len(decoded.labels)
        signature = np.array(file_signature(self.pixels.stat()))
        with atomic_write(self.notes) as file:  # written last: without it the array is ignored
            np.savez(file, labels=decoded.labels, made_from=self.made_from, file_signature=signature)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Allow one process at a time. Raises OSError if the folder cannot be written."""
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        waiting = False
        while not lock_file(file := self.lock.open("a")):
            if not waiting:
                say_error(f"waiting for another process, which is creating {display_path(self.pixels)}")
            waiting = True
            time.sleep(0.2)
        with file:
            yield


def files_below(folder: Path, on_error: Callable[[OSError], None] | None = None) -> list[str]:
    """The files below a folder, sorted by folder and name; hidden ones and links to a folder above are skipped.

    on_error: called for a folder that cannot be read, which is skipped too.
    """
    found = []
    for path, folders, names in os.walk(folder, onerror=on_error, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and not _leads_above(Path(path, name))]
        found += [(path, name) for name in names if not name.startswith(".")]
    return [f"{path}{os.sep}{name}" for path, name in sorted(found)]


def _leads_above(folder: Path) -> bool:
    """Whether this is a link to a folder that it is in, perhaps by way of other links."""
    if not folder.is_symlink():
        return False
    return folder.resolve() in {*folder.parent.resolve().parents, *(each.resolve() for each in folder.parents)}


def fingerprint(root: Path, files: Iterable[str], *parts: object) -> str:
    """A digest of some values and of the names, sizes and times of files below a folder, without their content."""
    digest = hashlib.sha256(ascii(parts).encode())
    for path in files:
        signature = None  # of a broken link
        with contextlib.suppress(OSError):
            signature = file_signature(os.stat(path))  # noqa: PTH116  (creating a Path takes longer)
        digest.update(ascii((path.removeprefix(str(root)), signature)).encode())
    return digest.hexdigest()
