"""Learning rate schedulers from a config. Omitted arguments follow from the length of the run."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from utils.errors import Problem
from utils.registry import SCHEDULERS
from utils.schema import KeyPath, SchedulerConfig, name_and_args

# the argument that defaults to the length of the run
FROM_RUN_LENGTH = {"OneCycleLR": "total_steps", "CosineAnnealingLR": "T_max"}
if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

Build = Callable[[KeyPath, str, dict[str, Any]], "LRScheduler"]
"""Builds the named scheduler with these arguments; errors point to this path of the config."""


def make_scheduler(entry: Any, optimizer: "Optimizer", length: int, build: Build, path: KeyPath) -> "LRScheduler":
    """Build the scheduler of a checked entry. length: of the run, in epochs or steps, as given by its "interval"."""
    component = name_and_args(entry)
    assert component is not None, "the config was checked"
    name, args = component[0], dict(component[1])
    left_out = FROM_RUN_LENGTH.get(name)
    if left_out and args.get(left_out) is None and args.get("epochs") is None:
        args[left_out] = length
    if "schedulers" in args:
        lengths = _part_lengths(args.get("milestones"), len(args["schedulers"]), length)
        args["schedulers"] = [
            make_scheduler(inner, optimizer, part, build, (*path, "args", "schedulers", index))
            for index, (inner, part) in enumerate(zip(args["schedulers"], lengths, strict=True))
        ]
    return build(path, name, args | {"optimizer": optimizer})


def follows_monitor(name: str) -> bool:
    """Whether a scheduler steps on the monitored value: ReduceLROnPlateau or a subclass of it."""
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    made = SCHEDULERS.get(name)
    return isinstance(made, type) and issubclass(made, ReduceLROnPlateau)


def with_mode(entry: dict[str, Any], monitor: str | None) -> dict[str, Any]:
    """The entry of a scheduler that steps on the monitored value, with the monitor's mode filled in."""
    if not monitor or not follows_monitor(entry["type"]) or "mode" not in SCHEDULERS.parameters(entry["type"]):
        return entry
    return {**entry, "args": {"mode": monitor.split()[0], **entry["args"]}}


def monitor_conflict(scheduler: SchedulerConfig, path: KeyPath, monitor: str | None) -> Problem | None:
    """The conflict of a scheduler that steps on the monitored value with its interval or mode, if any."""
    name = scheduler.type
    if not follows_monitor(name):
        return None
    if not monitor:
        return Problem(path, f'{name} follows trainer.monitor; set it, as in "min val_loss"')
    if scheduler.interval == "step":
        return Problem((*path, "interval"), f'{name} steps after each epoch; set "interval": "epoch"')
    mode = monitor.split()[0]
    if scheduler.args.get("mode", mode) != mode:
        message = f'contradicts trainer.monitor, which is "{monitor}"; leave it out to follow the monitor'
        return Problem((*path, "args", "mode"), message)
    return None


def _part_lengths(milestones: Any, count: int, length: int) -> list[int]:
    """How long each part of a compound scheduler lasts: from milestone to milestone, or the whole run."""
    steps = [each for each in milestones if isinstance(each, int)] if isinstance(milestones, list) else []
    if len(steps) != count - 1 or steps != milestones:
        return [length] * count  # torch reports what is wrong with them, or they refer to the data
    return [max(1, stop - start) for start, stop in pairwise([0, *steps, max(length, *steps, 0)])]


class SchedulerPart(NamedTuple):
    """A scheduler, or one inside another."""

    name: str
    args: dict[str, Any]
    at: KeyPath
    """Path of its arguments."""
    length: int
    """How long it lasts."""


def scheduler_parts(name: str, args: dict[str, Any], at: KeyPath, length: int) -> Iterator[SchedulerPart]:
    """A scheduler of this length and, after it, those inside it. at: path of its arguments."""
    yield SchedulerPart(name, args, at, length)
    inner = args.get("schedulers")
    if isinstance(inner, list):
        lengths = _part_lengths(args.get("milestones"), len(inner), length)
        for index, (entry, lasts) in enumerate(zip(inner, lengths, strict=True)):
            if component := name_and_args(entry):
                yield from scheduler_parts(*component, (*at, "schedulers", index, "args"), lasts)


def switch_conflict(scheduler: SchedulerConfig, path: KeyPath) -> Problem | None:
    """A scheduler to which torch's SequentialLR cannot switch: one made of others, without its own rate."""
    from torch.optim.lr_scheduler import LRScheduler

    for part in scheduler_parts(scheduler.type, scheduler.args, (*path, "args"), length=0):
        inner = part.args.get("schedulers", ()) if part.name == "SequentialLR" else ()
        for index, (name, args) in enumerate(filter(None, map(name_and_args, inner))):
            made = SCHEDULERS.get(name)
            if index and "schedulers" in args and getattr(made, "get_lr", None) is LRScheduler.get_lr:
                message = f"SequentialLR cannot switch to {name}, which is made of others; only its first part can be"
                return Problem((*part.at, "schedulers", index), message)
    return None


def length_conflict(name: str, args: dict[str, Any], path: KeyPath, length: int) -> Problem | None:
    """A mistake if OneCycleLR differs in length from the run or, in SequentialLR, from its part of the run, since
    stepping it past its end raises an error. Also if such parts overlap. path: of the arguments.
    """
    for part in scheduler_parts(name, args, path, length):
        milestones = part.args.get("milestones") if "schedulers" in part.args else None
        if isinstance(milestones, list) and any(stop <= start for start, stop in pairwise([0, *milestones])):
            message = f"should increase from 1 on, since each is where the next scheduler takes over, got {milestones}"
            return Problem((*part.at, "milestones"), message)
        total, epochs, steps = (part.args.get(key) or 0 for key in ("total_steps", "epochs", "steps_per_epoch"))
        given = total or epochs * steps
        if part.name == "OneCycleLR" and given and given != part.length:
            key = "total_steps" if total else "steps_per_epoch"
            whole = "its part of the run" if "schedulers" in part.at else "the run"
            message = f'OneCycleLR is set to {given} steps, but {whole} has {part.length} with this "interval"'
            return Problem((*part.at, key), f"{message}; leave it out")
    return None
