"""Which run to resume, and from which checkpoint."""

import contextlib
import json
import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from base.base_trainer import BaseTrainer
from base.training.summary import how_to_train_longer, resume_command
from utils import checkpoint
from utils.config import LoadedConfig, load_config, to_json
from utils.config.located_json import config_error
from utils.config.resume import Change, changes, saved_changes, shown
from utils.distributed import ProcessGroup, launch
from utils.errors import CheckpointError, ConfigError, DataError
from utils.files import read_text
from utils.paths import PROJECT, display_path, shell_path
from utils.prepare import allocator
from utils.run_folder import RunFolder
from utils.schema import Config, validation_names
from utils.streams import say
from utils.text import count, listed

WHICH_RUN = ("name=", "trainer.save_dir=", "runtime.timeout=")
"""Overrides that determine which run is the most recent."""


def run_of_job(loaded: LoadedConfig) -> RunFolder | None:
    """The run to resume for the launcher's job of this process; None to start a new one.

    A launcher that restarts its processes resumes their run, and so does a job started again with the same run id and
    config.
    """
    config = loaded.config
    job, restarted = launch()
    own = RunFolder.of_job(config.trainer.save_dir, config.name, job) if job else None
    if own is None or restarted:
        return own
    unfinished = _logged_epochs(own) < config.trainer.epochs
    return own if unfinished and own.config.read_text(encoding="utf-8") == to_json(config, folder=own.path) else None


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
    epoch = (folder.epochs() or [{}])[-1].get("epoch", 0)
    return epoch if isinstance(epoch, int) else 0


def check_folder(loaded: LoadedConfig, folder: RunFolder) -> list[Change]:
    """The differences from the config in the folder. Raises ConfigError if something changed that cannot."""
    before = load_config(folder.config, dry_run=False).config.model_dump(by_alias=True)
    changed = changes(before, loaded.config.model_dump(by_alias=True))
    _refuse(loaded, changed, folder, epoch_steps=0)
    return changed


def load_checkpoint(
    loaded: LoadedConfig, trainer: BaseTrainer, folder: RunFolder, file: Path | None, changed: Sequence[Change]
) -> None:
    """Resume from this checkpoint or the newest intact one of the run; if there is none yet, from the start.

    changed: from ``check_folder``, takes effect. Raises ConfigError if it cannot, leaving the folder unchanged.
    """
    found = _find(trainer, folder, file)
    if found is None:
        _restart(trainer, folder)
        return
    source, state = found
    try:
        before, progress = state["config"], state["progress"]
        since = saved_changes(before, trainer.experiment.saved_config)
        _refuse(loaded, since, folder, epoch_steps=0 if progress["trained"] else progress["epoch_steps"])
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{source} is not a complete checkpoint: {type(error).__name__} {error}") from error
    try:
        trainer.load_state_dict(state, source)
    except DataError as error:
        raise DataError(f"{error}. Restore the data set. {_new_run(folder)}") from error
    another = _monitors_another_metric(trainer, state["metrics"]["definitions"])
    if another:
        trainer.progress.reset_best()
    _recompute_best_and_schedules(trainer, before.get("trainer.monitor"), folder)
    if trainer.finished():
        _refuse_another_best(loaded, trainer, changed, another_metric=another)
    # in this order: logs must remain as long as later checkpoints can be resumed
    outputs, progress = trainer.outputs, trainer.progress
    outputs.checkpointer.resume(source, progress.steps, best_step=progress.best_step)
    if lost := outputs.writers.resume(state["writers"], step=progress.steps):
        trainer.console.warn(f"the logs are incomplete; the run resumes with the rest: {lost}")
    for change in changed:
        if trainer.finished() and not _finishes(trainer, change):
            trainer.console.warn(f"no effect, since the run is finished: {change}")
        else:
            trainer.console.info(f"resumed with {change}")
    for change in since:
        if not any(change.concerns(other) for other in changed):
            trainer.console.info(f"resumed with {change}, as in config.json")
    _warn_of_partial(trainer, state["metrics"]["definitions"])


@contextlib.contextmanager
def blame_saved_state(trainer: BaseTrainer, folder: RunFolder) -> Iterator[None]:
    """In the first step after a resume, blame an error inside torch's optimizer or scheduler on the saved state."""
    try:
        yield
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        if trainer.has_started or not frames or Path(frames[-1].filename).parent != Path(torch.optim.__file__).parent:
            raise
        raise CheckpointError(
            f"the state of the optimizer or its scheduler in {folder.checkpoints} cannot be used: "
            f"{type(error).__name__}: {error}. Resume from another checkpoint. {_new_run(folder)}"
        ) from error


