"""Which run goes on, and from where."""

import shlex
from pathlib import Path
from typing import Any

from base.base_trainer import BaseTrainer
from base.build import load_weights
from base.training.summary import resume_command
from utils import checkpoint
from utils.config import LoadedConfig, load_config, to_json
from utils.distributed.process_group import launch
from utils.errors import CheckpointError
from utils.paths import display_path
from utils.run_folder import RunFolder


def run_of_launch(loaded: LoadedConfig, *, newest: bool) -> RunFolder | None:
    """The run to go on with; None if a new one begins.

    A launcher that starts its processes again, or a job that was started again under the same run id, goes on with the
    run that it began. newest: else with the newest run of this name.
    """
    config = loaded.config
    job, restarted = launch()
    own = RunFolder.of_job(config.trainer.save_dir, config.name, job) if job else None
    if own is not None:
        text = to_json(config, folder=own.path)
        unfinished = own.last_epoch().get("epoch", 0) < config.trainer.epochs
        if restarted or newest or (unfinished and own.config.read_text(encoding="utf-8") == text):
            return own
    return RunFolder.newest(config.trainer.save_dir, config.name) if newest else None


def check_place(loaded: LoadedConfig, folder: RunFolder) -> None:
    """A resumed run stays in its folder. Raises CheckpointError if its config has another one now."""
    before = load_config(folder.config, dry_run=False).config
    if before.name != loaded.config.name or before.trainer.save_dir != loaded.config.trainer.save_dir:
        raise CheckpointError(
            "a run goes on in its own folder: name and trainer.save_dir cannot change. "
            f"For a new run with its weights: --init-from {display_path(folder.path)}"
        )


def load_state(trainer: BaseTrainer, folder: RunFolder, file: Path | None) -> None:
    """Go on from a checkpoint of the run: this one, or the newest sound one; if there was none yet, from its start."""
    found = _find_state(trainer, folder, file)
    if found:
        trainer.load_state_dict(found[1], found[0])
    else:
        _begin_again(trainer, folder)


def _find_state(trainer: BaseTrainer, folder: RunFolder, file: Path | None) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to go on from, and its state; None if there is none yet."""
    process_group, place = (
        trainer.runtime.processes,
        trainer.runtime.place(trainer.experiment.model, trainer.training.optimizer),
    )
    try:
        if file:
            return file, checkpoint.read_together(file, process_group, place)
        return checkpoint.newest_sound(folder.checkpoints, trainer.console.warn, process_group, place)
    except CheckpointError as error:
        advice = f"To resume from the newest valid checkpoint:\n{resume_command(folder)}"
        if file is None:
            advice = f"To begin anew: python train.py -c {shlex.quote(display_path(folder.config))}"
        raise CheckpointError(f"{error}\n{advice}") from error


def _begin_again(trainer: BaseTrainer, folder: RunFolder) -> None:
    """A run that was killed before its first checkpoint: everything follows from its config and its first weights.

    Raises CheckpointError if its log shows that there were checkpoints, which are gone.
    """
    logged = folder.last_epoch().get("epoch", 0)
    # the second save that is due waits for the first one
    if logged > 2 * trainer.settings.save_period:
        raise CheckpointError(
            f"there is no checkpoint in {folder.checkpoints}, though this run came to epoch {logged}. Put one back, or "
            f"begin anew: python train.py -c {shlex.quote(display_path(folder.config))}"
        )
    if folder.initial.exists():
        load_weights(trainer.model, folder.initial, trainer.runtime.processes)
    trainer.console.warn("the run has no checkpoint yet; it begins again")
    trainer.outputs.writers.resume({}, step=0)
