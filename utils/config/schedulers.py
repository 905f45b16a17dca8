"""Learning rate schedulers from a config: what may be left out is taken from the length of the run."""

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from utils.config.components import COMPOUND_SCHEDULERS, FROM_RUN_LENGTH, name_and_args
from utils.config.located_json import KeyPath
from utils.config.problem import Problem

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

# schedulers that never look at the optimizer's rate, and the argument that says theirs
SETS_RATE = {"OneCycleLR": "max_lr", "CyclicLR": "base_lr"}

Build = Callable[[KeyPath, str, dict[str, Any]], "LRScheduler"]
"""Makes the scheduler of a name with these arguments, and tells at a path of the config what goes wrong."""


def make_scheduler(entry: Any, optimizer: "Optimizer", length: int, build: Build, path: KeyPath) -> "LRScheduler":
    """The scheduler of a checked entry, laid out over so many epochs or steps."""
    found = name_and_args(entry)
    assert found is not None, "the config was checked"
    name, args = found[0], dict(found[1])
    left_out = FROM_RUN_LENGTH.get(name)
    if left_out and args.get(left_out) is None and args.get("epochs") is None:
        args[left_out] = length
    if name in COMPOUND_SCHEDULERS:
        lengths = _parts(args.get("milestones"), len(args["schedulers"]), length)
        args["schedulers"] = [
            make_scheduler(inner, optimizer, part, build, (*path, "args", "schedulers", index))
            for index, (inner, part) in enumerate(zip(args["schedulers"], lengths, strict=True))
        ]
    if name != "ChainedScheduler":
        args["optimizer"] = optimizer
    return build(path, name, args)


def contradiction(entry: Any, length: int) -> Problem | None:
    """Where a scheduler's own length does not fit a run of this one, past whose end OneCycleLR would raise."""
    name, args = name_and_args(entry) or ("", {})
    given = args.get("total_steps") or (args.get("epochs") or 0) * (args.get("steps_per_epoch") or 0)
    if name != "OneCycleLR" or not given or given == length:
        return None
    key = "total_steps" if args.get("total_steps") else "steps_per_epoch"
    message = f'OneCycleLR is laid out over {given} steps; the run has {length} of its "interval". Leave it out'
    return Problem(("lr_scheduler", "args", key), message)


def overruled(config: dict[str, Any]) -> Problem | None:
    """Where a learning rate is given that the scheduler sets aside."""
    name, _ = name_and_args(config.get("lr_scheduler")) or ("", {})
    _, args = name_and_args(config.get("optimizer")) or ("", {})
    if name not in SETS_RATE or "lr" not in args:
        return None
    message = f"has no effect: {name} sets the learning rate itself, from lr_scheduler.args.{SETS_RATE[name]}"
    return Problem(("optimizer", "args", "lr"), message)


def _parts(milestones: Any, count: int, length: int) -> list[int]:
    """How long each scheduler of a compound one lasts: between its milestones, or all the time."""
    if not isinstance(milestones, list) or len(milestones) != count - 1:
        return [length] * count  # torch says what is wrong with them
    return [max(1, stop - start) for start, stop in pairwise([0, *milestones, max(length, *milestones, 0)])]
