"""Which run to resume, and from which checkpoint."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from base.base_trainer import BaseTrainer
from base.data.orders import Bucketed
from base.data.stream import StreamBatches
from base.training.epoch_start import begins_epochs, prepare_epoch
from base.training.summary import how_to_train_longer, resume_command
from utils import checkpoint
from utils.config import LoadedConfig, load_config, located, to_json
from utils.config.located_json import config_error
from utils.config.resume import Change, changes, changes_since, with_all_defaults
from utils.distributed import ProcessGroup, launch
from utils.errors import CheckpointError, ConfigError, DataError
from utils.paths import PROJECT, display_path, shell_path
from utils.run_folder import RunFolder
from utils.schema import Config, is_below, validation_names
from utils.streams import say
from utils.text import count, dotted, listed
from utils.tree import copied

WHICH_RUN = ("name=", "trainer.save_dir=", "runtime.timeout=")
"""Overrides that determine which run is the most recent."""


def run_of_job(loaded: LoadedConfig) -> RunFolder | None:
    """The run to resume for the launcher's job of this process; None to start a new one.

    A launcher that restarts its processes resumes their run, and so does a job started again with the same run id and
    config, if the user has chosen the id.
    """
    config = loaded.config
    job, restarted = launch()
    run = RunFolder.of_job(config.trainer.save_dir, config.name, job) if job else None
    if run is None or restarted:
        return run
    if job != os.environ.get("TORCHELASTIC_RUN_ID"):  # an earlier launcher had the same address and pid
        return None
    unfinished = _logged_epochs(run) < config.trainer.epochs
    return run if unfinished and run.config.read_text(encoding="utf-8") == to_json(config, folder=run.path) else None


def latest_run(config: Path | None, overrides: Sequence[str], process_group: ProcessGroup, *, doing: str) -> RunFolder:
    """The run of the launcher's job or, without one, the most recent run: of all, or with the config's name.

    doing: what is done with it, for the line that names the run.
    """
    # the other overrides are for the config of the run itself
    overrides = [item for item in overrides if item.startswith(WHICH_RUN)]
    loaded = load_config(config or PROJECT / "config.json", overrides, dry_run=False, partial=True)
    process_group.connect(loaded.config.runtime.timeout)
    name = None if config is None and not any(item.startswith("name=") for item in overrides) else loaded.config.name
    return process_group.broadcast_object(lambda: _started_last(loaded.config, name, doing))


def _started_last(config: Config, name: str | None, doing: str) -> RunFolder:
    job, _ = launch()
    if job and (own := RunFolder.of_job(config.trainer.save_dir, config.name, job)):
        return own
    last = RunFolder.newest(config.trainer.save_dir, name)
    say(f"{doing} the most recent run{f' of {name}' if name else ''}: {display_path(last.path)}")
    return last


def _logged_epochs(folder: RunFolder) -> int:
    epochs = folder.epochs()
    epoch = epochs[-1].get("epoch") if epochs else 0
    return epoch if isinstance(epoch, int) else 0


def check_folder(loaded: LoadedConfig, folder: RunFolder) -> None:
    """Raise ConfigError if something differs from the config in the folder that cannot change."""
    before = load_config(folder.config, dry_run=False).config
    changed = changes(with_all_defaults(before), with_all_defaults(loaded.config))
    # there it may still refer to the data
    changed = [each for each in changed if not is_below(each.path, *loaded.from_data)]
    _refuse(loaded, changed, folder, epoch_steps=0)


@located
def load_checkpoint(loaded: LoadedConfig, trainer: BaseTrainer, folder: RunFolder, file: Path | None) -> None:
    """Resume from this checkpoint or the newest intact one of the run; if there is none yet, from the start.

    Raises ConfigError if something differs from the checkpoint's config that cannot change, leaving the folder
    unchanged.
    """
    found = _find(trainer, folder, file)
    if found is None:
        _restart(trainer, folder)
        return
    source, state = found
    try:
        saved_config, saved_progress = state["config"], state["progress"]
        monitor = saved_config["trainer"].get("monitor")
        changed = changes_since(saved_config, trainer.experiment.saved_config)
        _refuse(loaded, changed, folder, epoch_steps=0 if saved_progress["trained"] else saved_progress["epoch_steps"])
    except (KeyError, TypeError, AttributeError) as error:
        what = f"{source} is not a complete checkpoint, or one of an earlier version"
        raise CheckpointError(f"{what}: {type(error).__name__} {error}\n{_new_run(loaded, folder)}") from error
    try:
        _load(trainer, state, source)
    except DataError as error:
        raise DataError(f"{error}. Restore the data set. {_new_run(loaded, folder)}") from error
    definitions = state["metrics"]["definitions"]
    new_metrics = [name for name, each in trainer.train_metrics.definitions.items() if definitions.get(name) != each]
    _apply_monitor(trainer, folder, before=monitor, new_metrics=new_metrics)
    # in this order: logs must remain as long as later checkpoints can be resumed
    progress, outputs = trainer.progress, trainer.outputs
    outputs.checkpointer.resume(source, progress.steps, best_step=progress.best_step)
    if lost := outputs.writers.resume(state["writers"], step=progress.steps):
        trainer.console.warn(f"the logs are incomplete; the run resumes with the rest: {lost}")
    for change in changed:
        if trainer.finished():
            trainer.console.warn(f"no effect, since the run is finished: {change}")
        else:
            trainer.console.info(f"resumed with {change}")
    if reordering := _reordering(trainer, changed):
        trainer.console.warn(
            f"{listed(reordering)} changed within a pass over the data, and so did the order of its samples: the rest "
            "of the pass may repeat some and leave out others"
        )
    if new_metrics and progress.epoch_steps:
        trainer.console.warn(
            f"{listed(new_metrics)} in training will be over the rest of epoch {progress.epochs + 1} only, after its "
            f"first {count(progress.epoch_steps, 'step')}"
        )


def _load(trainer: BaseTrainer, state: dict[str, Any], source: Path) -> None:
    """Load a checkpoint. Within an epoch, also prepare that epoch, and undo what ``begin_epoch`` did to its state."""
    again = state["progress"]["epoch_steps"] and begins_epochs(trainer)
    trainer.load_state_dict(copied(state) if again else state, source)  # parts may keep what they load
    if trainer.progress.epoch_steps:
        prepare_epoch(trainer, trainer.progress.epochs)
    if again:
        trainer.load_state_dict(state, source)


def _find(trainer: BaseTrainer, folder: RunFolder, file: Path | None) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to resume from, and its state. Raises CheckpointError if all are damaged."""
    process_group = trainer.runtime.process_group
    tensors = trainer.runtime.strategy.allocator(trainer.experiment.model, trainer.training.optimizer)
    try:
        if file:
            return file, checkpoint.read_together(process_group, lambda: checkpoint.read(file, tensors))
        return checkpoint.newest_intact(folder.checkpoints, trainer.console.warn, process_group, tensors)
    except CheckpointError as error:
        newest = f"To resume from the newest intact checkpoint:\n{resume_command(folder)}"
        new = f"To start a new run: python train.py -c {shell_path(folder.config)}"
        raise CheckpointError(f"{error}\n{newest if file else new}") from error


