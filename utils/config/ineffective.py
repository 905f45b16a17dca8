"""Keys of a config that have no effect because of other keys.

They are too common in files to be errors, and cause warnings there; an override is expected to have an effect.
"""

import sys
from collections.abc import Iterator
from typing import Any

from utils.arguments import parameters
from utils.config.located_json import Problem
from utils.config.schedulers import COMPOUND_SCHEDULERS, SchedulerPart, scheduler_parts
from utils.registry import METRICS, OPTIMIZERS, SCHEDULERS, TRAINERS, Registry
from utils.schema import Config, KeyPath, OptimizerConfig, component_path
from utils.text import dotted

# schedulers that ignore the optimizer's learning rate, and the argument they take it from
SETS_RATE = {"OneCycleLR": "max_lr", "CyclicLR": "base_lr"}

NEEDS = {
    "dampening": "momentum",
    "decoupled_weight_decay": "weight_decay",
    "base_momentum": "cycle_momentum",
    "max_momentum": "cycle_momentum",
}
"""Arguments of torch's optimizers and schedulers that have no effect if another one is 0 or false."""


def ineffective(config: Config) -> Iterator[Problem]:
    """Every given key that has no effect, with the reason."""
    for name, optimizer in config.optimizers.items():
        at, scheduler = config.scheduler_of(name)
        parts = scheduler_parts(scheduler.type, scheduler.args, (*at, "args"), length=0) if scheduler else ()
        simple = [part for part in parts if part.name not in COMPOUND_SCHEDULERS]
        if not any(part.name in SETS_RATE for part in simple):  # which may set a momentum
            yield from _without_other(OPTIMIZERS, optimizer.type, _places(optimizer, component_path("optimizer", name)))
        for number, part in enumerate(simple):
            yield from _without_other(SCHEDULERS, part.name, {part.at: part.args})
            if part.name == "OneCycleLR":
                yield from _length(part)
            if part.name == "CyclicLR" and part.args.get("gamma", 1.0) != 1.0 and part.args.get("mode") != "exp_range":
                yield Problem((*part.at, "gamma"), 'has no effect without "mode": "exp_range"')
            if part.name in SETS_RATE:
                yield from _set_by_scheduler(optimizer, component_path("optimizer", name), part, number == 0)
    yield from _of_other_tasks(config)
    yield from _clipping(config)
    yield from _outputs(config)
    for name, component in config.validations.items():
        for argument in ("drop_last", "balanced"):
            if component.args.get(argument) is True:
                path = (*component_path("validation", name), "args", argument)
                yield Problem(path, "has no effect: every validation sample is used once, in order")
    if config.runtime.unused_parameters and config.runtime.strategy == "fsdp":
        yield Problem(("runtime", "unused_parameters"), 'has no effect: "fsdp" has no such search, only "ddp"')


def _places(optimizer: OptimizerConfig, path: KeyPath) -> dict[KeyPath, dict[str, Any]]:
    """The arguments of an optimizer at a path, and those of its groups, by their paths."""
    groups = {(*path, "groups", index, "args"): group.args for index, group in enumerate(optimizer.groups)}
    return {(*path, "args"): optimizer.args, **groups}


def _without_other(registry: Registry, name: str, places: dict[KeyPath, dict[str, Any]]) -> Iterator[Problem]:
    """Arguments that lack the one they need. places: where they are given, first for all groups, then for each."""
    if name in registry.own():
        return
    known, common = registry.parameters(name), next(iter(places.values()))
    for key, other in NEEDS.items():
        for place, args in places.items():
            if key not in known.keys() & args.keys() or args[key] == known[key].default:
                continue
            used_by = places.values() if args is common else [args]
            if not any(each.get(other, common.get(other, known[other].default)) for each in used_by):
                yield Problem((*place, key), f"has no effect without {other}")


def _length(part: SchedulerPart) -> Iterator[Problem]:
    """What OneCycleLR ignores: it takes total_steps, which follows from the run, or else both of the others."""
    given = {key for key in ("total_steps", "epochs", "steps_per_epoch") if part.args.get(key) is not None}
    if given != {"epochs", "steps_per_epoch"}:
        for key in sorted(given - {"total_steps"}):
            yield Problem((*part.at, key), "has no effect: total_steps, which follows from the run, sets the length")


def _set_by_scheduler(optimizer: OptimizerConfig, path: KeyPath, part: SchedulerPart, first: bool) -> Iterator[Problem]:
    """Learning rates and momenta of an optimizer and its groups in whose place a scheduler sets its own.

    path: of the optimizer. first: whether the scheduler is built first; CyclicLR then replaces the learning rate.
    """
    name, sets, places = part.name, SETS_RATE[part.name], _places(optimizer, path)
    for place, args in places.items():
        if "lr" in args and (first or name == "OneCycleLR"):
            message = f"has no effect: {name} sets the learning rate itself, from {dotted((*part.at, sets))}"
            yield Problem((*place, "lr"), message)
    arguments = {key: each.default for key, each in SCHEDULERS.parameters(name).items()} | part.args
    if not arguments["cycle_momentum"]:
        return
    start = arguments["max_momentum"]
    for place, args in places.items():
        for key in ("momentum", "betas"):
            momentum = args.get(key)
            value = momentum[0] if isinstance(momentum, list) and momentum else momentum
            if value is not None and value != start and not (isinstance(start, list) and value in start):
                low, high = (dotted((*part.at, bound)) for bound in ("base_momentum", "max_momentum"))
                message = (
                    f"{value} has no effect: {name} sets the momentum itself, between {high} and {low}; set it to the "
                    f"former, {start}, or {dotted((*part.at, 'cycle_momentum'))} to false"
                )
                yield Problem((*place, key), message)


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


def _clipping(config: Config) -> Iterator[Problem]:
    """The trainer's clipping if each optimizer has its own."""
    for key in ("clip_grad_norm", "clip_grad_value"):
        if getattr(config.trainer, key) and all(getattr(each, key) for each in config.optimizers.values()):
            own = [dotted((*component_path("optimizer", name), key)) for name in config.optimizers]
            yield Problem(("trainer", key), f"has no effect: {' and '.join(own)} replaces it")


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
