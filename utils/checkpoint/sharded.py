"""Sharded checkpoints: all processes of a run write the large tensors, each its own shards or its share.

``step-N.pth`` is a checkpoint like any other, but its large tensors have only a shape and a dtype (device "meta").
Their values are in the folder ``step-N`` beside it, see shards.py. The file contains the name of the folder and the
SHA-256 of each file in it. It is written last: a folder without its file is ignored.
"""

import shutil
from collections.abc import Collection
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from utils.checkpoint.checkpointer import ASIDE, Checkpointer
from utils.checkpoint.file import DATA, file_name, snapshot, write
from utils.checkpoint.shards import quiet_dcp, write_tensors
from utils.distributed.process_group import ProcessGroup
from utils.files import sync_folder
from utils.text import dotted
from utils.tree import Keys, map_with_keys


class Staged(NamedTuple):
    """What the thread of one process writes."""

    tensors: dict[str, Tensor]
    """Tensors that this process writes; of DTensors, its shards."""
    rest: dict[str, Any]
    """The state for the file, with large tensors on device "meta"; empty except in the main process."""


class ShardedCheckpointer(Checkpointer):
    """Writes with all processes, in a thread of each. All must create it and save at the same steps.

    shared: names of model tensors that are equal in all processes: parameters, but not buffers.
    options: of Checkpointer.
    """

    def __init__(self, folder: Path, *, process_group: ProcessGroup, shared: Collection[str], **options: Any) -> None:
        super().__init__(folder, main=process_group.is_main_process, **options)
        self.writes = True
        self.process_group = process_group
        self.shared = shared
        self.thread_group: Any = None
        if process_group.launched:  # separate from the training's: both communicate at the same time
            self.thread_group = dist.new_group(backend="gloo", timeout=timedelta(seconds=process_group.timeout))

    def _copy(self, state: dict[str, Any]) -> Staged:
        quiet_dcp()
        large: dict[str, Tensor] = {}

        def take(keys: Keys, tensor: Tensor) -> Tensor:
            if not self._is_large(keys, tensor):
                return tensor.detach().to("cpu", copy=True)
            large[dotted(keys)] = tensor
            if isinstance(tensor, DTensor):
                return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            return torch.empty_like(tensor, device="meta")

        rest = map_with_keys(take, state)
        # each process writes about the same amount of the replicated tensors
        replicated = [name for name, tensor in large.items() if not isinstance(tensor, DTensor)]
        replicated.sort(key=lambda name: large[name].numel(), reverse=True)
        own = set(replicated[self.process_group.rank :: self.process_group.world_size])
        tensors = {
            name: snapshot(tensor) for name, tensor in large.items() if name in own or isinstance(tensor, DTensor)
        }
        return Staged(tensors, rest if self.main else {})

    def _is_large(self, keys: Keys, tensor: Tensor) -> bool:
        """Whether a tensor is sharded, or the same in all processes and more than a single number."""
        if isinstance(tensor, DTensor):
            return True
        return tensor.dim() > 0 and (keys[0] == "optimizer" or (keys[0] == "model" and keys[1] in self.shared))

    def _store(self, step: int, state: Staged) -> None:
        data = self._make_folder(step)
        try:
            hashes = write_tensors(data, state.tensors, self.thread_group)
            if not self.main:
                return
            sync_folder(data)
            sync_folder(self.folder)
            self.before_commit()
            index = {"data": data.name, "files": hashes}
            write(self.folder / file_name(step), {**state.rest, "sharded": index})
        except BaseException:
            if self.main:
                shutil.rmtree(data, ignore_errors=True)
            raise
        self._remove_stale(step, data)

    def _make_folder(self, step: int) -> Path:
        """A new folder for the tensors, created by the main process. All processes raise OSError if that fails."""
        made: list[Any] = [None]
        if self.main:
            try:
                self.folder.mkdir(exist_ok=True)
                taken = {path.name for path in self._folders_of(step)}
                stem = Path(file_name(step)).stem
                names = (stem, *(f"{stem}-{number}" for number in range(2, len(taken) + 3)))
                made = [next(name for name in names if name not in taken)]
                (self.folder / made[0]).mkdir()
            except OSError as error:
                made = [error]
        if self.thread_group is not None:
            dist.broadcast_object_list(made, src=0, group=self.thread_group)
        if isinstance(made[0], OSError):
            raise made[0]
        return self.folder / str(made[0])

    def _folders_of(self, step: int) -> list[Path]:
        stem = Path(file_name(step)).stem
        return [path for path in self.folder.glob(f"{stem}*/") if DATA.sub(r"\1", path.name) == stem]

    def _remove_stale(self, step: int, data: Path) -> None:
        """Remove the folders of earlier checkpoints of this step, unless in use by one that was set aside."""
        if not (self.folder / ASIDE / file_name(step)).exists():
            for folder in self._folders_of(step):
                if folder != data:
                    shutil.rmtree(folder, ignore_errors=True)
