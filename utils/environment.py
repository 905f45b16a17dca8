"""What a run depends on besides its config: command, code, versions, machine."""

import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from utils.device import describe_device
from utils.paths import PROJECT, code_digests
from utils.text import listed, shell_join


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


def environment_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two starts of a run that the last bits of its results depend on; "" if nothing does.

    before, now: from ``environment``; what one of them lacks is not compared.
    """
    one, other = _compared(before), _compared(now)
    kinds = ("torch", "device", "cuda", "cudnn", "device_name", "cpu_capability", "processes", "threads")
    differ = [kind for kind in kinds if None not in (one.get(kind), other.get(kind)) and one[kind] != other[kind]]
    return ", ".join(f"{kind.replace('_', ' ')} {other[kind]} (before: {one[kind]})" for kind in differ)


def code_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How the code of two starts of a run differs: the git commit, and the packages; "" if it does not."""
    one, other = before.get("code"), now["code"]
    changed = [name for name in other if isinstance(one, dict) and one.get(name, other[name]) != other[name]]
    where = listed([f"{name}/" if name != "." else "the scripts" for name in changed])
    commits = [_commit(record) for record in (before, now)]
    if None not in (before.get("git_commit"), now["git_commit"]) and commits[0] != commits[1]:
        return f"the code of {commits[1]} (before: {commits[0]})" + (f"; changed: {where}" if changed else "")
    return f"changed code: {where}" if changed else ""


def _commit(record: Mapping[str, Any]) -> str:
    return f"git commit {record.get('git_commit')!s:.9}" + (
        " with uncommitted changes" if record.get("git_dirty") else ""
    )


def _compared(record: Mapping[str, Any]) -> dict[str, Any]:
    packages, device = record.get("packages"), str(record.get("device") or "").partition(":")[0]
    return {**record, "torch": packages.get("torch") if isinstance(packages, dict) else None, "device": device or None}


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
