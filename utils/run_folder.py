"""The folder of a run: created once, found again on resume, used by one process at a time."""

import contextlib
import functools
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from utils.distributed import ProcessGroup, launch
from utils.errors import CheckpointError, TrainingError, UserError, os_errors_as
from utils.files import UNSUPPORTED, atomic_write, lock_file, read_json_object, read_text
from utils.paths import PROJECT, project_path
from utils.streams import say_error

# files of a run folder, besides checkpoints and event files
FILES = {"config.json", "environment.json", "metrics.jsonl", "train.log", ".lock", ".job", ".started"}
# those that exist before the first step, besides event files
INITIAL = FILES - {"metrics.jsonl"} | {"initial.pth", "checkpoints"}
EVENTS = "events.out.tfevents."
NAME = re.compile(r"\d{8}-\d{6}(-\d+)?")

# run folders locked by this process
_owned: set[Path] = set()
_say_once = functools.cache(say_error)


class RunFolder:
    """The paths of a run's files, and operations on the folder as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.environment = path / "environment.json"
        self.log = path / "train.log"
        self.checkpoints = path / "checkpoints"
        self.job = path / ".job"
        """The id of the launcher's job that trains this run, by which a restart finds it."""
        self.started = path / ".started"
        """When the run was created, in nanoseconds since 1970; the folder's name has the local time."""
        self.initial = path / "initial.pth"
        """The initial weights, if they came from another run or file."""

    @classmethod
    def create(
        cls, save_dir: str, name: str, *, prepare: Callable[["RunFolder"], None] = lambda folder: None
    ) -> "RunFolder":
        """Create save_dir/name/YYYYMMDD-HHMMSS, with -2, -3 ... appended if another run started in the same second.

        prepare: writes what a resume needs. The folder gets its name only afterwards, so a kill at any moment leaves no
        folder that cannot be resumed. Raises UserError if it cannot be created.
        """
        parent = project_path(save_dir) / name
        timestamp = time.strftime("%Y%m%d-%H%M%S")
        # not by the process's number, which is 1 in every container
        unnamed = parent / f".{timestamp}-{os.urandom(4).hex()}.tmp"
        try:
            (unnamed / "checkpoints").mkdir(parents=True)
            (unnamed / ".started").write_text(f"{time.time_ns()}\n")
            prepare(cls(unnamed))
            return cls(rename_to_free(unnamed, parent / timestamp))
        except (OSError, RuntimeError, TrainingError) as error:
            shutil.rmtree(unnamed, ignore_errors=True)
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot create a run folder in {parent}: {reason}; see trainer.save_dir") from error

    @classmethod
    def newest(cls, save_dir: str, name: str | None) -> "RunFolder":
        """The most recently started run under save_dir, of one name if given. Raises CheckpointError if none."""
        parent = project_path(save_dir)
        runs = _runs(*([parent / name] if name else parent.glob("*/")))
        if not runs:
            advice = "start one without -r" if name else "start one with python train.py"
            raise CheckpointError(f"no run in {parent / (name or '')}; {advice}")
        return runs[-1]

    @classmethod
    def of_job(cls, save_dir: str, name: str, job: str) -> "RunFolder | None":
        """The newest run under save_dir/name that the launcher's job with this id started or resumed."""
        runs = _runs(project_path(save_dir) / name)
        return next((run for run in reversed(runs) if run._read_job().partition("\n")[0] == job), None)

    @classmethod
    def of(cls, path: Path) -> tuple["RunFolder", Path | None]:
        """The run at a path: its folder, or a checkpoint in it, which is then returned too. Raises CheckpointError."""
        with os_errors_as(CheckpointError, f"{path} cannot be read"):  # no permission to enter it, or a name too long
            if not path.exists():
                raise CheckpointError(f"{path}: no such run folder or checkpoint")
            folder = path if path.is_dir() else path.resolve().parent.parent
            is_project = folder.resolve() == PROJECT
            is_checkpoint = path.suffix == ".pth" and path.resolve().parent == folder / "checkpoints"
            if not (path.is_dir() or is_checkpoint) or not (folder / "config.json").is_file() or is_project:
                newest = _runs(path)[-1:]
                instead = f"its newest run is {newest[0].path}" if newest else "expected saved/NAME/TIME"
                if path.suffix in (".pth", ".pt", ".ckpt", ".tar"):
                    instead += f". For a new run from weights in a file: python train.py -c CONFIG --init-from {path}"
                raise CheckpointError(f"{path} is not a run folder, nor a checkpoint in one; {instead}")
        return cls(folder), None if path.is_dir() else path

    @classmethod
    def with_checkpoint(cls, path: Path) -> tuple["RunFolder", Path]:
        """The run at a path, and the checkpoint to evaluate: the one at the path, or the best, or else the newest."""
        run, file = cls.of(path)
        if file is not None:
            return run, file
        for name in ("best.pth", "last.pth"):
            if (run.checkpoints / name).is_file():
                return run, run.checkpoints / name
        raise CheckpointError(f"{path} has no checkpoint yet")

    def epochs(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, up to the first that cannot be read."""
        records = []
        with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
            for line in read_text(self.path / "metrics.jsonl").splitlines():
                record = dict(json.loads(line))
                if not all(value is None or isinstance(value, (int, float)) for value in record.values()):
                    break
                records.append(record)
        return records

    @contextlib.contextmanager
    def locked(self, doing: str = "trains this run") -> Iterator[None]:
        """Lock this folder for the block. Raises UserError if another process has locked it, or it cannot be written.

        doing: what the process does with it, for that process's message in others.
        """
        folder = self.path.resolve()
        _check_entries(folder)
        in_use = UserError(f"{self.path} is in use: another process {doing}")
        if folder in _owned:  # closing a second file would release the lock of the first
            raise in_use
        with contextlib.ExitStack() as stack:
            with os_errors_as(UserError, f"cannot write to {self.path}"):
                # unbuffered: nothing waits to be written to it, for which utils.garbage_collection would keep all
                file = stack.enter_context((folder / ".lock").open("ab", buffering=0))
                try:
                    is_free = lock_file(file)
                except OSError as error:
                    if error.errno not in UNSUPPORTED:
                        raise
                    is_free = True
                    without = f"on a file system without locks ({error.strerror})"
                    _say_once(f"warning: {self.path} is {without}: let no other process write to it meanwhile")
                if not is_free:
                    raise in_use
            _owned.add(folder)
            stack.callback(_owned.discard, folder)
            # what a killed process left incomplete; suppressed: a folder with such a name, not left by us
            for path in (*self.path.glob(".*.tmp"), *self.checkpoints.glob(".*.tmp")):
                with contextlib.suppress(OSError):
                    path.unlink()
            yield

    @contextlib.contextmanager
    def owned(self, process_group: ProcessGroup) -> Iterator[None]:
        """Lock the folder in the main process, and check that all see it. Raises UserError if one does not."""
        with self.locked() if process_group.is_main_process else contextlib.nullcontext():
            if process_group.launched:
                written = process_group.broadcast_object(self._write_job)
                texts = process_group.all_gather(self._read_job())
                blind = [str(rank) for rank, text in enumerate(texts) if text != written]
                if blind:
                    raise UserError(
                        f"process {', '.join(blind)} of {process_group.world_size} does not see the run folder "
                        f"{self.path}; trainer.save_dir must be on a file system that all machines share"
                    )
            yield

    def remove_empty(self) -> bool:
        """Remove the folder if it contains only what every run starts with, and no process has locked it.

        Returns whether it was removed.
        """
        try:
            with self.locked():
                names = [path.name for path in self.path.iterdir() if not path.name.startswith(EVENTS)]
        except UserError:
            return False
        if not INITIAL.issuperset(names) or any(self.checkpoints.iterdir()):
            return False
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):  # it contains other runs
            self.path.parent.rmdir()
        return not self.path.exists()

    def _write_job(self) -> str:
        """Write which job trains this run, and random digits that show a process whether it sees this very file."""
        text = f"{launch()[0] or ''}\n{os.urandom(8).hex()}\n"
        replace_file(self.job, text)
        return text

    def _read_job(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            return read_text(self.job)
        return ""

    def read_environment(self) -> dict[str, Any]:
        """The content of environment.json; empty if it is missing or cannot be read."""
        record = read_json_object(self.environment) or {}
        resumed = record.get("resumed", [])
        is_valid = isinstance(resumed, list) and all(isinstance(each, dict) for each in resumed)
        return record if is_valid else {}

    def last_start(self) -> dict[str, Any]:
        """What environment.json says of the last time the run was started or resumed; empty if it cannot be read."""
        record = self.read_environment()
        last: dict[str, Any] = [record, *record.get("resumed", [])][-1]
        return last

    def write_environment(self, record: dict[str, Any], note: str | None = None) -> None:
        """Record how this run was started or, in the list "resumed", how it was resumed. Clears its outcome.

        note: the user's label for the run; "" removes it, None leaves it unchanged.
        """
        before = self.read_environment()
        if not before and self.environment.exists():
            with contextlib.suppress(OSError):  # unreadable, but perhaps repairable
                self.environment.replace(self.environment.with_name("environment.json.damaged"))
        if before:
            record = {**before, "resumed": [*before.get("resumed", []), record]}
        if note is not None:
            record["note"] = note
        record.pop("outcome", None)
        replace_file(self.environment, json.dumps(record, indent=2) + "\n")

    def write_outcome(self, outcome: str) -> None:
        """Record how the run ended in environment.json. Ignores a full disk.

        outcome: "finished", "stopped", "failed: ..." or, if the loss is not finite, "diverged: ...".
        """
        record = self.read_environment()
        if record:  # otherwise it failed before it began
            with contextlib.suppress(TrainingError):
                replace_file(self.environment, json.dumps({**record, "outcome": outcome}, indent=2) + "\n")


def _runs(*parents: Path) -> list[RunFolder]:
    """The runs in some folders, in order of their start."""
    named = [path for parent in parents for path in parent.glob("*") if NAME.fullmatch(path.name)]
    runs = [RunFolder(path) for path in named if (path / "config.json").is_file()]
    return sorted(runs, key=start_order)


def start_order(run: RunFolder) -> tuple[int, str]:
    """When a run was started, in nanoseconds (of a copy without hidden files: whole seconds). The name breaks ties."""
    with contextlib.suppress(OSError, ValueError):
        return int(read_text(run.started)), run.path.name
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return int(datetime.fromisoformat(run.read_environment()["time"]).timestamp()) * 10**9, run.path.name
    return 0, run.path.name


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a file atomically. Raises TrainingError."""
    replace_files(path.parent, {path.name: content})


def replace_files(folder: Path, contents: Mapping[str, str | bytes | Sequence[bytes]]) -> None:
    """Write files by name, or their parts; none replaces an older one until all are written. Raises TrainingError."""
    with contextlib.ExitStack() as stack:
        for name, content in contents.items():
            stack.enter_context(os_errors_as(TrainingError, f"cannot write {folder / name}"))
            file = stack.enter_context(atomic_write(folder / name))
            content = content.encode() if isinstance(content, str) else content
            for part in [content] if isinstance(content, bytes) else content:
                file.write(part)
            file.flush()  # a full disk is reported for the file that it cannot take


def rename_to_free(folder: Path, name: Path) -> Path:
    """Rename a folder to this name, or to the first free name of name-2, name-3 ..."""
    for number in itertools.count(1):
        path = name if number == 1 else name.with_name(f"{name.name}-{number}")
        try:
            return folder.rename(path)
        except OSError:
            if not path.exists():
                raise
    raise AssertionError


def _check_entries(folder: Path) -> None:
    """Raise UserError where a write would follow a link out of the folder, block in a named pipe, or be refused."""
    folders = (folder / "checkpoints", folder / "checkpoints" / "set-aside", folder / "test")
    files = (*(folder / name for name in sorted(FILES)), *folder.glob(f"{EVENTS}*"), *folder.glob("checkpoints/*.pth"))
    for path in (*folders, *files):
        kind, is_right = ("folder", path.is_dir) if path in folders else ("file", path.is_file)
        if path.is_symlink() or (path.exists() and not is_right()):
            raise CheckpointError(f"{path} is not a {kind}, but a link or something else; move it away")
        if path.exists() and not os.access(path, os.R_OK | os.W_OK) and os.access(folder, os.W_OK):
            raise CheckpointError(f"{path} cannot be read and written: permission denied; change it with chmod u+rw")
