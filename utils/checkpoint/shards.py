"""Pieces of tensors in a folder, as torch.distributed.checkpoint (DCP) writes them, found again by plain values.

DCP itself reads that from a pickle, ``.metadata``, which may carry code and may call for more of it. It is written for
torch's own tools, and nothing here reads it: what is read are tensors, with ``weights_only``, and nothing else.
"""

import contextlib
import hashlib
import io
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from utils.errors import CheckpointError

PIECES = re.compile(r"__\d+_\d+\.distcp")
Pieces = dict[str, list[tuple[list[int], list[int], str, int, int]]]
"""By tensor: offsets and sizes of each piece, its file, the first byte there, and how many."""


def write_pieces(folder: Path, tensors: dict[str, Tensor], group: Any) -> tuple[dict[str, str], Pieces]:
    """Write tensors, and of DTensors this process's part. Gives the SHA-256 of each file, and where each piece is.

    group: the processes that write; None: only this one. Only what the main one gets is of all files.
    """
    writer = _Writer(folder)
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with _as_errors():
        metadata = save(tensors, storage_writer=writer, planner=planner, process_group=group, no_dist=group is None)
    files: list[Any] = [writer.hashes()]
    if group is not None:
        found = [None] * dist.get_world_size(group) if dist.get_rank(group) == 0 else None
        dist.gather_object(files[0], found, dst=0, group=group)
        files = found or []
    return {name: digest for part in files for name, digest in part.items()}, _pieces(metadata)


def read_pieces(
    folder: Path, targets: dict[str, Tensor], shapes: dict[str, Tensor], files: dict[str, str], pieces: Pieces
) -> None:
    """Fill tensors, and of DTensors this process's part. Only what is needed is read, and its files checked before.

    shapes: the tensors as they were saved, on device "meta". files: their SHA-256. Raises CheckpointError.
    """
    if not targets:
        return
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    reader = _Reader(folder, files, _metadata(shapes, pieces))
    with _as_errors():
        load(targets, storage_reader=reader, planner=planner, no_dist=True)


def quieten() -> None:
    """DCP warns that a single process is one. To be called in the main thread: others must not touch the filters."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


class _HashingFile(io.BufferedWriter):
    """A new file that keeps the SHA-256 of what is written."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "xb"))
        self.hash = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return super().write(data)


class _HashingFiles(FileSystem):
    def __init__(self) -> None:
        self.written: dict[str, _HashingFile] = {}

    @contextlib.contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        assert mode == "wb"
        with _HashingFile(Path(path)) as file:
            self.written[Path(path).name] = file
            yield file


class _Writer(FileSystemWriter):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.fs: _HashingFiles = _HashingFiles()

    def hashes(self) -> dict[str, str]:
        return {name: file.hash.hexdigest() for name, file in self.fs.written.items() if PIECES.fullmatch(name)}


class _Reader(FileSystemReader):
    """Reads no ``.metadata``, and checks each file before it reads from it."""

    def __init__(self, folder: Path, files: dict[str, str], metadata: Metadata) -> None:
        super().__init__(folder)
        self.folder, self.files, self.metadata = folder, files, metadata

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        return self.metadata

    def read_data(self, plan: Any, planner: Any) -> Any:
        for name in sorted({self.storage_data[item.storage_index].relative_path for item in plan.items}):
            self._verify(name)
        return super().read_data(plan, planner)

    def _verify(self, name: str) -> None:
        path = self.folder / name
        if name not in self.files:
            raise CheckpointError(f"{path} is no file of this checkpoint")
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        if found != self.files[name]:
            raise CheckpointError(f"{path} is damaged, or was not written by this project")


class _Piece(NamedTuple):
    """Where in a file a piece of a tensor is, under the names that DCP's reader asks for."""

    relative_path: str
    offset: int
    length: int
    transform_descriptors: None = None


def _pieces(metadata: Metadata) -> Pieces:
    """What DCP's metadata say, as plain values."""
    found: Pieces = {}
    for name, tensor in metadata.state_dict_metadata.items():
        assert isinstance(tensor, TensorStorageMetadata)
        places = [metadata.storage_data[MetadataIndex(name, chunk.offsets)] for chunk in tensor.chunks]
        found[name] = [
            (list(chunk.offsets), list(chunk.sizes), place.relative_path, place.offset, place.length)
            for chunk, place in zip(tensor.chunks, places, strict=True)
        ]
    return found


def _metadata(shapes: dict[str, Tensor], pieces: Pieces) -> Metadata:
    """DCP's metadata of tensors of these shapes and types. Only tensors can be read by it."""
    tensors: dict[str, Any] = {}
    places: dict[Any, _Piece] = {}
    for name, shape in shapes.items():
        chunks = [ChunkStorageMetadata(torch.Size(at), torch.Size(size)) for at, size, *_ in pieces[name]]
        if sum(math.prod(chunk.sizes) for chunk in chunks) != shape.numel():
            raise CheckpointError(f"the pieces of {name} are not the whole of it")
        properties = TensorProperties(dtype=shape.dtype)
        tensors[name] = TensorStorageMetadata(properties, shape.shape, chunks)
        for at, _, file, offset, length in pieces[name]:
            places[MetadataIndex(name, torch.Size(at))] = _Piece(file, offset, length)
    return Metadata(tensors, storage_data=places)


@contextlib.contextmanager
def _as_errors() -> Iterator[None]:
    """What went wrong in one of the processes, and not DCP's collection of tracebacks, which is no Exception either."""
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None
