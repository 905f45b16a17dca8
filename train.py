"""Train a model from a config, or resume a run.

python train.py -c configs/linear_regression.json trainer.epochs=5
python train.py --lr 1e-7                                # config.json with another learning rate
python train.py --check -c configs/cifar10_lenet.json    # check everything, train nothing
python train.py -r                                       # resume the most recent run
"""

import sys

from utils.signals import exit_on_signal

if __name__ == "__main__":
    exit_on_signal()  # before the imports below, which take seconds
    from utils import cli

    cli.answer_early(__doc__)

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from base.base_data_loader import BaseDataLoader
from base.base_trainer import BaseTrainer
from base.build import build_experiment, build_trainer, build_training, with_facts
from base.initial_weights import load_initial_weights, load_initial_weights_again
from base.outputs import build_outputs
from base.training.resume import check_folder, latest_run, load_checkpoint, run_of_job
from base.training.run import Result as Result
from base.training.run import log_to_file, new_folder, record_outcome, remove_if_empty, write_description
from base.training.summary import end_summary, start_summary
from utils import cli
from utils.config import LoadedConfig, load_config
from utils.determinism import restore_kernels
from utils.distributed import get_process_group
from utils.garbage_collection import frozen
from utils.paths import PROJECT
from utils.registry import import_components
from utils.run_folder import RunFolder
from utils.streams import clear_loading


@restore_kernels()
def main(argv: Sequence[str | Path] | None = None) -> Result | Any:
    """The command line as a function. Raises UserError, Stopped or TrainingError instead of exiting.

    Returns the Result of a run, the exit status of --check, and None of --list.
    """
    process_group = get_process_group()
    options = cli.train_options(__doc__, argv)
    import_components()
    if options.list is not None or options.check:
        return cli.inspect(options)
    if options.resume:
        folder, file = RunFolder.of(Path(options.resume))
        return resume(folder, options.overrides, file=file, note=options.note)
    if options.resume is not None:  # -r alone
        last = latest_run(options.config, options.overrides, process_group, doing="resuming")
        return resume(last, options.overrides, note=options.note)

    loaded = load_config(options.config or PROJECT / "config.json", options.overrides)
    process_group.connect(loaded.config.runtime.timeout)
    loaded, data = with_facts(loaded)
    restarted = process_group.broadcast_object(lambda: run_of_job(loaded))
    if restarted is not None:
        return resume(restarted, options.overrides, note=options.note)
    return train(loaded, data, note=options.note)


def train(loaded: LoadedConfig, data: BaseDataLoader | None = None, *, note: str | None = None) -> Result:
    """Train a new run from the first step to the last. loaded, data: from ``with_facts``."""
    experiment = build_experiment(loaded, data)
    process_group = experiment.runtime.process_group
    weights = load_initial_weights(loaded, experiment.model, process_group)
    training = build_training(loaded, experiment)
    trainer = build_trainer(loaded, experiment)
    with experiment.signals:
        folder = process_group.broadcast_object(lambda: new_folder(loaded, weights))
        # first the former: Windows does not remove a folder whose lock file is open
        with remove_if_empty(trainer, folder), folder.owned(process_group), log_to_file(trainer, folder):
            trainer.begin(training, build_outputs(loaded, folder, experiment))
            if weights is not None:
                experiment.console.info(f"initial weights: {weights.description}")
            return run(loaded, trainer, folder, note)


def resume(
    folder: RunFolder, overrides: Sequence[str] = (), *, file: Path | None = None, note: str | None = None
) -> Result:
    """Resume a run in its folder, from its newest intact checkpoint or from one of its checkpoint files."""
    loaded, data = with_facts(load_config(folder.config, overrides))
    check_folder(loaded, folder)
    experiment = build_experiment(loaded, data)
    load_initial_weights_again(folder, experiment)
    training = build_training(loaded, experiment)
    trainer = build_trainer(loaded, experiment)
    with experiment.signals, folder.owned(experiment.runtime.process_group), log_to_file(trainer, folder):
        trainer.begin(training, build_outputs(loaded, folder, experiment))
        load_checkpoint(loaded, trainer, folder, file)
        return run(loaded, trainer, folder, note)


def run(loaded: LoadedConfig, trainer: BaseTrainer, folder: RunFolder, note: str | None = None) -> Result:
    """Train from the current position to the end, with a summary before and after."""
    console, progress = trainer.console, trainer.progress
    write_description(loaded, trainer, folder, note)
    for warning in loaded.warnings():
        console.warn(warning)
    for line in start_summary(loaded, trainer, folder):
        console.info(line)
    with record_outcome(folder, trainer.runtime.process_group), frozen():
        trainer.train()
    console.clear()
    history = folder.epochs()
    for line in end_summary(loaded, trainer, folder, history):
        console.info(line)
    model = trainer.experiment.model.eval()
    return Result(folder.path, progress.epochs, progress.steps, progress.best, model, history)


if __name__ == "__main__":
    clear_loading()
    sys.exit(cli.run(main))