# ------------------------------------------------------------------ changes in the config


def _refuse(loaded: LoadedConfig, changed: Sequence[Change], folder: RunFolder, *, epoch_steps: int) -> None:
    """Raise ConfigError if something changed that cannot, after this many steps of an epoch."""
    problems = [problem for change in changed if (problem := change.refusal(epoch_steps))]
    if problems:
        raise ConfigError(f"{config_error(loaded.document, problems)}\n\n{_new_run(loaded, folder)}")


def _reordering(trainer: BaseTrainer, changed: Sequence[Change]) -> list[str]:
    """The changes after which the rest of a pass over the data has its samples in another order."""
    batches = trainer.training.batches
    if trainer.finished() or not trainer.progress.samples or isinstance(batches, StreamBatches):
        return []
    by_length = isinstance(batches.order, Bucketed)
    names = ("shuffle", "balanced", "batch_size") if by_length else ("shuffle", "balanced")
    paths = [("data_loader", "args", name) for name in names]
    return [dotted(each.path) for each in changed if each.path in paths]


def _new_run(loaded: LoadedConfig, folder: RunFolder) -> str:
    run = shell_path(folder.path)
    # these applied to the file that this run started from
    whole = " 'model.weights.skip=[]' 'model.weights.rename={}'" if loaded.config.model.weights else ""
    command = f"python train.py -c {run}/config.json --init-from {run}{whole} KEY=VALUE"
    return f"To start a new run from its weights: {command}"


