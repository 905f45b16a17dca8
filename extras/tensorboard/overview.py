"""What comes first: the layout of the page of custom scalars, and the numbers by which runs are compared."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary

from base.experiment import Training
from extras.tensorboard import summaries
from utils.schema import Config

# what changes where a run is kept or what is shown of it, but not what comes out
NO_HYPERPARAMETERS: dict[str, Any] = {
    "schema_path": True,
    "metrics": True,
    "trainer": {
        "save_dir", "save_period", "save_every_steps", "keep_last", "log_every_steps", "tensorboard", "verbosity",
        "pictures_every", "profile_steps",
    },
}  # fmt: skip


def hyperparameters(config: Config, start: float) -> Summary:
    """By the keys of the config, ``optimizer.lr`` for optimizer.args.lr. start: when the run began, since 1970."""
    values = config.model_dump(exclude=NO_HYPERPARAMETERS, exclude_none=True)
    return summaries.hyperparameters({key.replace(".args.", "."): value for key, value in _flat(values)}, start)


def best(values: Mapping[str, float]) -> dict[str, float]:
    """The values of an epoch that is the best so far; of training only where there is no validation.

    They are written only then, so that the last of them, which the page of hyperparameters shows, are the run's best.
    """
    chosen = {name: value for name, value in values.items() if name.startswith("val_")} or values
    return {f"best/{name.removeprefix('val_')}": value for name, value in chosen.items()}


def layout(config: Config, training: Training) -> Summary:
    """Training and validation in one chart, the most important charts first."""
    names = ["loss", *(metric.name or metric.type for metric in config.metrics)]
    phases = ("train", "valid") if training.validation else ("train",)
    rates = f"^learning_rate{'/.*' if len(training.optimizer.param_groups) > 1 else ''}$"
    return summaries.layout(
        {
            "overview": {
                **{name: [f"^{re.escape(name)}/{phase}$" for phase in phases] for name in names},
                "learning rate": [rates],
                "gradient norm (before clipping)": ["^gradient_norm$"],
            },
            "every few steps": {name: [f"^{re.escape(name)}/step$"] for name in names},
            "the machine": {"samples per second": ["^samples_per_second$"], "memory (MB)": ["^memory/.*$"]},
        }
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values in objects within objects, each under a key with dots."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
