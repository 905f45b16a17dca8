"""Builds what costs nothing to build, on a parameter of its own: only then does torch check the ranges of arguments.

Components of the user's are left for the run itself, since their constructors may do anything.
"""

import inspect
import math
import warnings
from collections.abc import Iterator, Set
from typing import TYPE_CHECKING, Any

from utils.config.components import components, name_and_args
from utils.config.located_json import KeyPath
from utils.config.problem import Problem
from utils.config.schedulers import contradiction, make_scheduler
from utils.errors import ConfigError
from utils.registry import OPTIMIZERS, REGISTRIES, SCHEDULERS, Registry
from utils.schema import TrainerConfig
from utils.user_code import format_error

if TYPE_CHECKING:
    from torch.optim import Optimizer

STEPS_OF_UNKNOWN_RUN = 1000


class _Refused(Exception):  # noqa: N818  (carries a problem)
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def trial_problems(config: dict[str, Any], flawed: Set[KeyPath]) -> Iterator[Problem]:
    """What torch finds wrong with the arguments of its components. flawed: where something is known to be wrong.

    A step of the optimizer is tried only where nothing is: a run needs the 1.3 s for torch's compiler, which the first
    optimizer of a process imports, and a message about a misspelt key does not.
    """
    if ("runtime", "device") not in flawed:
        yield from _device(config)
    optimizer = None
    for kind, path, entry in components(config):
        sound = _sound_part(REGISTRIES[kind], path, entry, flawed)
        if sound is None:
            continue
        try:
            if kind == "optimizer":
                optimizer = _optimizer(path, *sound, step=not flawed)
            elif kind in ("loss", "metrics"):
                _no_reduction(path, _build(path, sound[0], REGISTRIES[kind][sound[0]], sound[1]))
            elif kind == "lr_scheduler":
                _schedule(config, path, sound, optimizer or _optimizer((), "SGD", {"momentum": 0.9}, step=False))
        except _Refused as refused:
            yield refused.problem


def _sound_part(
    registry: Registry, path: KeyPath, entry: Any, flawed: Set[KeyPath]
) -> tuple[str, dict[str, Any]] | None:
    """A library's component without the arguments that are known to be wrong; None if it cannot be built so."""
    found = name_and_args(entry)
    if found is None or found[0] in registry.own() or flawed & {path, (*path, "type"), (*path, "args")}:
        return None
    depth, known = len(path) + 1, registry.parameters(found[0])
    wrong = {where[depth] for where in flawed if where[:depth] == (*path, "args")}
    required = {name for name, parameter in known.items() if parameter.default is parameter.empty}
    if wrong & required:
        return None
    return found[0], {name: value for name, value in found[1].items() if name not in wrong}


def _device(config: dict[str, Any]) -> Iterator[Problem]:
    from utils.runtime import pick_device

    runtime = config.get("runtime")
    name = runtime.get("device") if isinstance(runtime, dict) else None
    if isinstance(name, str):
        try:
            pick_device(name)
        except ConfigError as error:
            yield Problem(("runtime", "device"), str(error).removeprefix("runtime.device: "))


def _build(path: KeyPath, name: str, make: Any, args: dict[str, Any]) -> Any:
    """Build a component. Raises _Refused at the argument that is to blame, if leaving it out changes what is said."""
    try:
        with warnings.catch_warnings(action="ignore"):  # it will warn when it is built for the run
            return make(**args)
    except Exception as error:
        message = f"{name} does not take this: {format_error(error).removeprefix('ValueError: ')}"
        blamed = next((key for key in args if _to_blame(make, args, key, error)), None)
        where = (*path, "args", blamed) if blamed is not None else (*path, "args")
        raise _Refused(Problem(where, message)) from error


def _to_blame(make: Any, args: dict[str, Any], key: str, error: Exception) -> bool:
    parameter = inspect.signature(make).parameters.get(key)
    if len(args) == 1:
        return True
    if parameter is None or parameter.default is parameter.empty:
        return False
    try:
        with warnings.catch_warnings(action="ignore"):
            make(**{name: value for name, value in args.items() if name != key})
    except Exception as other:
        return str(other) != str(error)
    return True


def _optimizer(path: KeyPath, name: str, args: dict[str, Any], *, step: bool) -> "Optimizer":
    import torch

    registered: Any = OPTIMIZERS[name]
    kind = registered if step else type(name, (registered,), {"add_param_group": _add_group})
    parameter = torch.nn.Parameter(torch.ones(1, 1))

    def make(**args: Any) -> Any:
        optimizer = kind([parameter], **args)
        parameter.grad = torch.ones(1, 1)
        # some refuse arguments only here; SparseAdam wants another gradient, "capturable" another device
        if step and name != "SparseAdam" and not torch.accelerator.is_available():
            optimizer.step(lambda: torch.ones(()))
        return optimizer

    make.__signature__ = inspect.signature(registered)  # type: ignore[attr-defined]
    built: Optimizer = _build(path, name, make, args)
    return built


def _add_group(optimizer: "Optimizer", group: dict[str, Any]) -> None:
    """What torch's own does at its end; it is the beginning that imports the compiler."""
    optimizer.param_groups.append({**optimizer.defaults, **group})


def _schedule(
    config: dict[str, Any], path: KeyPath, component: tuple[str, dict[str, Any]], optimizer: "Optimizer"
) -> None:
    """Build a schedule and move it once; a rate that is negative or no number is refused."""
    length, entry = _length(config), {"type": component[0], "args": component[1]}
    if length and (problem := contradiction(entry, length)):
        raise _Refused(problem)

    def build(at: KeyPath, name: str, args: dict[str, Any]) -> Any:
        return _build(at, name, SCHEDULERS[name], args)

    scheduler = make_scheduler(entry, optimizer, length or STEPS_OF_UNKNOWN_RUN, build, path)
    move: Any = scheduler.step
    try:
        with warnings.catch_warnings(action="ignore"):  # no optimizer step goes before this one
            move(1.0) if type(scheduler).__name__ == "ReduceLROnPlateau" else move()
    except Exception as error:
        raise _Refused(Problem((*path, "args"), f"the schedule cannot move: {format_error(error)}")) from error
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    if not all(0 <= rate < float("inf") for rate in rates):
        raise _Refused(Problem((*path, "args"), f"after one move the learning rate would be {rates[0]}"))


def _length(config: dict[str, Any]) -> int | None:
    """What the schedule is laid out over, if the config alone says so."""
    trainer, scheduler = config.get("trainer", {}), config["lr_scheduler"]
    if not isinstance(trainer, dict):
        return None
    counts: list[Any] = [trainer.get("epochs", TrainerConfig.model_fields["epochs"].default)]
    if isinstance(scheduler, dict) and scheduler.get("interval") == "step":
        counts.append(trainer.get("steps_per_epoch"))
    known = all(type(count) is int and count > 0 for count in counts)
    return math.prod(counts) if known else None


def _no_reduction(path: KeyPath, loss: Any) -> None:
    if path == ("loss",) and getattr(loss, "reduction", "mean") not in ("mean", "sum"):
        message = f'the loss must be "mean" or "sum" over the samples, got "{loss.reduction}"'
        raise _Refused(Problem(("loss", "args", "reduction"), message))
