"""A trained run: its model for a script, a notebook or a teacher, or everything that commands such as test.py need."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from base.base_data_loader import BaseDataLoader
from base.base_trainer import BaseTrainer
from base.build import build_data_loader, build_experiment, build_model, build_trainer, with_facts
from base.experiment import Experiment
from base.initial_weights import load_initial_weights_again, load_weights
from base.training.trainer_interface import TrainerInterface
from utils import checkpoint
from utils.checkpoint.weights_file import evaluated_weights
from utils.config import LoadedConfig, load_config
from utils.config.ineffective import refuse_unread
from utils.config.resume import changed_defaults
from utils.paths import project_path
from utils.random import isolated
from utils.registry import import_components
from utils.run_folder import RunFolder
from utils.schema import Command, Config
from utils.streams import say_error
from utils.tree import copied, to_device
from utils.user_code import format_error


@dataclass(frozen=True)
class LoadedRun:
    """A run as returned by ``load_run``."""

    folder: Path
    checkpoint: Path
    """The file with the weights."""
    model: nn.Module = field(repr=False)
    """On the CPU, in evaluation mode, without gradients."""
    class_names: tuple[str, ...] | None
    """As in training; None if the data set has none."""
    loaded: LoadedConfig = field(repr=False)

    @property
    def config(self) -> Config:
        """The config as it was run."""
        return self.loaded.config

    @functools.cached_property
    def data(self) -> BaseDataLoader:
        """The run's data loader, which reads its data on first use. Raises UserError."""
        return build_data_loader(self.loaded)

    def predict(self, inputs: Any) -> Any:
        """The model's outputs for a batch of inputs: a tensor (B, ...), or any nest of tensors.

        Moves the batch to the model's device; the outputs stay there, without gradients.
        """
        device = next((tensor.device for tensor in self.model.parameters()), torch.device("cpu"))
        with torch.no_grad():
            return self.model(to_device(inputs, device))


def load_run(run: str | Path) -> LoadedRun:
    """Load a run from its folder, or from a checkpoint in it, with the weights that its test evaluates.

    Does not draw from the global random generators, nor call ``begin_epoch`` of the trainer: what that sets in the
    model must be a buffer. Relative paths start at the project's folder. Raises CheckpointError if the run is missing
    or damaged, or if its model has different shapes today.
    """
    import_components()
    path = project_path(str(run))
    folder, file = RunFolder.with_checkpoint(path)
    loaded = load_config(folder.config, dry_run=False)
    with isolated(loaded.config.seed, "model"):
        model = build_model(loaded)
    state = checkpoint.read(file)
    _warn_of_changed_defaults(loaded, state, lambda message: say_error(f"warning: {message}"))
    load_weights(model, evaluated_weights(state), file)
    return LoadedRun(folder.path, file, model.eval().requires_grad_(False), class_names_of(state), loaded)


def _warn_of_changed_defaults(loaded: LoadedConfig, state: Mapping[str, Any], warn: Callable[[str], None]) -> None:
    if changed := changed_defaults(state.get("config"), loaded.config):
        warn(f"defaults in the code have changed since this run, so results may differ: {', '.join(map(str, changed))}")


def class_names_of(state: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The class names stored in a checkpoint, if any."""
    data = state.get("data")
    names = data.get("classes") if isinstance(data, Mapping) else None
    return tuple(map(str, names)) if isinstance(names, list) else None


@dataclass(frozen=True)
class TrainedRun:
    """A run with its trainer, for testing, prediction or export."""

    folder: RunFolder
    checkpoint: Path
    loaded: LoadedConfig
    experiment: Experiment
    trainer: BaseTrainer
    state: dict[str, Any]
    """The content of the checkpoint."""
    progress: dict[str, Any]
    """Progress of the run at the checkpoint."""

    @property
    def about(self) -> dict[str, Any]:
        """Identifies these weights in a report or file."""
        return {"checkpoint": self.checkpoint.name, "epoch": self.progress["epochs"], "step": self.progress["steps"]}

    def begin_epoch(self, owner: BaseTrainer | BaseDataLoader) -> None:
        """Call the ``begin_epoch`` of the trainer or the data loader with the checkpoint's epoch, as before validation.

        It may use what only training has: then warns that its settings are missing.
        """
        progress = self.progress
        epoch = max(1, progress["epochs"] + bool(progress.get("epoch_steps")))  # 0 if stopped before the first step
        try:
            with isolated(self.experiment.seed, "epoch", epoch - 1):
                owner.begin_epoch(epoch)
        except Exception as error:  # of the user's code
            called = f"{type(owner).__name__}.begin_epoch({epoch})"
            self.experiment.console.warn(
                f"{called} failed without training ({format_error(error)}), so what it sets may not be as in validation"
            )


def load_trainer(
    run: Path, overrides: Sequence[str] = (), *, command: Command = Command.TEST, settings: Sequence[str] = ()
) -> TrainedRun:
    """Load a run from its folder, or from a checkpoint in it, with its trainer; the same in all processes.

    overrides: the user's, which the command has to read. settings: the command's own. Raises UserError if the run is
    missing, damaged or does not match its config.
    """
    import_components()
    folder, file = RunFolder.with_checkpoint(run)
    # nothing is optimized here, and the weights are not sharded
    settings = [*overrides, *settings, "runtime.strategy=ddp"]
    loaded = load_config(folder.config, settings, dry_run=False)
    refuse_unread(folder.config, overrides, command)
    loaded, data = with_facts(loaded)
    experiment = build_experiment(loaded, data)
    # not by each process: a run in training may replace the file at any moment
    state = experiment.runtime.process_group.broadcast_object(lambda: checkpoint.read(file))
    load_initial_weights_again(folder, experiment)
    trainer = build_trainer(loaded, experiment)
    _warn_of_changed_defaults(loaded, state, experiment.console.warn)
    load_weights(experiment.model, state["model"], file)
    progress = checkpoint.saved_progress(state, file)
    trained = TrainedRun(folder, file, loaded, experiment, trainer, state, progress)
    _load_as_in_validation(trained)
    if command is not Command.TEST:  # which does so once test_data() has returned
        trained.begin_epoch(experiment.data)
    return trained


def _load_as_in_validation(run: TrainedRun) -> None:
    """Load the checkpoint, with the ``begin_epoch`` of its epoch."""
    if type(run.trainer).begin_epoch is TrainerInterface.begin_epoch:
        run.trainer.load_for_evaluation(run.state, run.checkpoint)
        return
    state = copied(run.state)  # parts may keep what they load, and begin_epoch change it
    run.trainer.load_for_evaluation(state, run.checkpoint)
    run.begin_epoch(run.trainer)
    run.trainer.load_for_evaluation(run.state, run.checkpoint)  # as saved, whatever begin_epoch did to it
