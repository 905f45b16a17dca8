"""Where the results of a run go: its writers, its checkpointer, and observers from extras/."""

from collections.abc import Callable
from typing import Any

from base.construct import construct
from base.experiment import Experiment, Outputs
from base.training.observer import Observer, all_of
from logger.writers import EventWriter, JsonlWriter, RunInfo, Writer, Writers
from utils.checkpoint.checkpointer import Checkpointer
from utils.config import LoadedConfig, located, to_json
from utils.extras import find_extra
from utils.registry import WRITERS
from utils.run_folder import RunFolder


@located
def build_outputs(loaded: LoadedConfig, folder: RunFolder, experiment: Experiment) -> Outputs:
    """The writers, checkpointer and observer of a run folder. Only the main process gets writers that write."""
    writers = _writers(loaded, folder, experiment)
    return Outputs(
        writers, _checkpointer(loaded, folder, experiment, writers), _observers(loaded, folder, experiment, writers)
    )


def _writers(loaded: LoadedConfig, folder: RunFolder, experiment: Experiment) -> Writers:
    settings, warn = loaded.config.trainer, experiment.console.warn
    if not experiment.runtime.process_group.is_main_process:
        return Writers({})
    writers: dict[str, Writer] = {"metrics": JsonlWriter(folder.path / "metrics.jsonl")}
    if settings.writes_tensorboard:
        writers["events"] = EventWriter(folder.path)
    chosen = chosen_writers(loaded, folder, warn)
    writers |= chosen
    if curves := find_extra("curves"):  # after metrics.jsonl, which it reads
        writers["curves"] = curves.CurvesWriter(folder.path, monitor=settings.monitor, warn=warn)
    return Writers(writers, optional=chosen.keys(), warn=warn)


@located
def chosen_writers(loaded: LoadedConfig, folder: RunFolder, warn: Callable[[str], None]) -> dict[str, Writer]:
    """The writers in trainer.writers other than TensorBoard, by name. Raises UserError if one cannot be built."""
    run = RunInfo(folder.path, loaded.config.name, loaded.config.model_dump(by_alias=True), warn)
    writers = dict[str, Writer]()
    for index, writer in enumerate(loaded.config.trainer.writers):
        if writer.type != "tensorboard":
            writers[writer.type] = construct(WRITERS, writer, ("trainer", "writers", index), Writer, run)
    return writers


def _checkpointer(loaded: LoadedConfig, folder: RunFolder, experiment: Experiment, writers: Writers) -> Checkpointer:
    settings, process_group = loaded.config.trainer, experiment.runtime.process_group
    how: dict[str, Any] = {
        "keep_last": settings.keep_last,
        "warn": experiment.console.warn,
        "before_commit": writers.sync,
    }
    if settings.checkpoint == "full":
        return Checkpointer(folder.checkpoints, main=process_group.is_main_process, **how)
    from utils.checkpoint.sharded import ShardedCheckpointer  # its imports take seconds

    parameters = {name for name, _ in experiment.model.named_parameters(remove_duplicate=False)}
    return ShardedCheckpointer(folder.checkpoints, process_group=process_group, shared=parameters, **how)


def _observers(loaded: LoadedConfig, folder: RunFolder, experiment: Experiment, writers: Writers) -> Observer:
    """Those for advice, and for TensorBoard's pictures and histograms, imported only if TensorBoard is on."""
    settings = loaded.config.trainer
    observers = list[Observer]()
    if advice := find_extra("advice"):
        observers.append(advice.Advice())
    if settings.writes_tensorboard:
        if tensorboard := find_extra("tensorboard"):
            events, text = writers.writers.get("events"), to_json(loaded.config, folder=folder.path)
            observers.append(tensorboard.make_observer(loaded.config, experiment, events, text))
        elif settings.pictures_every != 0 or settings.profile_steps is not None:
            experiment.console.info("TensorBoard gets only the curves: extras/tensorboard is not in this project")
    return all_of(observers)
