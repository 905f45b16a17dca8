"""Console output before a run starts and after it ends."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from base.base_model import count_parameters
from base.base_trainer import BaseTrainer
from base.data.stream import StreamBatches
from base.experiment import Training
from base.training.parameters import matches
from logger.console import styled
from utils.config import LoadedConfig
from utils.distributed import get_process_group
from utils.extras import find_extra
from utils.paths import PROJECT, display_path, shell_path
from utils.run_folder import RunFolder
from utils.schema import Config
from utils.text import count, number


def start_summary(loaded: LoadedConfig, trainer: BaseTrainer, folder: RunFolder) -> Iterator[str]:
    """Model, data, schedule, device and run folder, one line each."""
    config = loaded.config
    training = trainer.training
    progress = trainer.progress
    yield config.name
    size, trainable = sum(each.numel() for each in trainer.model.parameters()), count_parameters(trainer.model)
    fewer = f", {trainable:,} of them trainable" if trainable < size else ""
    yield _row("model", f"{config.model.type}, {size:,} parameters{fewer}")
    validation = f", {training.validation_samples:,} for validation" if training.validation else ""
    batches = training.batches
    left_out = batches.num_samples - batches.samples_per_pass
    dropped = f" ({left_out:,} of them left out of each pass by drop_last)" if left_out else ""
    training_samples = "a stream" if isinstance(batches, StreamBatches) else count(batches.num_samples, "sample")
    samples = f"{training_samples} for training{dropped}{validation}"
    yield _row("data", f"{config.data_loader.type}, {samples}")
    length = f"{count(config.trainer.epochs, 'epoch')} of {count(trainer.steps_per_epoch(), 'step')}"
    yield _row("training", f"{', '.join(_optimizers(config))}, {length}")
    for name, text in parameter_groups(training):
        yield _row(name, text)
    if trainer.experiment.sum_loss and training.validation:
        yield _row("loss", "a sum over the samples of a step in training, and over all samples in validation")
    if config.trainer.monitor:
        better = "lower" if config.trainer.lower_is_better else "higher"
        patience = config.trainer.early_stop
        stop = f"; stops after {count(patience, 'epoch')} without improvement" if patience else ""
        yield _row("monitor", f"{config.trainer.monitored_name} ({better} is better){stop}")
    group = trainer.runtime.process_group
    strategy = f", {group.world_size} processes ({config.runtime.strategy})" if group.launched else ""
    device, precision = trainer.runtime.device, config.runtime.precision
    # LeNet takes 70 s in fp16 for what takes 2 s in bf16
    slow = " (slow on a CPU; bf16 is faster)" if (device.type, precision) == ("cpu", "fp16") else ""
    yield _row("device", f"{device}, {precision}{slow}{strategy}")
    yield _row("run", display_path(folder.path))
    if trainer.finished():
        yield _row("finished", how_to_train_longer(trainer))
    elif progress.steps:
        yield _row("resuming", f"from step {progress.steps:,}, in epoch {progress.epochs + 1}")
        again = batches.samples_to_reread(progress.position) if isinstance(batches, StreamBatches) else 0
        if again > batches.batch_size:
            yield _row("reading", f"{again:,} samples of the stream again, since it does not save its state")


def _optimizers(config: Config) -> Iterator[str]:
    """Each optimizer with its scheduler, as in "generator by Adam with StepLR" if there are several."""
    for name, optimizer in config.optimizers.items():
        _, scheduler = config.scheduler_of(name)
        text = optimizer.type + (f" with {scheduler.type}" if scheduler else "")
        yield f"{name} by {text}" if name else text


def parameter_groups(training: Training) -> Iterator[tuple[str, str]]:
    """The parameter groups of each optimizer, if several, and what is frozen, as ("group", text)."""
    names = [name for optimizer in training.optimizers.values() for name in optimizer.group_names]
    trainable = {id(training.frozen.parameters[name]) for name in training.frozen.trainable}
    shown = training.optimizers.values() if len(names) > 1 else ()
    for optimizer in shown:
        for name, group in zip(optimizer.group_names, optimizer.optimizer.param_groups, strict=True):
            size = sum(parameter.numel() for parameter in group["params"])
            idle = sum(parameter.numel() for parameter in group["params"] if id(parameter) not in trainable)
            without = f" ({idle:,} of them without requires_grad, so not trained)" if idle else ""
            yield "group", f"{name or 'others'}: {size:,} parameters{without}, lr {float(group['lr']):.4g}"
    for entry in training.frozen.config:
        size = sum(p.numel() for name, p in training.frozen.parameters.items() if matches(name, entry.params))
        how_long = f"for {count(entry.epochs, 'epoch')}" if entry.epochs else "for the whole run"
        yield "frozen", f"{', '.join(entry.params)}: {size:,} parameters, {how_long}"


def end_summary(
    loaded: LoadedConfig, trainer: BaseTrainer, folder: RunFolder, history: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """The result, its location, and the commands to inspect it. history: the values of each epoch by name."""
    progress = trainer.progress
    name = loaded.config.trainer.monitored_name
    if trainer.stopped_early():
        unit = "epoch" if all(name in epoch for epoch in history) else "measured epoch"
        yield f"stopped early: {name} did not improve for {count(progress.stale_epochs, unit)}"
    yield f"done after {count(progress.epochs, 'epoch')}, {count(progress.steps, 'step')}"
    if progress.best is not None:
        yield _row("best", f"{name} = {styled(number(progress.best), 'good')} in epoch {progress.best_epoch}")
    elif name:
        was = "finite" if any(name in epoch for epoch in history) else "measured"
        yield _row("best", f"none: {name} was not {was} in any epoch, so no best.pth was saved")
    yield _row("run", display_path(folder.path))
    if trainer.experiment.data.defines("test_data"):
        yield _row("test", f"python {shell_path(PROJECT / 'test.py')} -r {shell_path(folder.path)}")
    settings = loaded.config.trainer
    if settings.writes_tensorboard:
        yield _row("view", f"tensorboard --logdir {shell_path(folder.path.parent)}")
        if tensorboard := find_extra("tensorboard"):
            yield _row("", tensorboard.curves_address(settings.monitor, history[-1] if history else {}))


def how_to_train_longer(trainer: BaseTrainer) -> str:
    """Why a run is finished, and what to change to train it for longer."""
    settings, progress = trainer.settings, trainer.progress
    if not trainer.stopped_early():
        if progress.epochs < settings.epochs:
            return f"stopped by {type(trainer).__name__}.finished() after {count(progress.epochs, 'epoch')}"
        return "all epochs are done; set trainer.epochs=N to train longer"
    change = f"trainer.early_stop=N with N > {progress.stale_epochs}, or null"
    if progress.epochs >= settings.epochs:
        change += ", and trainer.epochs"
    return f"stopped early: {settings.monitored_name} did not improve; set {change} to train longer"


def resume_command(folder: RunFolder) -> str:
    """The command that resumes a run from the working directory."""
    launcher = "python"
    if get_process_group().launched:
        launcher = f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', 1)}"
    return f"{launcher} {shell_path(PROJECT / 'train.py')} -r {shell_path(folder.path)}"


def _row(name: str, text: str) -> str:
    return f"  {styled(f'{name:<8}', 'dim')}  {text}"
