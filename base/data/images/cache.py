"""Images decoded once and kept beside the data as one array, for as long as they are those of the data."""

import contextlib
import hashlib
import os
import sys
import time
import zipfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from base.array_file import ArrayFile
from utils.errors import DataError
from utils.files import atomic_write, file_signature, lock_file
from utils.paths import display_path

Pixels = npt.NDArray[np.uint8]


class Images(NamedTuple):
    pixels: Tensor | ArrayFile
    """uint8 of shape (N, H, W, 3)."""
    labels: Tensor
    """int64 of shape (N,)."""


class Decoded(NamedTuple):
    """Images on their way into a cache."""

    shape: tuple[int, int, int, int]
    """(N, H, W, 3)."""
    labels: npt.NDArray[np.int64]
    chunks: Generator[Pixels, None, None]
    """The images in their order, some at a time: uint8 of shape (n, H, W, 3). Closing it ends what decodes them."""


class ImageCache:
    """NAME.npy, the pixels, and NAME.npz: the labels, what the pixels were made from, their SHA-256.

    made_from: a digest of everything that the images follow from, as ``fingerprint`` gives it. What was made from
    anything else is passed over, and so is an array that is not, or no longer, the one that was written.
    """

    def __init__(self, folder: Path, name: str, made_from: str) -> None:
        self.pixels, self.notes, self.lock = folder / f"{name}.npy", folder / f"{name}.npz", folder / f".{name}.lock"
        self.made_from = made_from

    def load(self, *, in_memory: bool) -> Images | None:
        """The images, if they are there. in_memory: read and compared with their checksum; else left on the disk."""
        try:
            with self.notes.open("rb") as file, np.load(file) as notes:
                if str(notes["made_from"]) != self.made_from:
                    return None
                labels, digest, written = (
                    torch.from_numpy(notes["labels"]),
                    str(notes["sha256"]),
                    notes["file_signature"],
                )
            array = ArrayFile.open(self.pixels)
            if array.file_signature != tuple(written.tolist()) or len(array) != len(labels):
                return None
            if not in_memory:
                return Images(array, labels)
            pixels, found = array.read()
        except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, DataError):
            return None
        return Images(pixels, labels) if found == digest else None

    def keep(self, decode: Callable[[], Decoded]) -> None:
        """Write the images, if no other process has by now. Raises OSError or what decoding raises; nothing is left."""
        with self._locked():
            if self.load(in_memory=False) is None:
                self._write(decode())

    def _write(self, decoded: Decoded) -> None:
        self.notes.unlink(missing_ok=True)
        digest, written = hashlib.sha256(), 0
        with atomic_write(self.pixels) as file, contextlib.closing(decoded.chunks):
            header = {"descr": "|u1", "fortran_order": False, "shape": decoded.shape}
            np.lib.format.write_array_header_1_0(file, header)
            for chunk in decoded.chunks:
                data = np.ascontiguousarray(chunk).data
                file.write(data)
                digest.update(data)
                written += len(chunk)
            assert written == decoded.shape[0] == len(decoded.labels)
        notes: dict[str, Any] = {"labels": decoded.labels, "made_from": self.made_from, "sha256": digest.hexdigest()}
        with atomic_write(self.notes) as file:  # the last to come: without it the array counts for nothing
            np.savez(file, **notes, file_signature=np.array(file_signature(self.pixels.stat())))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Only one process at a time is in here. Raises OSError where nothing can be written."""
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        waits = False
        while not lock_file(file := self.lock.open("a")):
            if not waits:
                print(
                    f"waiting for another process, which makes {display_path(self.pixels)}", file=sys.stderr, flush=True
                )
            waits = True
            time.sleep(0.2)
        with file:
            yield


Looked = Iterator[tuple[str, os.stat_result | None]]
"""Names of files below a folder with their status; None where a link leads nowhere."""


def look(folder: Path, *, wanted: Callable[[str], bool] = lambda name: True) -> Looked:
    """The files below a folder in the order of their names; hidden ones are passed over, links are followed.

    wanted: whether a file of this name counts. Raises DataError if a folder contains itself through a link.
    """
    yield from _look(str(folder), "", wanted, ())


def _look(folder: str, prefix: str, wanted: Callable[[str], bool], above: tuple[tuple[int, int], ...]) -> Looked:
    try:
        status = os.stat(folder)  # noqa: PTH116  (a Path for each of a million files takes longer than looking at it)
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:
        return
    if (own := (status.st_dev, status.st_ino)) in above:
        raise DataError(f"{folder} leads back to a folder above it")
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _look(entry.path, f"{prefix}{entry.name}/", wanted, (*above, own))
        elif wanted(entry.name):
            try:
                yield f"{prefix}{entry.name}", entry.stat()
            except OSError:
                yield f"{prefix}{entry.name}", None


def fingerprint(*parts: object, files: Looked) -> str:
    """A digest of some values and of the names, sizes and times of files, which are not read."""
    digest = hashlib.sha256(ascii(parts).encode())
    for name, status in files:
        digest.update(ascii((name, None if status is None else file_signature(status))).encode())
    return digest.hexdigest()
