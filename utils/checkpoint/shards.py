"""The folder with the tensors of a sharded checkpoint, written and read by torch.distributed.checkpoint (DCP).

DCP writes its description of the tensors into the folder too, as a pickle, which can contain code. It is never read
here: the step file has the same, and loads it with ``weights_only``.
"""

import contextlib
import hashlib
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult

from utils.checkpoint.file import DATA, TensorAllocator, as_checkpoint_errors
from utils.errors import CheckpointError
from utils.text import dotted
from utils.tree import Keys, map_with_keys

SHARD = re.compile(r"__\d+_\d+\.distcp")

# the classes in DCP's description of tensors; without BytesStorageMetadata, for which it would unpickle anything
DESCRIPTION: list[Any] = [
    dcp.Metadata, dcp.MetadataIndex, dcp.TensorStorageMetadata, dcp.TensorProperties, dcp.ChunkStorageMetadata,
    dcp._MEM_FORMAT_ENCODING, _StorageInfo,
]  # fmt: skip


def write_tensors(folder: Path, tensors: dict[str, Tensor], group: Any) -> dict[str, Any]:
    """Write tensors; of DTensors, this process's shards. Returns what ``read_tensors`` needs to find them.

    group: the processes that write; None: only this process.
    """
    writer = _Writer(folder, per_thread_copy_ahead=0)
    with _first_failure():
        description = save(tensors, storage_writer=writer, process_group=group, no_dist=group is None)
    rank = 0 if group is None else dist.get_rank(group)
    hashes = {path.name: _sha256(path) for path in folder.glob(f"__{rank}_*")}
    if group is not None:
        gathered: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(gathered, hashes, group=group)
        hashes = {name: digest for each in gathered for name, digest in each.items()}
    buffer = io.BytesIO()
    torch.save(description, buffer)
    return {
        "data": folder.name,
        "files": hashes,
        "description": torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8),
    }


def read_tensors(path: Path, state: dict[str, Any], allocate: TensorAllocator | None = None) -> dict[str, Any]:
    """The complete state of a sharded checkpoint. state: as returned by ``read_file``.

    Reads only what this process needs, and verifies those files first. allocate: None reads whole tensors to the CPU.
    Raises CheckpointError if something is missing, damaged or not written by this project.
    """
    quiet_dcp()
    with as_checkpoint_errors(path):
        index = state.pop("sharded")
        if not DATA.fullmatch(index["data"]) or not all(map(SHARD.fullmatch, index["files"])):
            raise CheckpointError(f"{path} names files that do not belong to a checkpoint")
        with torch.serialization.safe_globals(DESCRIPTION):
            description = torch.load(io.BytesIO(index["description"].numpy().tobytes()), weights_only=True)

        # a checkpoint in set-aside/ left its folder where it was
        folder = path.with_name(index["data"])
        if not folder.is_dir():
            folder = path.parent.parent / index["data"]
        targets: dict[str, Tensor] = {}

        def target(keys: Keys, tensor: Tensor) -> Tensor:
            if tensor.device.type != "meta":
                return tensor
            allocated = allocate(keys, tensor) if allocate else torch.empty_like(tensor, device="cpu")
            if allocated.device.type != "meta":
                targets[dotted(keys)] = allocated
            return allocated

        state = map_with_keys(target, state)
        with _first_failure():
            load(targets, storage_reader=_Reader(folder, index["files"], description), no_dist=True)
    return state


def quiet_dcp() -> None:
    """Silence DCP warnings that do not concern us. In the main thread: warning filters are not thread-safe."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated")  # torch 2.9


class _Writer(FileSystemWriter):
    def finish(self, metadata: dcp.Metadata, results: list[list[WriteResult]]) -> None:
        """Also say where the tensors are in what ``save`` returns: torch 2.9 writes that to a copy alone."""
        super().finish(metadata, results)
        metadata.storage_data = {each.index: each.storage_data for of_process in results for each in of_process}

    def storage_meta(self) -> None:
        """Nothing: it would contain the path of the folder, which may be moved."""


class _Reader(FileSystemReader):
    """Reads the described tensors, and verifies each file before reading from it."""

    def __init__(self, folder: Path, hashes: dict[str, str], description: dcp.Metadata) -> None:
        super().__init__(folder)
        self.folder = folder
        self.hashes = hashes
        self.description = description

    def read_metadata(self, *_: Any, **__: Any) -> dcp.Metadata:
        return self.description

    def read_data(self, plan: Any, planner: Any) -> Any:
        for name in sorted({self.storage_data[item.storage_index].relative_path for item in plan.items}):
            path = self.folder / name
            if self.hashes[name] != _sha256(path):
                raise CheckpointError(f"{path} is damaged, or was not written by this project")
        return super().read_data(plan, planner)


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
