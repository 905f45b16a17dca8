"""A run in its folder: what it writes before the first step, what it logs, and what remains if it fails."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from base.base_trainer import BaseTrainer
from base.initial_weights import InitialWeights
from base.training.summary import resume_command
from utils import checkpoint
from utils.config import LoadedConfig, to_json
from utils.distributed import ProcessGroup
from utils.environment import environment
from utils.errors import DivergedError, Stopped, TrainingError, UserError
from utils.extras import find_extra
from utils.paths import display_path
from utils.run_folder import RunFolder, replace_file
from utils.text import dotted


@dataclass(frozen=True)
class Result:
    """The outcome of a run."""

    run_dir: Path
    epochs: int
    steps: int
    best: float | None
    """The best monitored value; None if nothing is monitored."""
    model: nn.Module = field(repr=False)
    """As the last step left it, in evaluation mode. ``load_run(run_dir)`` has the weights of the best epoch, or the
    averaged ones."""
    history: list[dict[str, Any]] = field(repr=False)
    """The values of each epoch, as in metrics.jsonl."""

    @property
    def last(self) -> dict[str, Any]:
        """The values of the last epoch."""
        return self.history[-1]


def new_folder(loaded: LoadedConfig, weights: InitialWeights | None) -> RunFolder:
    prepare = functools.partial(prepare_folder, loaded, weights)
    return RunFolder.create(loaded.config.trainer.save_dir, loaded.config.name, prepare=prepare)


def prepare_folder(loaded: LoadedConfig, weights: InitialWeights | None, folder: RunFolder) -> None:
    """Write what a resume needs before the first checkpoint: the config and the weights that were loaded."""
    if weights is not None:
        checkpoint.write(folder.initial, {"model": weights.taken})
    replace_file(folder.config, to_json(loaded.config, folder=folder.path))


def write_description(loaded: LoadedConfig, trainer: BaseTrainer, folder: RunFolder, note: str | None = None) -> None:
    """Write the environment of a run about to train, and its config once it has taken a step.

    note: the user's label for the run; None: keep a resumed run's.
    """
    process_group = trainer.runtime.process_group
    if not process_group.is_main_process:
        return
    now = environment(trainer.runtime.device, process_group.world_size, loaded.config.seed)
    now["from_data"] = list(map(dotted, loaded.from_data))
    if advice := find_extra("advice"):
        advice.report_changes(trainer.console, folder.last_start(), now)
    folder.write_environment(now, note)
    text = to_json(loaded.config, folder=folder.path)
    if folder.config.read_text(encoding="utf-8") != text:
        trainer.outputs.on_first_step = lambda: replace_file(folder.config, text)


@contextmanager
def log_to_file(trainer: BaseTrainer, folder: RunFolder) -> Iterator[None]:
    """Copy the output inside the block to train.log. If a signal stops the run, show the command to resume it."""
    experiment, console, progress = trainer.experiment, trainer.console, trainer.progress
    console.open(folder.log)
    experiment.signals.advice = f"To resume:\n{resume_command(folder)}\n"
    try:
        yield
    except Stopped:
        at = f"in epoch {progress.epochs + 1}, after step {progress.steps:,}"
        console.warn(f"stopped and saved {at}. To resume:\n{resume_command(folder)}")
        raise
    finally:
        console.close()


@contextmanager
def record_outcome(folder: RunFolder, process_group: ProcessGroup) -> Iterator[None]:
    """Record in environment.json how the training inside the block ended.

    A killed run has no outcome there, nor has one that was interrupted at once, which saves nothing either.
    """
    outcome = ""
    try:
        yield
        outcome = "finished"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        outcome = "stopped"
        if not isinstance(error, Stopped):
            first_line = str(error).partition("\n")[0] or type(error).__name__
            outcome = f"{'diverged' if isinstance(error, DivergedError) else 'failed'}: {first_line}"
        raise
    finally:
        if outcome and process_group.is_main_process:
            folder.write_outcome(outcome)


@contextmanager
def remove_if_empty(trainer: BaseTrainer, folder: RunFolder) -> Iterator[None]:
    """Remove the folder of a new run that fails before its first step."""
    try:
        yield
    except (Stopped, TrainingError):
        raise
    except Exception as error:
        if trainer.has_started or not trainer.runtime.process_group.is_main_process or not folder.remove_empty():
            raise
        note = f"No step completed; removed the empty run folder {display_path(folder.path)}."
        if isinstance(error, UserError):
            raise type(error)(f"{error}\n{note}") from error
        error.add_note(note)
        raise
