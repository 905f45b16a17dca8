"""The folder of one run: made once, found again on resume, owned by one process at a time."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from utils.errors import CheckpointError, UserError
from utils.paths import PROJECT, project_path


class RunFolder:
    """Where everything of a run stands."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.environment = path / "environment.json"
        self.log = path / "train.log"
        self.checkpoints = path / "checkpoints"

    @classmethod
    def create(cls, save_dir: str, name: str) -> "RunFolder":
        """Make save_dir/name/YYYYMMDD-HHMMSS, with -2, -3 ... behind it if another run took that second."""
        parent = project_path(save_dir) / name
        stamp = time.strftime("%Y%m%d-%H%M%S")
        number = 1
        while True:
            path = parent / (stamp if number == 1 else f"{stamp}-{number}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                number += 1
            except OSError as error:
                raise UserError(
                    f"the run folder {path} cannot be made: {error.strerror}; see trainer.save_dir"
                ) from error
            else:
                (path / "checkpoints").mkdir()
                return cls(path)

    @classmethod
    def newest(cls, save_dir: str, name: str) -> "RunFolder":
        """The newest run under save_dir/name. Raises CheckpointError if there is none."""
        parent = project_path(save_dir) / name
        runs = [path for path in parent.glob("*") if (path / "config.json").is_file()]
        if not runs:
            raise CheckpointError(f"there is no run to resume under {parent}; start one without -r")
        return cls(max(runs, key=_order))

    @classmethod
    def of(cls, path: Path) -> tuple["RunFolder", Path | None]:
        """The run that a path names: its folder, or a checkpoint file in it, which is then given too."""
        if not path.exists():
            raise CheckpointError(f"{path}: there is no such run folder or checkpoint")
        folder = path if path.is_dir() else path.resolve().parent.parent
        if not (folder / "config.json").is_file():
            what = "run folder" if path.is_dir() else "checkpoint in a run folder"
            raise CheckpointError(f"{path} is no {what}: there is no config.json in {folder}")
        return cls(folder), None if path.is_dir() else path

    @classmethod
    def checkpoint_of(cls, path: Path) -> Path:
        """The checkpoint that a path names: itself, or the best one of a run folder, or else its newest."""
        run, file = cls.of(path)
        if file is not None:
            return file
        for name in ("best.pth", "last.pth"):
            if (run.checkpoints / name).is_file():
                return run.checkpoints / name
        raise CheckpointError(f"{path} has no checkpoint yet")

    def last_epoch(self) -> dict[str, Any]:
        """The newest line of metrics.jsonl; empty if there is none."""
        try:
            lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            return dict(json.loads(lines[-1])) if lines else {}
        except (OSError, ValueError):
            return {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Own this folder until the process ends, however it ends. Raises UserError if another process owns it."""
        with (self.path / ".lock").open("a") as file:
            try:
                _lock_file(file)
            except OSError as error:
                raise UserError(f"{self.path} is in use: another process trains this run now") from error
            yield

    def write_config(self, text: str) -> None:
        """Replace config.json, whole or not at all."""
        replace_text(self.config, text)

    def write_environment(self, record: dict[str, Any]) -> None:
        """Note how this run was started or, below "resumed", how it went on."""
        try:
            before = json.loads(self.environment.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = None
        if isinstance(before, dict):
            record = {**before, "resumed": [*before.get("resumed", []), record]}
        replace_text(self.environment, json.dumps(record, indent=2) + "\n")


def environment(device: str, seed: int) -> dict[str, Any]:
    """What a run depends on beside its config: command, code, versions, machine."""
    import platform
    from importlib.metadata import version

    import torch

    packages = ("torch", "torchvision", "numpy", "tensorboard", "pydantic")
    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "platform": platform.platform(),
        "device": device,
        "threads": torch.get_num_threads(),
        "seed": seed,
    }


def _order(path: Path) -> tuple[str, int]:
    """Runs in the order in which they were started: by time, then by the number behind it."""
    stamp, _, number = path.name[:15], path.name[15:16], path.name[16:]
    return stamp, int(number) if number.isdigit() else 1


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(
            ["git", *arguments], cwd=PROJECT, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None  # no git, or no repository


def replace_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _lock_file(file: IO[str]) -> None:
    """Lock an open file; the system lets go when the process ends, so that no stale lock is left."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
