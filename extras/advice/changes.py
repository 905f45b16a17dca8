"""What has changed since a run was last started: code, versions, machine, and how the data loader prepares inputs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from base.load_run import TrainedRun
from base.training.saved_data import input_facts
from logger.console import Console
from utils import checkpoint
from utils.text import listed
from utils.tree import same, same_leaf


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
    changed = " with uncommitted changes" if record.get("git_dirty") else ""
    return f"git commit {record.get('git_commit')!s:.9}{changed}"


def _compared(record: Mapping[str, Any]) -> dict[str, Any]:
    packages, device = record.get("packages"), str(record.get("device") or "").partition(":")[0]
    return {**record, "torch": packages.get("torch") if isinstance(packages, dict) else None, "device": device or None}


def changed_facts(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """name: of the data loader's class. before: its ``input_facts`` as saved with the run; empty if unknown."""
    now = checkpoint.plain(dict(now))
    changed = [key for key in before if key not in now or not same(before[key], now[key], alike=_alike)]
    if changed:
        yield (
            f"{name}.input_facts gives another {listed(changed)} than in this run so far: the data has changed, and "
            "inputs are now prepared differently"
        )


def changed_facts_of_test(run: TrainedRun, overrides: Sequence[str]) -> list[str]:
    """The same for a test, unless an override asks for it."""
    if any(override.startswith("data_loader") for override in overrides):
        return []
    try:
        data = run.experiment.data
        before = run.state["data"].get("input_facts", {})
        return list(changed_facts(type(data).__name__, before, input_facts(data, run.experiment.seed)))
    except Exception:  # of the user's code: a test may lack the training data
        return []


def _alike(one: Any, other: Any) -> bool:
    """Whether two leaves are equal: floats up to rounding, which depends on the number of threads."""
    if not all(isinstance(each, (float, Tensor)) for each in (one, other)):
        return same_leaf(one, other)
    one, other = (torch.as_tensor(each, dtype=torch.float64) for each in (one, other))
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-5, equal_nan=True)
