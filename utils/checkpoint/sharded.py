"""Sharded checkpoints: all processes write the large tensors, by torch.distributed.checkpoint (DCP).

``step-N.pth`` is a checkpoint like any other, but of the large tensors it has shape and type alone (device "meta").
Their values are in the folder ``step-N`` beside it. The file says which piece of a tensor lies where in there, and the
SHA-256 of each file. It is written last, so that a folder without it is none.

DCP describes such a folder in a pickle, ``.metadata``, which may carry code. It is there for torch's own tools; nothing
here reads it, and the pieces are read as tensors and nothing else.
"""

import shutil
from collections.abc import Callable, Collection
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from utils.checkpoint.checkpointer import ASIDE, Checkpointer
from utils.checkpoint.file import DATA, TensorAllocator, file_name, snapshot, write
from utils.checkpoint.shards import PIECES, quieten, read_pieces, write_pieces
from utils.distributed.process_group import ProcessGroup
from utils.errors import CheckpointError
from utils.files import sync_folder

Keys = tuple[Any, ...]


class Staged(NamedTuple):
    """What the thread of one process has to write."""

    tensors: dict[str, Tensor]
    """Those that this process writes, or, where they are DTensors, its part of them."""
    rest: dict[str, Any]
    """The state with large tensors on device "meta", for the file; empty in all but the main process."""


class ShardedCheckpointer(Checkpointer):
    """Writes with all processes, in a thread of each. They must all make it, and save the same steps.

    shared: names of the model's tensors that are equal in all processes: its parameters, but not its buffers.
    kept: what a Checkpointer takes beside its folder.
    """

    def __init__(self, folder: Path, *, processes: ProcessGroup, shared: Collection[str], **kept: Any) -> None:
        super().__init__(folder, **kept)
        self.processes, self.shared = processes, shared
        self.group: Any = None
        if processes.launched:  # a group of its own, since the thread talks while the training does
            self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=processes.timeout))
        self._written = folder

    def save(self, step: int, state: dict[str, Any], *, best_step: int | None) -> None:
        quieten()
        super().save(step, state, best_step=best_step)

    def resume(self, source: Path, step: int, *, best_step: int | None) -> None:
        if self.processes.is_main_process:
            super().resume(source, step, best_step=best_step)

    def _copy(self, state: dict[str, Any]) -> Staged:
        large: dict[str, Tensor] = {}

        def take(keys: Keys, tensor: Tensor) -> Tensor:
            if not self._is_large(keys, tensor):
                return snapshot(tensor)  # type: ignore[no-any-return]
            large[_name(keys)] = tensor
            if isinstance(tensor, DTensor):
                return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            return torch.empty_like(tensor, device="meta")

        rest = _mapped(state, take)
        whole = {name: tensor.numel() for name, tensor in large.items() if not isinstance(tensor, DTensor)}
        others = whole.keys() - _share(whole, self.processes.rank, self.processes.world_size)
        own = {name: snapshot(tensor) for name, tensor in large.items() if name not in others}
        return Staged(own, rest if self.processes.is_main_process else {})

    def _is_large(self, keys: Keys, tensor: Tensor) -> bool:
        """Whether this is a sharded tensor, or one that is the same in all processes and not a single number."""
        if isinstance(tensor, DTensor):
            return True
        return tensor.dim() > 0 and (keys[0] == "optimizer" or (keys[0] == "model" and keys[1] in self.shared))

    def _store(self, step: int, state: Staged) -> None:
        data = self.folder / self._agree(lambda: self._new_data(step))
        try:
            files, pieces = write_pieces(data, state.tensors, self.group)
            if not self.processes.is_main_process:
                return
            sync_folder(data)
            sync_folder(self.folder)
            self.before_commit()
            index = {"data": data.name, "files": files, "pieces": pieces}
            write(self.folder / file_name(step), {**state.rest, "sharded": index})
            self._written = data
        except BaseException:
            if self.processes.is_main_process:
                shutil.rmtree(data, ignore_errors=True)
            raise

    def _settle(self, step: int, best_step: int | None) -> None:
        if not self.processes.is_main_process:
            return
        super()._settle(step, best_step)
        if not (self.folder / ASIDE / file_name(step)).exists():
            for data in self._data_of(step):  # of a checkpoint of the same step, whose place this one took
                if data != self._written:
                    shutil.rmtree(data, ignore_errors=True)

    def _new_data(self, step: int) -> str:
        """A folder for the pieces of a checkpoint. The one that stands for this step is left alone."""
        self.folder.mkdir(exist_ok=True)
        taken = {path.name for path in self._data_of(step)}
        stem = Path(file_name(step)).stem
        name = next(name for name in (stem, *(f"{stem}-{n}" for n in range(2, len(taken) + 3))) if name not in taken)
        (self.folder / name).mkdir()
        return name

    def _data_of(self, step: int) -> list[Path]:
        stem = Path(file_name(step)).stem
        return [path for path in self.folder.glob(f"{stem}*/") if DATA.sub(r"\1", path.name) == stem]

    def _agree(self, make: Callable[[], str]) -> str:
        """What the main process makes, told to all. Raises OSError in all if it cannot."""
        told: list[Any] = [None, ""]
        if self.processes.is_main_process:
            try:
                told = [make(), ""]
            except OSError as error:
                told = [None, str(error)]
        if self.group is not None:
            dist.broadcast_object_list(told, src=0, group=self.group)
        if told[0] is None:
            raise OSError(told[1])
        return str(told[0])


