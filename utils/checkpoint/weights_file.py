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

from utils.checkpoint.file import COMMENT_LENGTH, MARK, as_checkpoint_errors
from utils.checkpoint.loading import read
from utils.errors import CheckpointError
from utils.extras import need_package
from utils.files import open_regular, read_text
from utils.run_folder import RunFolder
from utils.text import listed
from utils.user_code import format_error

AVERAGED = "averaged_weights"
"""The part of a checkpoint with the averaged weights."""
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts save a state dict next to other things."""
INDEX = ".index.json"
"""End of the name of a file that lists the shards of a Hugging Face model."""
OTHER_FILES = {
    b"version https://git-lfs": "is a Git LFS pointer; the file itself comes with: git lfs pull",
    b"<!doctype html": "is a web page, not the file that was to be downloaded",
    b"<html": "is a web page, not the file that was to be downloaded",
    b"\x93numpy": "is a NumPy array; torch.save({NAME: torch.from_numpy(ARRAY), ...}, PATH) writes weights",
    b"\x89hdf": "is an HDF5 file, as Keras writes them; convert it to a state dict, and save that with torch.save",
    b"gguf": "is a GGUF file; convert it to a state dict, and save that with torch.save",
}
"""What other files are, by their first bytes in lower case."""
SAVE = "torch.save(model.state_dict(), PATH) writes such a file"


def read_weights(path: Path) -> tuple[Path, dict[str, Any]]:
    """The weights at a path, by name on the CPU, and the file they are in. Runs no code from the file.

    Raises CheckpointError if it is missing, damaged, contains code or something else.
    """
    in_run = path.parent.name == "checkpoints" and (path.resolve().parent.parent / "config.json").is_file()
    if path.is_dir() or in_run:
        file = _checkpoint_of(path)
        return file, evaluated_weights(read(file))
    return path, _read_index(path) if path.name.endswith(INDEX) else _read_file(path)


def _read_file(path: Path) -> dict[str, Any]:
    with as_checkpoint_errors(path):
        ours, start = _look_at(path)
        if ours:
            return evaluated_weights(read(path))
        if not start:
            raise CheckpointError(f"{path} is empty, as a download or copy that failed leaves it")
        if other := next((what for mark, what in OTHER_FILES.items() if start.lower().startswith(mark)), None):
            raise CheckpointError(f"{path} {other}")
        is_zip = start.startswith(b"PK\x03\x04")
        if start[8:9] == b"{" or (path.suffix == ".safetensors" and not is_zip):
            return _read_safetensors(path)
        if is_zip:
            _check_zip(path)
        found = _load(path)
    if isinstance(found, dict) and type(found.get("format")) is int and {"model", "progress"} <= found.keys():
        raise CheckpointError(f"{path} is a damaged checkpoint of this project")
    return _state_dict(found, path)


def _read_index(path: Path) -> dict[str, Any]:
    """The weights in the shards that an index lists, in its folder."""
    try:
        files = set(json.loads(read_text(path))["weight_map"].values())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file or run folder") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not an index of shards: {format_error(error)}") from error
    weights = dict[str, Any]()
    for name in sorted(map(str, files)):
        if not name or Path(name).name != name:
            raise CheckpointError(f"{path} names a shard outside its folder: {name}")
        if not path.with_name(name).exists():
            raise CheckpointError(f"{path} lists the shard {name}, which is not in its folder")
        weights |= _read_file(path.with_name(name))
    return weights


def _checkpoint_of(path: Path) -> Path:
    """The checkpoint in a run folder, or at a path in one."""
    try:
        return RunFolder.with_checkpoint(path)[1]
    except CheckpointError as error:
        kinds = (f"*{INDEX}", "*.safetensors", "*.pth", "*.pt", "*.bin")
        if found := next((file for kind in kinds for file in sorted(path.glob(kind))), None):
            raise CheckpointError(f"{path} is not a run folder; name a file in it, such as {found.name}") from error
        raise


def evaluated_weights(state: Mapping[str, Any]) -> dict[str, Any]:
    """The weights in a checkpoint that validation and test evaluate: the averaged ones, if any.

    What is not averaged, such as a module's extra state, is the model's.
    """
    weights, averages = state["model"], state.get(AVERAGED)
    if isinstance(weights, Mapping) and isinstance(averages, Mapping):
        return {**weights, **averages}
    return averages or weights  # type: ignore[no-any-return]


def _look_at(path: Path) -> tuple[bool, bytes]:
    """Whether this project wrote a file, by the mark at its end; and its first bytes."""
    try:
        with open_regular(path) as file:
            start = file.read(64)
            file.seek(max(0, os.fstat(file.fileno()).st_size - COMMENT_LENGTH))
            return file.read(len(MARK)) == MARK, start
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "no such file or run folder" if missing else f"it cannot be read: {error.strerror}"
        raise CheckpointError(f"{path}: {reason}") from error


def _load(path: Path) -> Any:
    try:
        # torch would read a file by its suffix, if it got a path
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):  # about old formats
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # not torch's message, which explains how to run the code in a file
        if named := re.search(r"GLOBAL (\S+) was not an allowed global", str(error)):
            raise CheckpointError(
                f"{path} holds more than tensors and plain values ({named[1]}); nothing in it was run. "
                "If you trust it, read it with torch.load(PATH, weights_only=False), and save the weights alone, as "
                "torch.save(model.state_dict(), PATH) does"
            ) from error
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors and plain values; nothing in it was run. {SAVE}"
        ) from error


def _check_zip(path: Path) -> None:
    """Verify the checksums in torch's zip format, which torch itself ignores."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: {damaged} has a wrong checksum")
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(f"{path} is a TorchScript archive; {SAVE}")
    if not any(name.endswith("/data.pkl") for name in names):
        raise CheckpointError(f"{path} is a zip archive ({listed(names)}) that torch.save did not write; {SAVE}")


def _read_safetensors(path: Path) -> dict[str, Any]:
    need_package("safetensors", f"{path}: reading .safetensors needs a library", kind=CheckpointError)
    from safetensors.torch import load_file

    try:
        weights = dict(load_file(path))
    except Exception as error:  # the library's own
        why = str(error).removeprefix("Error while deserializing header: ")
        raise CheckpointError(
            f"{path} is incomplete or damaged, or not in the safetensors format: {why}. Copy or download it again"
        ) from error
    if not weights:
        raise CheckpointError(f"{path} contains no weights")
    return weights


def _state_dict(found: Any, path: Path) -> dict[str, Any]:
    """The state dict in a loaded file: the object itself, or one in it, under a usual key or as the only one."""
    outer = list[Any]()
    while isinstance(found, Mapping) and not _has_tensors(found):
        if any(found is each for each in outer):
            raise CheckpointError(f"{path} contains no weights, but a dict that contains itself")
        outer.append(found)
        inside = [key for key in WRAPPERS if isinstance(found.get(key), Mapping)][:1]
        inside = inside or [key for key, value in found.items() if _has_tensors(value)]
        if len(inside) > 1:
            keys = listed([repr(key) for key in inside])
            raise CheckpointError(
                f"{path} contains several state dicts ({keys}); save one of them alone: "
                f"torch.save(torch.load(PATH)[{inside[0]!r}], NEW_PATH)"
            )
        if not inside:
            break
        found = found[inside[0]]
    if not isinstance(found, Mapping) or not found or not all(isinstance(name, str) for name in found):
        kind = "empty" if found == {} else f"of type {type(found).__name__}"
        raise CheckpointError(f"{path} contains no weights: a state dict maps names to tensors, but this is {kind}")
    return dict(found)


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(each, Tensor) for each in value.values())
