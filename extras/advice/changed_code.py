"""What a resumed run says of code, versions and machine that differ from those of its last start."""

from collections.abc import Mapping
from typing import Any

from logger.console import Console
from utils.text import listed


def report_changes(console: Console, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Say on the console what has changed. before, now: from ``utils.environment``."""
    if changed := code_changes(before, now):
        console.info(f"resumed with {changed}")
    if changed := environment_changes(before, now):
        console.warn(f"resumed with {changed}: from here on, results are exact only up to rounding")


def environment_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two starts of a run that the last bits of its results depend on; "" if nothing does.

    before, now: from ``utils.environment``; what one of them lacks is not compared.
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
