"""Loads a config: every check in its order, and all mistakes at once."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from utils.config.components import component_problems
from utils.config.extends import read_config
from utils.config.located_json import Document, KeyPath
from utils.config.overrides import apply_override
from utils.config.problem import Problem, config_error
from utils.config.schedulers import overruled
from utils.config.schema_problems import schema_problems
from utils.errors import ConfigError
from utils.paths import PROJECT
from utils.registry import REGISTRIES
from utils.schema import Config
from utils.text import hint

# what a line of metrics.jsonl holds beside the metrics
LOGGED = ("loss", "lr", "epoch", "step", "samples_per_second", "seconds")


@dataclass(frozen=True)
class LoadedConfig:
    """A config that passed every check, and where each part of it stands."""

    config: Config
    document: Document

    def error(self, path: KeyPath, message: str) -> ConfigError:
        """A mistake that showed only later, when the part at this path was built."""
        return config_error(self.document, [Problem(path, message)])

    def warnings(self) -> list[str]:
        """What a file may say, since it is common, though nothing comes of it."""
        problem = overruled(self.document.value)
        return [str(config_error(self.document, [problem]))] if problem else []


def load_config(path: Path, overrides: Sequence[str] = (), *, dry_run: bool = True) -> LoadedConfig:
    """Read and check a config file with KEY=VALUE overrides over it. Raises ConfigError that lists all mistakes.

    trial: let torch check the ranges of its own arguments too, and whether the device is there.
    """
    document = read_config(path)
    _not_another_file(document)
    for override in overrides:
        apply_override(document, override)
    config, problems = None, list[Problem]()
    try:
        config = Config.model_validate_json(json.dumps(document.value))
    except ValidationError as error:
        problems += schema_problems(document.value, error)
    problems += component_problems(document.value)
    if dry_run:
        from utils.config.dry_run import trial_problems

        problems += trial_problems(document.value, {problem.path for problem in problems})
    if config and not any(problem.path[:1] == ("metrics",) for problem in problems):
        problems += _run_problems(config)
    without_effect = overruled(document.value)
    # who gives it on the command line expects something of it
    if without_effect and document.place(without_effect.path).line == 0 and not problems:
        problems.append(without_effect)
    if problems or config is None:
        raise config_error(document, problems)
    return LoadedConfig(config, document)


def to_json(config: Config, *, folder: Path = PROJECT) -> str:
    """The whole config with every default filled in, as ``train.py -c`` takes it. folder: where it will stand."""
    values = config.model_dump(by_alias=True, exclude={"schema_path"})
    schema = {"$schema": Path(os.path.relpath(PROJECT / "config.schema.json", folder)).as_posix()}
    return json.dumps((schema if config.schema_path else {}) | values, indent=2) + "\n"


def _not_another_file(document: Document) -> None:
    """Raise ConfigError for an object that is something else, as environment.json: one message and not one a key."""
    kinds = [kind for kind in REGISTRIES if kind != "metrics"]
    if not document.value.keys() & {*kinds, "arch"}:
        wanted = ", ".join(f'"{kind}"' for kind in kinds)
        message = f"a config has {wanted}; there is none of them here. Is this the wrong file?"
        raise ConfigError(document.values[()].show(message))


def _run_problems(config: Config) -> Iterator[Problem]:
    """What single values cannot show: parts that do not fit each other."""
    names = [metric.name or metric.type for metric in config.metrics]
    for index, name in enumerate(names):
        if name in [*names[:index], *LOGGED] or name.startswith("val_"):
            yield Problem(("metrics", index), f'the name "{name}" is taken; give this metric another one with "name"')
    if (steps := config.trainer.profile_steps) and steps[0] > steps[1]:
        yield Problem(("trainer", "profile_steps"), f"the first step, {steps[0]}, comes after the last, {steps[1]}")
    if steps and not config.trainer.tensorboard:
        yield Problem(("trainer", "profile_steps"), 'it goes with TensorBoard; set "tensorboard" to true')
    if config.trainer.monitor:
        _, _, watched = config.trainer.monitor.partition(" ")
        logged = ["loss", *names]
        known = [*logged, *(f"val_{name}" for name in logged)]
        if watched not in known:
            yield Problem(("trainer", "monitor"), f'no metric gives "{watched}"; {hint(watched, known)}')
    elif config.trainer.early_stop:
        yield Problem(("trainer", "early_stop"), 'early_stop needs a monitored value, as in "monitor": "min val_loss"')
    scheduler = config.lr_scheduler
    if scheduler and scheduler.type == "ReduceLROnPlateau":
        if not config.trainer.monitor:
            yield Problem(("lr_scheduler",), 'ReduceLROnPlateau follows trainer.monitor; set it, as in "min val_loss"')
        elif scheduler.interval == "step":
            yield Problem(("lr_scheduler", "interval"), 'ReduceLROnPlateau moves after each epoch: "interval": "epoch"')
