"""What a run depends on besides its config: command, code, versions, machine."""

import platform
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from utils.device import describe_device
from utils.paths import PROJECT, code_digests
from utils.text import shell_join


def environment(device: torch.device, processes: int, seed: int) -> dict[str, Any]:
    """The record for environment.json. processes: how many train this run together."""
    packages = ("torch", "torchvision", "numpy", "tensorboard", "pydantic")
    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shell_join([Path(sys.executable).name, *sys.argv]),
        **git_state(),
        "code": code_digests(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "platform": platform.platform(),
        "device": str(device),
        **describe_device(device),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "seed": seed,
    }


def _version(package: str) -> str | None:
    """The installed version; None without the package, or with another build of it, such as tb-nightly."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_state() -> dict[str, Any]:
    """The project's commit, and whether files were changed; None for either if git cannot say."""
    changed = _git("status", "--porcelain")
    return {"git_commit": _git("rev-parse", "HEAD"), "git_dirty": None if changed is None else bool(changed)}


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(
            # a kill would leave git's lock on the index behind
            ["git", "--no-optional-locks", *arguments],
            cwd=PROJECT,
            capture_output=True,
            encoding="utf-8",  # on Windows the default is another
            errors="replace",
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None  # no git, or not a repository
