"""Which run to resume, and from which checkpoint."""

import shlex
from pathlib import Path
from typing import Any

from base.base_trainer import BaseTrainer
from base.build import load_weights
from base.training.summary import resume_command
from utils import checkpoint
from utils.config import LoadedConfig, load_config, to_json
from utils.distributed import launch
from utils.errors import CheckpointError, DataError
from utils.paths import display_path, project_path
from utils.run_folder import RunFolder
from utils.streams import say


def run_of_launch(loaded: LoadedConfig, *, newest: bool, any_name: bool = False) -> RunFolder | None:
    """The run to resume; None to start a new one.

    A launcher that restarts its processes, and a job that is started again under the same run id, resume their own run.
    newest: any other command resumes the run that was started last, of this name or (any_name) of all.
    """
    config = loaded.config
    job, restarted = launch()
    own = RunFolder.of_job(config.trainer.save_dir, config.name, job) if job else None
    if own is not None:
        text = to_json(config, folder=own.path)
        unfinished = _logged_epochs(own) < config.trainer.epochs
        if restarted or newest or (unfinished and own.config.read_text(encoding="utf-8") == text):
            return own
    if not newest:
        return None
    last = RunFolder.newest(config.trainer.save_dir, None if any_name else config.name)
    which = "of all" if any_name else f"of {config.name}"
    say(f"resuming the run that was started last {which}: {display_path(last.path)}")
    return last


def _logged_epochs(folder: RunFolder) -> int:
    epoch = folder.last_epoch().get("epoch", 0)
    return epoch if isinstance(epoch, int) else 0


def check_folder(loaded: LoadedConfig, folder: RunFolder) -> None:
    """A resumed run stays in its folder. Raises CheckpointError if its config now names another one."""
    before = load_config(folder.config, dry_run=False).config
    folders = {project_path(config.trainer.save_dir).resolve() for config in (before, loaded.config)}
    if before.name != loaded.config.name or len(folders) > 1:
        raise CheckpointError(
            "a resumed run stays in its folder: name and trainer.save_dir cannot change. "
            f"To start a new run from its weights: --init-from {display_path(folder.path)}"
        )


def load_state(trainer: BaseTrainer, folder: RunFolder, file: Path | None) -> None:
    """Resume from this checkpoint of the run, or from the newest intact one; if there is none yet, from the start."""
    process_group = trainer.runtime.process_group
    allocator = trainer.runtime.allocator(trainer.experiment.model, trainer.training.optimizer)
    found: tuple[Path, dict[str, Any]] | None
    try:
        if file:
            found = file, checkpoint.read_together(file, process_group, allocator)
        else:
            found = checkpoint.newest_sound(folder.checkpoints, trainer.console.warn, process_group, allocator)
    except CheckpointError as error:
        if file is None:
            advice = f"To start a new run: python train.py -c {shlex.quote(display_path(folder.config))}"
        else:
            advice = f"To resume from the newest intact checkpoint:\n{resume_command(folder)}"
        raise CheckpointError(f"{error}\n{advice}") from error
    if found is None:
        _restart(trainer, folder)
        return
    source, state = found
    try:
        trainer.load_state_dict(state, source)
    except DataError as error:
        raise DataError(
            f"{error}. Restore the data set, or start a new run from these weights: python train.py "
            f"-c {shlex.quote(display_path(folder.config))} --init-from {shlex.quote(display_path(folder.path))}"
        ) from error


def _restart(trainer: BaseTrainer, folder: RunFolder) -> None:
    """A run that was killed before its first checkpoint: its config and its initial weights determine everything.

    Raises CheckpointError if its log shows that there were checkpoints, which are gone.
    """
    logged = _logged_epochs(folder)
    # the second save that is due waits for the first one
    if logged > 2 * trainer.settings.save_period:
        raise CheckpointError(
            f"there is no checkpoint in {folder.checkpoints}, although this run reached epoch {logged}. Restore a "
            f"checkpoint, or start a new run: python train.py -c {shlex.quote(display_path(folder.config))}"
        )
    if folder.initial.exists():
        # not trainer.model, which DDP wraps: its names have a prefix
        load_weights(trainer.experiment.model, folder.initial, trainer.runtime.process_group)
    trainer.console.warn("the run has no checkpoint yet; it starts from the beginning")
    trainer.outputs.writers.resume({}, step=0)