def _apply_monitor(trainer: BaseTrainer, folder: RunFolder, *, before: str | None, new_metrics: Sequence[str]) -> None:
    """Judge the finished epochs by another monitored value, and recompute schedules that have changed or follow it.

    Raises ConfigError for another value of a finished run.
    before: the checkpoint's "monitor". new_metrics: those that it does not have, or under whose name it has another.
    """
    settings, progress = trainer.settings, trainer.progress
    in_validation = [each for name in new_metrics for each in validation_names(name, trainer.training.validation)]
    is_new = settings.monitored_name in (*new_metrics, *in_validation)
    differs = before != settings.monitor
    states = trainer.training.schedule_states.values()
    schedules = [each for each in states if each.changed or (differs and before and each.schedule.follows_monitor)]
    if is_new or differs:
        progress.reset_best()
    if differs or schedules:
        values = _monitored(trainer, folder)
        if differs:
            for value, epoch, step in values:
                progress.update_best(value, lower_is_better=settings.lower_is_better, epoch=epoch, step=step)
        for schedule in schedules:
            schedule.lay_out(progress.epochs, progress.epoch_steps, [value for value, _, _ in values])
    if trainer.finished() and (is_new or differs):
        # config.json is written with the next step, so that it would not say by which value best.pth was chosen
        message = f"the monitored value cannot change once a run is finished; {how_to_train_longer(trainer)}"
        raise ConfigError(message, ("trainer", "monitor"))


def _monitored(trainer: BaseTrainer, folder: RunFolder) -> list[tuple[float, int, int]]:
    """The monitored value of each finished epoch that has one, with the numbers of the epoch and the step."""
    name = trainer.settings.monitored_name
    # null means a value that is not finite; a metric added later has none
    return [
        (math.nan if record[name] is None else record[name], record["epoch"], record["step"])
        for record in trainer.runtime.process_group.broadcast_object(folder.epochs)
        if record.keys() >= {"epoch", "step", name} and record["epoch"] <= trainer.progress.epochs
    ]


def _restart(trainer: BaseTrainer, folder: RunFolder) -> None:
    """Restart a run that was killed before its first checkpoint from its config and its initial weights.

    Raises CheckpointError if its log, or how it ended, shows that there should be some.
    """
    logged = _logged_epochs(folder)
    saved_at_end = folder.read_environment().get("outcome") in ("finished", "stopped")
    # the second save waits for the first one
    if saved_at_end or logged > 2 * trainer.settings.save_period:
        raise CheckpointError(
            f"no checkpoint in {folder.checkpoints}: those of this run are gone, or could not be written. "
            f"Restore one, or start a new run: python train.py -c {shell_path(folder.config)}"
        )
    if not folder.initial.exists() and trainer.experiment.saved_config["model"]["weights"]:
        raise CheckpointError(f"{folder.initial}, the initial weights of this run, is missing. Restore it")
    if folder.environment.exists():  # otherwise it was only prepared, as the trials of a sweep are
        trainer.console.warn("the run has no checkpoint yet; it starts from the beginning")
    trainer.outputs.writers.resume({}, step=0)
