"""Reads weights from a file of any origin: a run, a checkpoint, a state dict saved by torch.save, or safetensors."""

import json
import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.checkpoint.file import COMMENT_LENGTH, MARK
from utils.checkpoint.loading import read
from utils.errors import CheckpointError, os_errors_as
from utils.extras import need_package
from utils.files import open_regular, read_text
from utils.run_folder import RunFolder
from utils.user_code import format_error

AVERAGED = "averaged_weights"
"""The part of a checkpoint with the averaged weights."""
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts save a state dict next to other things."""
INDEX = ".index.json"
"""End of the name of a file that lists the shards of a Hugging Face model."""
SAVE = "torch.save(model.state_dict(), PATH) writes a file of weights"


def read_weights(path: Path) -> tuple[Path, dict[str, Any]]:
    """The weights at a path, by name on the CPU, and the file they are in. Runs no code from the file.

    Raises CheckpointError if it is missing, damaged, contains code or something else.
    """
    in_run = path.parent.name == "checkpoints" and (path.resolve().parent.parent / "config.json").is_file()
    if path.is_dir() or in_run:
        file = RunFolder.with_checkpoint(path)[1]
        return file, evaluated_weights(read(file))
    return path, _read_index(path) if path.name.endswith(INDEX) else _read_file(path)


def evaluated_weights(state: Mapping[str, Any]) -> dict[str, Any]:
    """The weights in a checkpoint that validation and test evaluate: the averaged ones, if any.

    What is not averaged, such as a module's extra state, is the model's.
    """
    weights, averages = state["model"], state.get(AVERAGED)
    if isinstance(weights, Mapping) and isinstance(averages, Mapping):
        return {**weights, **averages}
    return averages or weights  # type: ignore[no-any-return]


def _read_index(path: Path) -> dict[str, Any]:
    """The weights in the shards that an index lists, in its folder."""
    try:
        names = set(json.loads(read_text(path))["weight_map"].values())
        shards = [path.with_name(name) for name in sorted(names)]  # ValueError for a name with a slash
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not an index of shards: {format_error(error)}") from error
    return {name: value for shard in shards for name, value in _read_file(shard).items()}


def _read_file(path: Path) -> dict[str, Any]:
    with os_errors_as(CheckpointError, f"{path} cannot be read"), open_regular(path) as file:
        start = file.read(9)
        file.seek(max(0, os.fstat(file.fileno()).st_size - COMMENT_LENGTH))
        ours = file.read(len(MARK)) == MARK
    if ours:
        return evaluated_weights(read(path))
    return _state_dict(_load_safetensors(path) if start[8:] == b"{" else _load(path), path)


def _load(path: Path) -> Any:
    try:
        if zipfile.is_zipfile(path):  # torch's format, whose checksums torch itself ignores
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise CheckpointError(f"{path} is damaged: {damaged} has a wrong checksum")
        # torch would read a file by its suffix, if it got a path
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):  # about old formats
            return torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # not torch's message, which explains how to run the code in a file
        named = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
        found = f" ({named[1]})" if named else ""
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors and plain values{found}; nothing in it was run. {SAVE}; "
            'of a checkpoint that you trust, torch.save(torch.load(FILE, weights_only=False)["state_dict"], PATH), run '
            "in its project"
        ) from error


def _load_safetensors(path: Path) -> Any:
    need_package("safetensors", f"{path}: reading .safetensors needs a library", kind=CheckpointError)
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # the library's own
        raise CheckpointError(f"{path} is incomplete or damaged: {error}. Copy or download it again") from error


def _state_dict(found: Any, path: Path) -> dict[str, Any]:
    """The state dict in a loaded file: the object itself, or one in it, under a usual key or as the only one."""
    if isinstance(found, Mapping) and not _has_tensors(found):
        if found.keys() >= {"format", "model", "progress"}:
            raise CheckpointError(f"{path} is a damaged checkpoint of this project")
        usual = [found[key] for key in WRAPPERS if _has_tensors(found.get(key))]
        inside = usual[:1] or [value for value in found.values() if _has_tensors(value)]
        found = inside[0] if len(inside) == 1 else None
    if not _has_tensors(found) or not all(isinstance(name, str) for name in found):
        raise CheckpointError(f"{path} does not contain one state dict, which maps names to tensors; {SAVE}")
    return dict(found)


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(each, Tensor) for each in value.values())
