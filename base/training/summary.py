"""What a run says before it begins and after it ended."""

import os
import shlex
from collections.abc import Iterator

from base.base_model import count_parameters
from base.base_trainer import BaseTrainer
from logger.console import styled
from utils.config import LoadedConfig
from utils.distributed import get_process_group
from utils.paths import PROJECT, display_path
from utils.run_folder import RunFolder
from utils.text import count, number


def start_summary(loaded: LoadedConfig, trainer: BaseTrainer, folder: RunFolder) -> Iterator[str]:
    """What is trained on what, how, where."""
    config, training, progress = loaded.config, trainer.training, trainer.progress
    validation = training.validation.num_samples if training.validation else None
    held_out = f", {validation:,} for validation" if validation else ""
    yield config.name
    yield _row("model", f"{config.model.type}, {count_parameters(trainer.model):,} parameters")
    yield _row("data", f"{config.data_loader.type}, {training.batches.num_samples:,} samples for training{held_out}")
    schedule = f" with {config.lr_scheduler.type}" if config.lr_scheduler else ""
    length = f"{count(config.trainer.epochs, 'epoch')} of {count(trainer.steps_per_epoch(), 'step')}"
    yield _row("training", f"{config.optimizer.type}{schedule}, {length}")
    if config.trainer.monitor:
        patience = config.trainer.early_stop
        stop = f"; stops after {count(patience, 'epoch')} without a better one" if patience else ""
        yield _row("best", f"{config.trainer.monitor}{stop}")
    process_group = trainer.runtime.process_group
    spread = f", {process_group.world_size} processes ({config.runtime.strategy})" if process_group.launched else ""
    device, precision = trainer.runtime.device, config.runtime.precision
    # LeNet takes 70 s for what it does in 2 s under bf16
    slow = ": slow on a CPU, where bf16 is the faster one" if (device.type, precision) == ("cpu", "fp16") else ""
    yield _row("device", f"{device}, {precision}{spread}{slow}")
    yield _row("run", display_path(folder.path))
    if trainer.finished():
        yield _row("finished", "all epochs are done; trainer.epochs=N makes the run longer")
    elif progress.steps:
        epoch = min(progress.epochs + 1, config.trainer.epochs)
        yield _row("goes on", f"after step {progress.steps:,}, in epoch {epoch}")


def end_summary(loaded: LoadedConfig, trainer: BaseTrainer, folder: RunFolder) -> Iterator[str]:
    """What came of it, where it is, and what comes next."""
    settings, progress, run = loaded.config.trainer, trainer.progress, shlex.quote(display_path(folder.path))
    if trainer.stopped_early():
        yield f"stopped early: no better {settings.monitor} for {count(progress.stale_epochs, 'epoch')}"
    yield f"done after {count(progress.epochs, 'epoch')}, {count(progress.steps, 'step')}"
    if progress.best is not None:
        yield _row(
            "best", f"{settings.monitor} = {styled(number(progress.best), 'good')} in epoch {progress.best_epoch}"
        )
    yield _row("run", display_path(folder.path))
    yield _row("test it", f"python {shlex.quote(display_path(PROJECT / 'test.py'))} -r {run}")
    if settings.tensorboard:
        yield _row("look", f"tensorboard --logdir {shlex.quote(display_path(folder.path.parent.parent))}")


def command(folder: RunFolder) -> str:
    """The command that goes on with a run, from where the user stands."""
    start = (
        f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', 1)}"
        if get_process_group().launched
        else "python"
    )
    return f"{start} {shlex.quote(display_path(PROJECT / 'train.py'))} -r {shlex.quote(display_path(folder.path))}"


def _row(name: str, text: str) -> str:
    return f"  {styled(f'{name:<8}', 'dim')}  {text}"
