"""A warning if a data loader now prepares inputs differently than when its run was trained."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from base.load_run import TrainedRun
from base.training.saved_data import input_facts
from utils import checkpoint
from utils.text import listed
from utils.tree import same, same_leaf


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
