"""Which checkpoint to load, in one process or several: the one named, or the newest undamaged one."""

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from utils.checkpoint.file import STEP_FILE, TensorAllocator, file_name, is_copy, read_file, step_files, step_of, verify
from utils.distributed.process_group import ProcessGroup
from utils.errors import CheckpointError

T = TypeVar("T")
MAX_COUNT = 10**15
"""Maximum number of epochs or steps: more than any run can have."""


def read(path: Path, allocate: TensorAllocator | None = None) -> dict[str, Any]:
    """The state in a checkpoint. Raises CheckpointError if it is missing, damaged, foreign or contains code.

    allocate: for the tensors of a sharded checkpoint, if a process needs only its part; None reads all to the CPU.
    """
    state = read_file(path)
    if "sharded" not in state:
        return state

    from utils.checkpoint.shards import read_tensors  # its imports take seconds

    return read_tensors(path, state, allocate)


def saved_progress(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The saved progress, with "epochs" and "steps" validated as counts. Raises CheckpointError."""
    progress = state.get("progress")
    counts = [progress.get("epochs"), progress.get("steps")] if isinstance(progress, dict) else [None]
    if not all(type(count) is int and 0 <= count < MAX_COUNT for count in counts):
        raise CheckpointError(f"{path} has no valid progress; this project did not write it")
    if STEP_FILE.fullmatch(path.name) and step_of(path) != counts[1]:
        raise CheckpointError(f"{path} contains step {counts[1]}, which does not match its name")
    return dict(state["progress"])


def read_together(process_group: ProcessGroup, function: Callable[[], T]) -> T:
    """The result of reading in each process. If it fails in one of them, all raise CheckpointError."""
    result: Any = None
    problem = ""
    try:
        result = function()
    except CheckpointError as error:
        problem = str(error)

    problems = list(filter(None, process_group.all_gather(problem)))
    if problems:
        raise CheckpointError(problems[0])
    return result  # type: ignore[no-any-return]


def newest_intact(
    folder: Path, warn: Callable[[str], None], process_group: ProcessGroup, allocate: TensorAllocator | None = None
) -> tuple[Path, dict[str, Any]] | None:
    """The newest undamaged checkpoint in a folder and its state; None if the folder has none.

    Warns about damaged ones and skips them. All processes must call it. Raises CheckpointError if all are damaged.
    """
    damaged: list[str] = []
    for path in process_group.broadcast_object(lambda: list(_candidates(folder))):
        try:
            state = read_together(process_group, functools.partial(read, path, allocate))
            step = saved_progress(state, path)["steps"]
        except CheckpointError as error:
            damaged.append(str(error))
            warn(f"{error}; falling back to an older one")
            continue

        step_file = folder / file_name(step)
        if path != step_file:
            try:
                verify(step_file)
            except CheckpointError as error:
                warn(f"{error}; {path.name} is the same checkpoint")
        return path, state
    if damaged:
        raise CheckpointError(f"no usable checkpoint in {folder}:\n  " + "\n  ".join(damaged))
    return None


def _candidates(folder: Path) -> Iterator[Path]:
    """The checkpoints in a folder, newest first; last.pth and best.pth only if no step file is the same file."""
    if is_copy(folder / "last.pth"):
        yield folder / "last.pth"
    yield from step_files(folder)
    if is_copy(folder / "best.pth"):
        yield folder / "best.pth"
