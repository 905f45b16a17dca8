"""Sharded checkpoints: all processes of a run write the large tensors, each its own shards or its share.

``step-N.pth`` is a checkpoint like any other, but its large tensors have only a shape and a dtype (device "meta").
Their values are in a folder beside it, see shards.py. The file contains the name of the folder and the SHA-256 of each
file with values. It is written last: a folder without its file is ignored.
"""

import shutil
import time
from collections.abc import Collection
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from utils.checkpoint.checkpointer import ASIDE, Checkpointer
from utils.checkpoint.file import file_name, snapshot, write
from utils.checkpoint.shards import quiet_dcp, write_tensors
from utils.checkpoint.weights_file import AVERAGED
from utils.distributed.process_group import ProcessGroup
from utils.files import sync_folder
from utils.text import dotted
from utils.tree import Keys, map_with_keys


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
        self._token = process_group.broadcast_object(time.time_ns)  # makes the names of folders unique
        self._saves = 0
        self.thread_group: Any = None
        if process_group.launched:  # separate from the training's: both communicate at the same time
            self.thread_group = dist.new_group(backend="gloo", timeout=timedelta(seconds=process_group.timeout))

    def _copy(self, state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors that this process writes (of DTensors, its shards), and for the main process the rest."""
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
        return tensors, rest if self.main else {}

    def _is_large(self, keys: Keys, tensor: Tensor) -> bool:
        """Whether a tensor is sharded, or the same in all processes and more than a single number."""
        if isinstance(tensor, DTensor):
            return True
        weights = keys[0] in ("model", AVERAGED) and keys[1] in self.shared
        return tensor.dim() > 0 and (keys[0] == "optimizer" or weights)

    def _store(self, step: int, state: tuple[dict[str, Tensor], dict[str, Any]]) -> None:
        tensors, rest = state
        file = self.folder / file_name(step)
        self._saves += 1
        data = self.folder / f"{file.stem}-{self._token}-{self._saves}"
        self.folder.mkdir(exist_ok=True)
        try:
            index = write_tensors(data, tensors, self.thread_group)
            if not self.main:
                return
            sync_folder(data)
            sync_folder(self.folder)
            self.before_commit()
            write(file, {**rest, "sharded": index})
        except BaseException:
            if self.main:
                shutil.rmtree(data, ignore_errors=True)
            raise
        # earlier checkpoints of this step, unless one that was set aside uses its folder
        if not (self.folder / ASIDE / file.name).exists():
            for folder in self.folder.glob(f"{file.stem}-*/"):
                if folder != data:
                    shutil.rmtree(folder, ignore_errors=True)
