"""Keys of a config that have no effect: because of other keys, or in a command that does not read them.

They are too common in files to be errors, and cause warnings there; an override is expected to have an effect.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.arguments import inside, parameters
from utils.config.schedulers import SchedulerPart, scheduler_parts
from utils.config.sources import expected_at, read_config
from utils.errors import ConfigError, Problem
from utils.registry import METRICS, OPTIMIZERS, SCHEDULERS, TRAINERS, markers
from utils.schema import Command, Config, KeyPath, OptimizerConfig, SchedulerConfig, component_path
from utils.text import dotted

# schedulers that ignore the optimizer's learning rate, and the argument they take it from
SETS_RATE = {"OneCycleLR": "max_lr", "CyclicLR": "base_lr"}
# arguments of torch's optimizers that have no effect if another one is 0
NEEDS = {"dampening": "momentum", "decoupled_weight_decay": "weight_decay"}


def ineffective(config: Config) -> Iterator[Problem]:
    """Every given key that has no effect, with the reason."""
    for name, optimizer in config.optimizers.items():
        path = component_path("optimizer", name)
        at, scheduler = config.scheduler_of(name)
        simple = _simple_parts(scheduler, at) if scheduler else []
        setting = [part for part in simple if part.name in SETS_RATE]
        for part in setting:
            yield from _set_by_scheduler(optimizer, path, part, part is simple[0])
        if not setting and optimizer.type not in OPTIMIZERS.own():  # else a scheduler may set the momentum
            yield from _without_other(optimizer, path)
    for at, scheduler in config.schedulers().items():  # once, also if several optimizers have it
        for part in _simple_parts(scheduler, at):
            yield from _unused_by_scheduler(part) if part.name in SETS_RATE else ()
    for key in ("clip_grad_norm", "clip_grad_value"):
        if getattr(config.trainer, key) and all(getattr(each, key) for each in config.optimizers.values()):
            own = " and ".join(dotted((*component_path("optimizer", name), key)) for name in config.optimizers)
            yield Problem(("trainer", key), f"has no effect: {own} replaces it")
    yield from _of_other_tasks(config)
    yield from _outputs(config)
    for name, component in config.validations.items():
        for argument in ("drop_last", "balanced", "shuffle"):
            if component.args.get(argument) is True:
                path = (*component_path("validation", name), "args", argument)
                yield Problem(path, "has no effect: every validation sample is used once, in order")


def _simple_parts(scheduler: SchedulerConfig, at: KeyPath) -> list[SchedulerPart]:
    """The schedulers of which one at a path is composed."""
    parts = scheduler_parts(scheduler.type, scheduler.args, (*at, "args"), length=0)
    return [part for part in parts if "schedulers" not in part.args]


def _places(optimizer: OptimizerConfig, path: KeyPath) -> dict[KeyPath, dict[str, Any]]:
    """The arguments of an optimizer at a path, and those of its groups, by their paths."""
    groups = {(*path, "groups", index, "args"): group.args for index, group in enumerate(optimizer.groups)}
    return {(*path, "args"): optimizer.args, **groups}


def _without_other(optimizer: OptimizerConfig, path: KeyPath) -> Iterator[Problem]:
    """Arguments that lack the one they need, in the optimizer and all its groups."""
    places = _places(optimizer, path)
    for key, other in NEEDS.items():
        for place, args in places.items():
            if args.get(key) and not any(each.get(other) for each in places.values()):
                yield Problem((*place, key), f"has no effect without {other}")


def _set_by_scheduler(optimizer: OptimizerConfig, path: KeyPath, part: SchedulerPart, first: bool) -> Iterator[Problem]:
    """Learning rates and momenta of an optimizer and its groups in whose place a scheduler sets its own.

    path: of the optimizer. first: whether the scheduler is built first; CyclicLR then replaces the learning rate.
    """
    given = {key: each.default for key, each in SCHEDULERS.parameters(part.name).items()} | part.args
    for place, args in _places(optimizer, path).items():
        if "lr" in args and (first or part.name == "OneCycleLR"):
            source = dotted((*part.at, SETS_RATE[part.name]))
            yield Problem((*place, "lr"), f"has no effect: {part.name} sets the learning rate itself, from {source}")
        for key in ("momentum", "betas") if given["cycle_momentum"] else ():
            value = args[key][0] if isinstance(args.get(key), list) else args.get(key)
            maximum = given["max_momentum"]  # a list has one per parameter group
            if value not in (None, *(maximum if isinstance(maximum, list) else [maximum])):
                message = f"{value} has no effect: {part.name} sets the momentum itself, from max_momentum"
                yield Problem((*place, key), f"{message}; set {dotted((*part.at, 'cycle_momentum'))} to false")


def _unused_by_scheduler(part: SchedulerPart) -> Iterator[Problem]:
    """Arguments of a scheduler that has a learning rate of its own that have no effect because of others."""
    defaults = {key: each.default for key, each in SCHEDULERS.parameters(part.name).items()}
    given, unused = defaults | part.args, dict[str, str]()
    if not given["cycle_momentum"]:
        unused |= dict.fromkeys(("base_momentum", "max_momentum"), "without cycle_momentum")
    if given.get("mode") in ("triangular", "triangular2"):
        unused["gamma"] = 'without "mode": "exp_range"'
    if part.name == "OneCycleLR" and (given["total_steps"] or not given["epochs"]):
        unused |= dict.fromkeys(("epochs", "steps_per_epoch"), "beside total_steps, by default the length of the run")
    for key, why in unused.items():
        if given.get(key) != defaults.get(key):
            yield Problem((*part.at, key), f"has no effect {why}")


def _of_other_tasks(config: Config) -> Iterator[Problem]:
    """Arguments that a metric of torchmetrics takes for other tasks only, such as the average of a binary F1Score."""
    for index, metric in enumerate(config.metrics):
        task = metric.args.get("task")
        if task is None or metric.type in METRICS.own():  # looking for others imports torchmetrics
            continue
        library = METRICS.from_library(metric.type)
        of_task = getattr(sys.modules.get(getattr(library, "__module__", "")), f"{task}".title() + metric.type, None)
        if of_task is None:
            continue
        used, known = parameters(of_task), METRICS.parameters(metric.type)
        for name, value in metric.args.items():
            if name in known.keys() - used.keys() - {"task"} and value != known[name].default:
                yield Problem(("metrics", index, "args", name), f'has no effect with "task": "{task}"; leave it out')


def _outputs(config: Config) -> Iterator[Problem]:
    """What would be shown, but is written nowhere."""
    trainer = config.trainer
    if trainer.writes_tensorboard:
        return
    if trainer.pictures_every:
        message = 'has no effect without TensorBoard: "tensorboard" is not among the writers, or is set to false'
        yield Problem(("trainer", "pictures_every"), message)
    shown = any(each.type != "tensorboard" for each in trainer.writers)
    # the validation of a trainer of your own may do more than return values
    if trainer.validate_every_steps and not shown and trainer.type == TRAINERS.default:
        message = "has no effect: no writer would show its values, which are not in metrics.jsonl"
        yield Problem(("trainer", "validate_every_steps"), message)


# ------------------------------------------------------------------ in a command


def refuse_unread(config: Path, overrides: Sequence[str], command: Command) -> None:
    """Raise ConfigError for an override, of a config that was checked with it, that has no effect in a command."""
    document = read_config(config, overrides)
    for given, source in document.sources.items():
        for path in () if source.text is not None else _keys(given, inside(document.value, given)[1]):
            component = _component(document.value, path)
            if not all(command in marker for marker in markers(path, component, Command)):
                expected = expected_at(document.value, path)
                if component and path != given and expected and expected.default is expected.empty:
                    continue  # the arguments, given as one object, have to have it
                raise ConfigError(f"{source.name}: this command does not use {dotted(path)}; leave it out")


def _keys(path: KeyPath, value: Any) -> Iterator[KeyPath]:
    """The keys and arguments that are given by the value at a path."""
    if not value or not isinstance(value, Mapping) or "args" in path[:-1]:
        yield path
        return
    for key, item in value.items():
        yield from _keys((*path, key), item)


def _component(config: Any, path: KeyPath) -> str | None:
    """The name of the component to which an argument at a path belongs."""
    if "args" not in path[:-1]:
        return None
    entry = inside(config, path[: path.index("args")])[1]
    return entry.get("type") if isinstance(entry, dict) else None
