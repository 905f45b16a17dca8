"""The folder with the tensors of a sharded checkpoint, written and read by torch.distributed.checkpoint (DCP).

DCP describes the folder in a pickle, ``.metadata``. It is read by an unpickler that accepts only the classes found in
such a file; the tensors are loaded with ``weights_only``. So nothing in a folder can run code.
"""

import contextlib
import hashlib
import io
import math
import pickle
import re
import warnings
from collections.abc import Iterator
from enum import EnumType
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from utils.checkpoint.file import DATA, TensorAllocator, as_checkpoint_errors
from utils.errors import CheckpointError, os_errors_as
from utils.text import dotted
from utils.tree import Keys, map_with_keys

METADATA = ".metadata"
SHARD = re.compile(r"__\d+_\d+\.distcp")

# the classes in a .metadata of tensors; without BytesStorageMetadata, for which DCP would unpickle anything
METADATA_CLASSES = {
    "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
}


def write_tensors(folder: Path, tensors: dict[str, Tensor], group: Any) -> dict[str, str]:
    """Write tensors; of DTensors, this process's shards. Returns the SHA-256 of each file in the main process.

    group: the processes that write; None: only this process.
    """
    with _first_failure():
        save(
            tensors, storage_writer=_Writer(folder, per_thread_copy_ahead=0), process_group=group, no_dist=group is None
        )
    rank = 0 if group is None else dist.get_rank(group)
    written = [*folder.glob(f"__{rank}_*"), *([folder / METADATA] if rank == 0 else [])]
    hashes: dict[str, str] | OSError
    try:
        hashes = {path.name: _sha256(path) for path in written}
    except OSError as error:  # the main process raises it; here, the others would wait for this one
        hashes = error

    gathered: list[Any] = [hashes]
    if group is not None:
        gathered = [None] * dist.get_world_size(group)
        dist.gather_object(hashes, gathered if rank == 0 else None, dst=0, group=group)
    if rank != 0:
        return {}
    if failed := next((each for each in gathered if isinstance(each, OSError)), None):
        raise failed
    return {name: digest for each in gathered for name, digest in each.items()}


def read_tensors(path: Path, state: dict[str, Any], allocate: TensorAllocator | None = None) -> dict[str, Any]:
    """The complete state of a sharded checkpoint. state: as returned by ``read_file``.

    Reads only what this process needs, and verifies those files first. allocate: None reads whole tensors to the CPU.
    Raises CheckpointError if something is missing, damaged or not written by this project.
    """
    quiet_dcp()
    with as_checkpoint_errors(path):
        index = state.pop("sharded")
        hashes: dict[str, str] = index["files"]
        if not DATA.fullmatch(index["data"]) or not all(name == METADATA or SHARD.fullmatch(name) for name in hashes):
            raise CheckpointError(f"{path} names files that do not belong to a checkpoint")

        # a checkpoint in set-aside/ left its folder where it was
        folders = [folder / index["data"] for folder in (path.parent, path.parent.parent)]
        folder = next((folder for folder in folders if folder.is_dir()), None)
        if folder is None:
            raise CheckpointError(f"{path} is damaged: the folder {index['data']} with its tensors is not beside it")

        targets: dict[str, Tensor] = {}

        def target(keys: Keys, tensor: Tensor) -> Tensor:
            if tensor.device.type != "meta":
                return tensor
            allocated = allocate(keys, tensor) if allocate else torch.empty_like(tensor, device="cpu")
            if allocated.device.type != "meta":
                targets[dotted(keys)] = allocated
            return allocated

        state = map_with_keys(target, state)
        reader = _Reader(folder, hashes, _read_metadata(folder, hashes, targets))
        with _first_failure():
            load(targets, storage_reader=reader, no_dist=True)
    return state


def quiet_dcp() -> None:
    """Silence DCP warnings that do not concern us. In the main thread: warning filters are not thread-safe."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated")  # torch 2.9


class _Writer(FileSystemWriter):
    def storage_meta(self) -> None:
        """Nothing: it would contain the path of the folder, which may be moved, as a class of this Python version."""


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in METADATA_CLASSES.get(module, ()):
            return super().find_class(module, name)
        if (module, name) == ("builtins", "getattr"):  # early releases of Python 3.11 pickle enum members this way
            return _enum_member
        raise pickle.UnpicklingError(f"{module}.{name} is not part of DCP's metadata")


def _enum_member(enum: Any, name: str) -> Any:
    if not isinstance(enum, EnumType):
        raise pickle.UnpicklingError(f"{enum} is not an enum")
    return enum[name]


def _read_metadata(folder: Path, hashes: dict[str, str], targets: dict[str, Tensor]) -> Metadata:
    """DCP's description of a folder. Raises CheckpointError if it does not cover every target."""
    _verify(folder, METADATA, hashes)
    metadata: Metadata = _MetadataUnpickler(io.BytesIO((folder / METADATA).read_bytes())).load()
    for name, target in targets.items():
        saved = metadata.state_dict_metadata.get(name)
        if (
            not isinstance(saved, TensorStorageMetadata)
            or saved.size != target.shape
            or sum(math.prod(chunk.sizes) for chunk in saved.chunks) != target.numel()
        ):
            raise CheckpointError(f"{folder} does not contain all of {name}")
    return metadata


class _Reader(FileSystemReader):
    """Reads the tensors in verified metadata, and verifies each file before reading from it."""

    def __init__(self, folder: Path, hashes: dict[str, str], metadata: Metadata) -> None:
        super().__init__(folder)
        self.folder = folder
        self.hashes = hashes
        self.metadata = metadata

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        return self.metadata

    def read_data(self, plan: Any, planner: Any) -> Any:
        for name in sorted({self.storage_data[item.storage_index].relative_path for item in plan.items}):
            _verify(self.folder, name, self.hashes)
        return super().read_data(plan, planner)


def _verify(folder: Path, name: str, hashes: dict[str, str]) -> None:
    """Raise CheckpointError unless this is a file of the checkpoint, unchanged."""
    path = folder / name
    if name not in hashes:
        raise CheckpointError(f"{path} is not a file of this checkpoint")
    with os_errors_as(CheckpointError, f"{path} cannot be read"):
        digest = _sha256(path)
    if digest != hashes[name]:
        raise CheckpointError(f"{path} is damaged, or was not written by this project")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _first_failure() -> Iterator[None]:
    """Raise the first error of any process instead of DCP's collection, which is not even an Exception."""
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None
