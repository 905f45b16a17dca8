"""Reads weights from a file of any origin: a run, a checkpoint, a state dict saved by torch.save, or safetensors."""

import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils.checkpoint.file import COMMENT_LENGTH, MARK, as_checkpoint_errors
from utils.checkpoint.loading import read
from utils.errors import CheckpointError
from utils.files import open_regular
from utils.run_folder import RunFolder

AVERAGED = "averaged_weights"
"""The part of a checkpoint with the averaged weights."""
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts save a state dict next to other things."""
INSTALL = "reading .safetensors needs a library: pip install safetensors"


def read_weights(path: Path) -> tuple[Path, dict[str, Any]]:
    """The weights at a path, by name on the CPU, and the file they are in. Runs no code from the file.

    Raises CheckpointError if it is missing, damaged, contains code or something else.
    """
    in_run = path.parent.name == "checkpoints" and (path.resolve().parent.parent / "config.json").is_file()
    if path.is_dir() or in_run:
        file = RunFolder.checkpoint_of(path)
        return file, evaluated_weights(read(file))
    with as_checkpoint_errors(path):
        ours, start = _look_at(path)
        if ours:
            return path, evaluated_weights(read(path))
        if path.suffix == ".safetensors":
            return path, _read_safetensors(path)
        if start == b"PK\x03\x04":
            _check_zip(path)
        found = _load(path)
    if isinstance(found, dict) and type(found.get("format")) is int and {"model", "progress"} <= found.keys():
        raise CheckpointError(f"{path} is a damaged checkpoint of this project")
    return path, _state_dict(found, path)


def evaluated_weights(state: Mapping[str, Any]) -> dict[str, Any]:
    """The weights in a checkpoint that validation and test evaluate: the averaged ones, if any.

    What is not averaged, such as a module's extra state, is the model's.
    """
    weights, averages = state["model"], state.get(AVERAGED)
    if isinstance(weights, Mapping) and isinstance(averages, Mapping):
        return {**weights, **averages}
    return averages or weights  # type: ignore[no-any-return]


def _look_at(path: Path) -> tuple[bool, bytes]:
    """Whether this project wrote a file, by the mark at its end; and its first four bytes."""
    try:
        with open_regular(path) as file:
            start = file.read(4)
            file.seek(max(0, os.fstat(file.fileno()).st_size - COMMENT_LENGTH))
            return file.read(len(MARK)) == MARK, start
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "no such file or run folder" if missing else f"it cannot be read: {error.strerror}"
        raise CheckpointError(f"{path}: {reason}") from error


def _load(path: Path) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # about old formats
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # not torch's message, which explains how to run the code in a file
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors and plain values; nothing in it was run. "
            "torch.save(model.state_dict(), PATH) writes such a file"
        ) from error


def _check_zip(path: Path) -> None:
    """Verify the checksums in torch's zip format, which torch itself ignores."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: {damaged} has a wrong checksum")


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise CheckpointError(f"{path}: {INSTALL}") from error
    return dict(load_file(path))


def _state_dict(found: Any, path: Path) -> dict[str, Any]:
    """The state dict in a loaded file: the object itself, or one wrapped in it."""
    if isinstance(found, Mapping):
        found = next((found[key] for key in WRAPPERS if isinstance(found.get(key), Mapping)), found)
    if not isinstance(found, Mapping) or not found or not all(isinstance(name, str) for name in found):
        kind = "empty" if found == {} else f"of type {type(found).__name__}"
        raise CheckpointError(f"{path} contains no weights: a state dict maps names to tensors, but this is {kind}")
    return dict(found)