def filled(path: Path, state: dict[str, Any], place: TensorAllocator | None = None) -> dict[str, Any]:
    """The state in a sharded checkpoint, of which its file has been read. Only what is needed is read, and checked.

    place: where to; None: whole tensors on the CPU. Raises CheckpointError if something is missing or damaged, and
    whatever else somebody's own file may lead to; nothing in it is run.
    """
    quieten()
    index = state.pop("sharded")
    if not DATA.fullmatch(index["data"]) or not all(map(PIECES.fullmatch, index["files"])):
        raise CheckpointError(f"{path} names files that are none of a checkpoint")
    folders = [parent / index["data"] for parent in (path.parent, path.parent.parent)]  # the latter: of one set aside
    data = next((folder for folder in folders if folder.is_dir()), None)
    if data is None:
        raise CheckpointError(f"{path} is damaged: the folder {index['data']} with its tensors is not beside it")
    shapes: dict[str, Tensor] = {}
    targets: dict[str, Tensor] = {}

    def target(keys: Keys, tensor: Tensor) -> Tensor:
        if tensor.device.type != "meta":
            return tensor
        made = place(keys, tensor) if place else torch.empty_like(tensor, device="cpu")
        if made.device.type != "meta":
            shapes[_name(keys)], targets[_name(keys)] = tensor, made
        return made

    whole: dict[str, Any] = _mapped(state, target)
    read_pieces(data, targets, shapes, index["files"], index["pieces"])
    return whole


def _share(sizes: dict[str, int], rank: int, count: int) -> set[str]:
    """Which of these tensors, that all processes have, one of them writes: about as many numbers as any other."""
    loads, own = [0] * count, set[str]()
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        least = loads.index(min(loads))
        loads[least] += size
        if least == rank:
            own.add(name)
    return own


def _mapped(value: Any, change: Callable[[Keys, Tensor], Tensor], keys: Keys = ()) -> Any:
    """A state with each tensor replaced by what the function makes of it and its keys."""
    if isinstance(value, Tensor):
        return change(keys, value)
    if isinstance(value, dict):
        return {key: _mapped(item, change, (*keys, key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(item, change, (*keys, index)) for index, item in enumerate(value))
    return value


def _name(keys: Keys) -> str:
    return ".".join(map(str, keys))