def _find(trainer: BaseTrainer, folder: RunFolder, file: Path | None) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to resume from, and its state. Raises CheckpointError if all are damaged."""
    process_group = trainer.runtime.process_group
    tensors = allocator(trainer.runtime, trainer.experiment.model, trainer.training.optimizer)
    try:
        if file:
            return file, checkpoint.read_together(process_group, lambda: checkpoint.read(file, tensors))
        return checkpoint.newest_intact(folder.checkpoints, trainer.console.warn, process_group, tensors)
    except CheckpointError as error:
        if file is None:
            advice = f"To start a new run: python train.py -c {shell_path(folder.config)}"
        else:
            advice = f"To resume from the newest intact checkpoint:\n{resume_command(folder)}"
        raise CheckpointError(f"{error}\n{advice}") from error


# ------------------------------------------------------------------ changes in the config


def _refuse(loaded: LoadedConfig, changed: Sequence[Change], folder: RunFolder, *, epoch_steps: int) -> None:
    """Raise ConfigError if something changed that cannot, after this many steps of an epoch."""
    problems = [problem for change in changed if (problem := change.refusal(epoch_steps))]
    if not problems:
        return
    advice = ""
    if any("args" in problem.path and not loaded.gives(problem.path) for problem in problems):
        advice = (
            "Defaults have changed, or arguments were removed. To resume the run as it was, put the former values into "
            f"{display_path(folder.config)}. "
        )
    raise ConfigError(f"{config_error(loaded.document, problems)}\n\n{advice}{_new_run(folder)}")


def _new_run(folder: RunFolder) -> str:
    run = shell_path(folder.path)
    whole = ""
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError):
        weights = json.loads(read_text(folder.config))["model"].get("weights")
        if weights and (weights["skip"] or weights["rename"]):  # they applied to the file this run started from
            whole = " 'model.weights.skip=[]' 'model.weights.rename={}'"
    command = f"python train.py -c {run}/config.json --init-from {run}{whole} KEY=VALUE"
    return f"To start a new run from its weights: {command}"


def _monitors_another_metric(trainer: BaseTrainer, before: Mapping[str, Any]) -> bool:
    """Whether the monitored value has kept its name, but is now that of another metric. before: saved definitions."""
    now = trainer.train_metrics.definitions
    changed = [name for name in now if name in before and before[name] != now[name]]
    in_validation = [each for name in changed for each in validation_names(name, trainer.training.validation)]
    return trainer.settings.monitored_name in [*changed, *in_validation]


def _warn_of_partial(trainer: BaseTrainer, before: Mapping[str, Any]) -> None:
    """Say which metrics have missed the first steps of the epoch. before: saved definitions."""
    progress, now = trainer.progress, trainer.train_metrics.definitions
    new = [name for name in now if before.get(name) != now[name]]
    if new and progress.epoch_steps:
        trainer.console.warn(
            f"{listed(new)} in training will be over the rest of epoch {progress.epochs + 1} only, after its first "
            f"{count(progress.epoch_steps, 'step')}"
        )


def _finishes(trainer: BaseTrainer, change: Change) -> bool:
    """Whether a run is finished by this change, and was not before."""
    if change.path == ("trainer", "epochs"):
        return bool(change.before > trainer.progress.epochs >= change.after)
    if change.path == ("trainer", "early_stop"):
        return trainer.stopped_early() and (change.before is None or change.before > trainer.progress.stale_epochs)
    return False


def _refuse_another_best(
    loaded: LoadedConfig, trainer: BaseTrainer, changed: Sequence[Change], *, another_metric: bool
) -> None:
    """Raise ConfigError for a change of a finished run that would name another best epoch.

    The run's config.json is written with the next step, so that it would not say by which value.
    """
    for change in changed:
        if change.path == ("trainer", "monitor") or (another_metric and change.path[0] == "metrics"):
            values = f"this run has {shown(change.before)}, got {shown(change.after)}"
            message = f"cannot change once a run is finished: {values}; {how_to_train_longer(trainer)}"
            raise loaded.error(change.path, message)


def _recompute_best_and_schedules(trainer: BaseTrainer, monitor: str | None, folder: RunFolder) -> None:
    """Compare the finished epochs by a new monitored value, and recompute a schedule that has changed or follows it.

    monitor: the checkpoint's; None if it had none.
    """
    progress = trainer.progress
    judges = monitor != trainer.settings.monitor
    every = trainer.training.schedule_states.values()
    schedules = [each for each in every if each.changed or (judges and monitor and each.schedule.follows_monitor)]
    if not judges and not schedules:
        return
    epochs = trainer.runtime.process_group.broadcast_object(folder.epochs)
    name, lower_is_better = trainer.settings.monitored_name, trainer.settings.lower_is_better
    # null means a value that is not finite; a metric added later has none
    judged = [
        (math.nan if record[name] is None else record[name], record["epoch"], record["step"])
        for record in epochs
        if record.keys() >= {"epoch", "step", name} and record["epoch"] <= progress.epochs
    ]
    if judges:
        progress.reset_best()
        for value, epoch, step in judged:
            progress.update_best(value, lower_is_better=lower_is_better, epoch=epoch, step=step)
    for schedule in schedules:
        schedule.lay_out(progress.epochs, progress.epoch_steps, [value for value, _, _ in judged])


def _restart(trainer: BaseTrainer, folder: RunFolder) -> None:
    """Restart a run that was killed before its first checkpoint from its config and its initial weights.

    Raises CheckpointError if its log, or how it ended, shows that there were checkpoints, now lost.
    """
    logged = _logged_epochs(folder)
    saved_at_end = folder.read_environment().get("outcome") in ("finished", "stopped")
    # the second save waits for the first one
    if saved_at_end or logged > 2 * trainer.settings.save_period:
        raise CheckpointError(
            f"no checkpoint in {folder.checkpoints}, although this run saved some: it reached epoch {logged}. "
            f"Restore a checkpoint, or start a new run: python train.py -c {shell_path(folder.config)}"
        )
    if not folder.initial.exists() and trainer.experiment.saved_config.get("model.weights.file"):
        raise CheckpointError(f"{folder.initial}, the initial weights of this run, is missing. Restore it")
    if folder.environment.exists():  # otherwise it was only prepared, as the trials of a sweep are
        trainer.console.warn("the run has no checkpoint yet; it starts from the beginning")
    trainer.outputs.writers.resume({}, step=0)
