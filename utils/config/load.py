"""Load a config: run the checks in stages, and report all mistakes of the first stage that finds any."""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from pydantic import ValidationError

from utils.config.ineffective import ineffective
from utils.config.located_json import Document, config_error
from utils.config.problems import component_problems, schema_problems
from utils.config.references import References, escaped
from utils.config.schedulers import monitor_conflict, switch_conflict
from utils.config.sources import read_config
from utils.errors import Problem, UserError
from utils.extras import find_extra
from utils.paths import PROJECT, path_from
from utils.registry import TRAINERS
from utils.schema import Config, KeyPath, LossConfig, is_below, validation_names
from utils.text import hint

T = TypeVar("T")
P = ParamSpec("P")

# keys besides the metrics: of a line in metrics.jsonl, and of the metrics.json of a test
LOGGED = ("loss", "lr", "epoch", "step", "samples_per_second", "seconds", "checkpoint", "samples", "overrides")


@dataclass(frozen=True)
class LoadedConfig:
    """A config that passed every check, with the source location of each part."""

    config: Config
    document: Document
    unresolved: Document
    """As written, with its references."""
    dry_run: bool = True
    from_data: Sequence[KeyPath] = ()
    """The arguments that refer to a fact of the data; ``with_facts`` gives the config to run."""

    def with_facts(self, facts: Mapping[str, Any]) -> "LoadedConfig":
        """The config with the facts of the data filled in. Raises ConfigError listing the mistakes."""
        filled = _checked(self.unresolved, facts, dry_run=self.dry_run)
        return replace(filled, from_data=self.from_data)

    def warnings(self) -> list[str]:
        """Keys without effect, which are too common in config files to be errors."""
        lines = (str(self.document.error(each.path, each.message)) for each in ineffective(self.config))
        return list(dict.fromkeys(lines))  # optimizers may share a schedule


