"""The pages that TensorBoard arranges from a description: hyperparameters, and custom scalars."""

import contextlib
import json
import re
import time
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.plugins.hparams.summary_v2 import Discrete, RealInterval, hparams_pb
from torch.utils import tensorboard

from base.experiment import Training
from extras.records import flat
from logger.writers import WHOLE, EventWriter
from utils.files import read_json_object
from utils.schema import Config

summary: Any = tensorboard.summary  # its functions are not typed
Value = bool | int | float | str

COLUMNS = "experiment"
"""The event file that defines the columns. TensorBoard uses only one of them for all runs it shows."""

# keys that change where a run is saved or what is shown, but not its result
NO_HYPERPARAMETERS = ("$schema", "variables", "metrics")
OF_TRAINER = (
    "save_dir", "save_period", "save_every_steps", "keep_last", "checkpoint", "log_every_steps", "tensorboard",
    "writers", "verbosity", "pictures_every", "profile_steps",
)  # fmt: skip

PHASES = {"train": "training", "valid": "validation", "step": "training, every few steps"}


def hyperparameters(config: Mapping[str, Any]) -> dict[str, Value]:
    """The hyperparameters in a run's config, by key: ``optimizer.lr`` for optimizer.args.lr."""
    kept = {key: value for key, value in config.items() if key not in NO_HYPERPARAMETERS}
    trainer = kept.get("trainer")
    if isinstance(trainer, dict):
        kept["trainer"] = {key: value for key, value in trainer.items() if key not in OF_TRAINER}
    return {
        key.replace(".args.", "."): value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
        for key, value in flat(kept)
        if value is not None and value not in ([], {})  # no groups, nothing frozen
    }


def started(config: Mapping[str, Any]) -> Summary:
    """A run with its hyperparameters, which starts now."""
    # an empty trial_id: each run is its own trial, even if two have the same hyperparameters
    made: Summary = hparams_pb(hyperparameters(config), trial_id="", start_time_secs=time.time())
    return made


def finished() -> Summary:
    """Marks the run as finished."""
    end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
    return _summary(metadata.SESSION_END_INFO_TAG, session_end_info=end)


def write_columns(events: EventWriter, config: Config, training: Training) -> None:
    """Define the columns for runs with this name, in this run's folder only.

    TensorBoard applies the first definition it finds to all runs, so only the run that started or ended last has one,
    covering the others' hyperparameters. With a full disk or read-only folders nothing is changed, and TensorBoard
    finds the columns itself.
    """
    files = list(events.folder.parent.glob("[!.]*/config.json"))
    values = [hyperparameters(read) for read in map(read_json_object, files) if read is not None]
    with contextlib.suppress(OSError):
        events.replace(COLUMNS, {"summary": columns(values, metrics(config, training))})
        for folder in [file.parent for file in files]:
            if not folder.samefile(events.folder):
                (folder / f"{WHOLE}{COLUMNS}").unlink(missing_ok=True)


def columns(runs: list[dict[str, Value]], tags: list[str]) -> Summary:
    """The columns for runs with these hyperparameters: first those in which they differ, and the learning rates."""
    names = sorted({name for run in runs for name in run})
    parameters = [_column(name, [run[name] for run in runs if name in run], count=len(runs)) for name in names]
    measured = [
        api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=tag, dataset_type=api_pb2.DATASET_UNKNOWN)
        for tag in tags
    ]
    experiment = api_pb2.Experiment(hparam_infos=parameters, metric_infos=measured)
    return _summary(metadata.EXPERIMENT_TAG, experiment=experiment)


def _summary(tag: str, **data: Any) -> Summary:
    described = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**data))
    return Summary(value=[Summary.Value(tag=tag, metadata=described, tensor=metadata.NULL_TENSOR)])


def metrics(config: Config, training: Training) -> list[str]:
    """Tags shown as columns: the monitored value first, each at its best, in the test and in the last epoch."""
    names = ["loss", *(metric.logged_name for metric in config.metrics)]
    monitored = config.trainer.monitored_name.removeprefix("val_") or names[0]
    names = list(dict.fromkeys([monitored, *names]))
    validates = training.validation or config.trainer.monitored_name.startswith("val_")
    phases = ("valid", "train") if validates else ("train",)
    best = [f"best/{name}" for name in names] if config.trainer.monitor else []
    left_out = {f"{metric.logged_name}/train" for metric in config.metrics if not metric.training}
    if any(monitored.startswith(f"{data_set}_") for data_set in training.validation if data_set):
        left_out |= {f"{monitored}/train", f"{monitored}/test"}
    tags = [*best, *(f"{name}/{phase}" for phase in (*phases, "test") for name in names)]
    return [tag for tag in tags if tag not in left_out]


def _column(name: str, values: list[Value], *, count: int) -> Any:
    """A hyperparameter as TensorBoard would describe it. count: number of runs, some of which may lack it."""
    info = api_pb2.HParamInfo(name=name)
    info.differs = len({*map(str, values)}) > 1 or len(values) < count or name.split(".")[-1] in ("lr", "max_lr")
    kinds = {type(value) for value in values}
    if kinds <= {int, float}:
        domain = RealInterval(*(float(end(values)) for end in (min, max)))
    else:
        domain = Discrete({*values} if kinds == {bool} else {*map(str, values)})
    domain.update_hparam_info(info)
    return info


def layout(config: Config, training: Training) -> Summary:
    """The custom scalars page: a row for the loss and each metric, then the optimizer, then the machine.

    Training and validation have separate charts: TensorBoard gives all curves of a run the same colour, so they would
    be indistinguishable in one chart.
    """
    phases = ("train", "valid", "step") if training.validation else ("train", "step")
    rates = f"learning_rate{'/.*' if len(training.rates()) > 1 else ''}"
    rows = {
        name: {f"{name}: {PHASES[phase]}": f"{re.escape(name)}/{phase}" for phase in phases}
        for name in ["loss", *(metric.logged_name for metric in config.metrics)]
    }
    rows["optimizer"] = {"learning rate": rates, "gradient norm (before clipping)": "gradient_norm"}
    rows["machine"] = {"samples per second": "samples_per_second", "memory (MB)": "memory/.*"}
    charts = {row: {title: ["Multiline", [f"^{tag}$"]] for title, tag in tags.items()} for row, tags in rows.items()}
    made: Summary = summary.custom_scalars(charts)
    return made
