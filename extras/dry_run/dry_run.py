"""Argument ranges that only torch and torchmetrics know: what they reject when components are built.

The loss, metrics, optimizer and scheduler are built for a dummy parameter, which costs nothing. The project's own
components are only built in the run itself, since their constructors may do anything.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from utils.arguments import is_tensor, parameters
from utils.config.problems import components, group_arguments
from utils.config.schedulers import FROM_RUN_LENGTH, make_scheduler
from utils.device import pick_device
from utils.errors import ConfigError, Problem
from utils.fast_step import step_unmarked
from utils.nested_arguments import built
from utils.registry import OPTIMIZERS, REGISTRIES, SCHEDULERS
from utils.schema import Config, KeyPath, is_below
from utils.user_code import format_error

# in place of the length of the run, which the data may determine
ANY_LENGTH = 1000


def dry_run_problems(config: Config, pending: Sequence[KeyPath]) -> Iterator[Problem]:
    """What torch finds wrong with the device and its components.

    pending: values that are not known yet; a component that has one is not built.
    """
    try:
        pick_device(config.runtime.device)
    except ConfigError as error:
        yield Problem(error.path, error.message)
    has_groups = any(optimizer.groups for optimizer in config.optimizers.values())
    optimizers = dict[KeyPath, Optimizer]()  # by the path of the scheduler of each
    for kind, path, entry in components(config.model_dump()):
        name, args = entry["type"], entry["args"]
        if name in REGISTRIES[kind].own() or any(is_below(unknown, path) for unknown in pending):
            continue
        try:
            with warnings.catch_warnings(action="ignore"):  # the run itself will issue these warnings
                if kind == "optimizer":
                    optimizers["lr_scheduler", *path[1:]] = _optimizer(path, name, args)
                    for group_path, group_args in group_arguments(path, entry):
                        _optimizer(group_path[:-1], name, args | group_args)
                elif kind == "lr_scheduler":
                    optimizer = optimizers.get(path) or next(iter(optimizers.values()), None)
                    optimizer = optimizer or _optimizer((), "SGD", {"momentum": 0.9})
                    if not has_groups:  # a list of rates has one per group, and only the model determines the groups
                        _step_scheduler(path, name, args, optimizer)
                else:
                    _build(path, name, REGISTRIES[kind][name], args)
        except ConfigError as error:
            yield Problem(error.path, error.message)


def _build(path: KeyPath, name: str, make: Any, args: dict[str, Any]) -> Any:
    """Build a component. Raises ConfigError at the argument that caused the error, if it was a single one."""
    args = built(parameters(make), args, _tensor, path)
    try:
        return make(**args)
    except Exception as error:
        given = [key for key in args if key != FROM_RUN_LENGTH.get(name)]
        blamed = next((key for key in given if len(args) == 1 or _is_to_blame(make, args, key, error)), None)
        at = (*path, "args") if blamed is None else (*path, "args", blamed)
        message = f"{name} rejects this: {format_error(error).removeprefix('ValueError: ')}"
        raise ConfigError(message, at) from error


def _tensor(kind: type, value: Any, path: KeyPath) -> Any:
    return torch.tensor(value, dtype=torch.get_default_dtype()) if is_tensor(kind) else value


def _is_to_blame(make: Any, args: dict[str, Any], key: str, error: Exception) -> bool:
    """Whether the error disappears or changes when this argument is left out."""
    try:
        make(**{name: value for name, value in args.items() if name != key})
    except TypeError:  # a required argument
        return False
    except Exception as other:
        return str(other) != str(error)
    return True


def _optimizer(path: KeyPath, name: str, args: dict[str, Any]) -> Optimizer:
    """Build an optimizer and step it, since some check arguments only then."""
    kind: Any = OPTIMIZERS[name]
    parameter = torch.nn.Parameter(torch.ones(1, 1))

    def closure() -> torch.Tensor:
        parameter.grad = parameter.detach() / 2  # LBFGS uses its history only if it is not at the minimum at once
        return parameter.detach().square().sum() / 4

    def make(**args: Any) -> Any:
        optimizer = kind([parameter], **args)
        closure()
        # SparseAdam needs sparse gradients, "capturable" an accelerator
        elsewhere = args.get("capturable") and torch.accelerator.is_available()
        if name != "SparseAdam" and not elsewhere:
            step_unmarked(optimizer, closure)
        return optimizer

    optimizer: Optimizer = _build(path, name, make, args)
    return optimizer


def _step_scheduler(path: KeyPath, name: str, args: dict[str, Any], optimizer: Optimizer) -> None:
    """Build a scheduler and step it. Raises ConfigError, also if the learning rate turns negative or not finite."""

    def build(at: KeyPath, name: str, args: dict[str, Any]) -> Any:
        return _build(at, name, SCHEDULERS[name], args)

    scheduler: Any = make_scheduler({"type": name, "args": args}, optimizer, ANY_LENGTH, build, path)
    try:
        scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
    except Exception as error:
        raise ConfigError(f"the scheduler cannot step: {format_error(error)}", (*path, "args")) from error
    for group in optimizer.param_groups:
        if not 0 <= float(group["lr"]) < float("inf"):
            raise ConfigError(f"after one step the learning rate would be {float(group['lr'])}", (*path, "args"))