def located(build: Callable[Concatenate[LoadedConfig, P], T]) -> Callable[Concatenate[LoadedConfig, P], T]:
    """Let a function that builds something from a config raise errors with a path in the config with the line there."""

    @functools.wraps(build)
    def build_located(loaded: LoadedConfig, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return build(loaded, *args, **kwargs)
        except UserError as error:
            if not error.path:
                raise
            raise type(error)(str(loaded.document.error(error.path, error.message))) from error

    return build_located


def load_config(
    path: Path, overrides: Sequence[str] = (), *, dry_run: bool = True, partial: bool = False
) -> LoadedConfig:
    """Read and check a config file with KEY=VALUE overrides applied. Raises ConfigError listing the mistakes.

    dry_run: also let torch check the ranges of its arguments, and whether the device exists.
    partial: the config will not be run; environment variables that it refers to may be unset.
    """
    return _checked(read_config(path, overrides), None, dry_run=dry_run, partial=partial)


def _checked(
    unresolved: Document, facts: Mapping[str, Any] | None, *, dry_run: bool, partial: bool = False
) -> LoadedConfig:
    references = References(unresolved, facts, partial=partial)
    document = references.resolved()
    unknown = [*references.pending, *(problem.path for problem in references.problems)]

    def known(problems: Iterable[Problem]) -> list[Problem]:
        """A value that is not known yet cannot be wrong."""
        return [problem for problem in problems if not is_below(problem.path, *unknown)]

    # keys, types and names
    config = None
    found: list[Problem] = []
    try:
        config = Config.model_validate_json(json.dumps(document.value))
    except ValidationError as error:
        found += schema_problems(document.value, error)
    problems = [*references.problems, *known([*found, *component_problems(document.value)])]

    # keys that contradict each other, and ranges that only torch knows
    if config and not problems:
        problems = known(_conflicts(config))
        if dry_run and (extra := find_extra("dry_run")):  # imports torch
            problems += extra.dry_run_problems(config, references.pending)

    # an override is expected to have an effect
    if config and not problems and not references.pending:
        problems = [each for each in ineffective(config) if document.is_override(each.path)]

    if problems or config is None:
        raise config_error(document, problems)
    return LoadedConfig(config, document, unresolved, dry_run, references.pending)


def to_json(config: Config, *, folder: Path = PROJECT) -> str:
    """The whole config with all defaults filled in, as ``train.py -c`` reads it. folder: where it is saved."""
    values = escaped(config.model_dump(exclude={"schema_path", "variables"}))
    return as_json(({"$schema": config.schema_path} if config.schema_path else {}) | values, folder)


def as_json(config: dict[str, Any], folder: Path) -> str:
    """A config as it was written, in the form that ``train.py -c`` reads from a folder."""
    schema = {"$schema": path_from(folder, PROJECT / "config.schema.json")}
    return json.dumps(config | (schema if "$schema" in config else {}), indent=2) + "\n"


def _conflicts(config: Config) -> Iterator[Problem]:
    """Keys that contradict each other."""
    yield from _metric_conflicts(config)
    steps = config.trainer.profile_steps
    if steps and steps[0] > steps[1]:
        yield Problem(("trainer", "profile_steps"), f"the first step, {steps[0]}, comes after the last, {steps[1]}")
    if steps and not config.trainer.writes_tensorboard:
        message = 'needs TensorBoard: "tensorboard" among the writers, and not "tensorboard": false'
        yield Problem(("trainer", "profile_steps"), message)
    if isinstance(config.loss, LossConfig) and config.loss.weight != 1:
        yield Problem(("loss", "weight"), "a single loss cannot have a weight; only several losses by name can")
    writers = [writer.type for writer in config.trainer.writers]
    for index, name in enumerate(writers):
        if name in writers[:index]:
            yield Problem(("trainer", "writers", index), f'"{name}" is listed twice; only one would write')
    several = isinstance(config.optimizer, dict)
    if several and config.runtime.strategy == "fsdp":
        message = 'several optimizers need "ddp", since each reduces its gradients separately'
        yield Problem(("runtime", "strategy"), message)
    if several and config.runtime.precision == "fp16" and config.trainer.accumulate_steps > 1:
        message = (
            "with several optimizers and accumulate_steps > 1, the loss scale would change within a step; use bf16"
        )
        yield Problem(("runtime", "precision"), message)
    yield from _scheduler_conflicts(config)


def _scheduler_conflicts(config: Config) -> Iterator[Problem]:
    schedulers = config.lr_scheduler
    if isinstance(schedulers, dict):
        for name in schedulers.keys() - config.optimizers.keys():
            there = (
                hint(name, config.optimizers) if config.optimizers.keys() != {""} else "the config has one optimizer"
            )
            yield Problem(("lr_scheduler", name), f'unknown optimizer "{name}"; {there}')
    for path, scheduler in config.schedulers().items():
        conflicts = monitor_conflict(scheduler, path, config.trainer.monitor), switch_conflict(scheduler, path)
        yield from filter(None, conflicts)


def _metric_conflicts(config: Config) -> Iterator[Problem]:
    values: list[tuple[KeyPath, str]] = [
        *((("metrics", index), metric.logged_name) for index, metric in enumerate(config.metrics)),
        *((("trainer", "type"), name) for name in getattr(TRAINERS.get(config.trainer.type), "logs", ())),
        *((("loss", name), name) for name in filter(None, config.losses)),
    ]
    logged = ["loss", *(name for _, name in values)]
    in_validation: list[tuple[KeyPath, str]] = [
        (("validation", data_set), f"val_{data_set}_{name}")
        for data_set in filter(None, config.validations)
        for name in logged
    ]
    taken = {*LOGGED, *(f"val_{name}" for name in logged)}
    for path, name in [*values, *in_validation]:
        if name in taken or (name.startswith(("val_", "lr_")) and path[0] != "validation"):
            yield Problem(path, f'its value would be logged as "{name}", but that name is taken; choose another name')
        taken.add(name)
    if config.trainer.monitor:
        monitored = config.trainer.monitored_name
        left_out = {metric.logged_name for metric in config.metrics if not metric.training}
        in_training = [name for name in logged if name not in left_out]
        known = [*in_training, *(each for name in logged for each in validation_names(name, config.validations))]
        if monitored not in known:
            yield Problem(("trainer", "monitor"), f'no value is logged as "{monitored}"; {hint(monitored, known)}')
    elif config.trainer.early_stop:
        yield Problem(("trainer", "early_stop"), 'early_stop needs a monitored value, as in "monitor": "min val_loss"')
