"""Train a model as a config says, or go on with a run.

python train.py -c configs/linear_regression.json trainer.epochs=5
python train.py --lr 1e-7                                # config.json with another learning rate
python train.py --check -c configs/cifar10_lenet.json    # looks at everything, trains nothing
python train.py -r                                       # goes on with the newest run
"""

import argparse
import gc
import sys

from utils.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # before the imports below, which take seconds

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from base.base_trainer import BaseTrainer
from base.build import build_experiment, build_outputs, build_trainer, build_training, load_weights
from base.experiment import Experiment, Outputs
from base.training.resume import check_place, load_state, run_of_launch
from base.training.summary import command, end_summary, start_summary
from utils import checkpoint, cli
from utils.config import LoadedConfig, load_config, to_json
from utils.distributed.process_group import get_process_group
from utils.errors import Stopped, TrainingError, UserError
from utils.extras import find_extra, load_extra
from utils.paths import PROJECT, display_path
from utils.registry import import_components
from utils.run_folder import RunFolder, environment


@dataclass(frozen=True)
class Result:
    """What a run ended with."""

    run_dir: Path
    epochs: int
    steps: int
    last: dict[str, float]
    """The last epoch's values, as in metrics.jsonl."""
    best: float | None
    """The best monitored value; None if nothing is monitored."""


def main(argv: Sequence[str] | None = None) -> Result:
    """The command line as a function. Raises UserError, Stopped or TrainingError instead of exiting.

    --check and --list look and exit, as --help does.
    """
    process_group = get_process_group()
    options = _options(argv)
    import_components()
    if options.list is not None or options.check:
        _look(options)
    if options.resume is not None and options.init_from:
        raise UserError("-r goes on with a run, --init-from begins a new one; give one of them")
    if options.resume:
        if options.config is not None:
            raise UserError(
                "-r RUN goes on with the run's own config; for a new run with its weights: -c ... --init-from RUN"
            )
        folder, file = RunFolder.of(Path(options.resume))
        return resume(folder, options.overrides, file=file)
    newest = options.resume is not None
    loaded = load_config(options.config or PROJECT / "config.json", options.overrides, dry_run=not newest)
    process_group.connect(loaded.config.runtime.timeout)
    found = process_group.broadcast_object(lambda: run_of_launch(loaded, newest=newest))
    return resume(found, options.overrides) if found else train(loaded, init_from=options.init_from)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    made = cli.parser(__doc__ or "")
    made.add_argument("-c", "--config", type=Path, metavar="FILE", help="the experiment (default: config.json)")
    made.add_argument(
        "-r", "--resume", nargs="?", const="", metavar="RUN", help="a run folder or checkpoint; default: the newest run"
    )
    made.add_argument("--init-from", type=Path, metavar="CHECKPOINT", help="begin a new run with these weights")
    made.add_argument("--lr", metavar="RATE", help="short for optimizer.args.lr=RATE")
    made.add_argument("--bs", metavar="SIZE", help="short for data_loader.args.batch_size=SIZE")
    made.add_argument("--check", action="store_true", help="look at everything a run needs, train nothing, and say so")
    made.add_argument("--list", nargs="?", const="", metavar="NAME", help="what a config may name, or all about one")
    return cli.parse(made, argv)


def _look(options: argparse.Namespace) -> NoReturn:
    """--list and --check. What only looks is imported only here."""
    if get_process_group().launched:
        raise UserError("--check and --list look with a process of their own; give them without torchrun")
    alone = not (options.overrides or options.config or options.check)
    if options.resume is not None or options.init_from or (options.list is not None and not alone):
        raise UserError("--list goes alone; --check takes -c, -d and KEY=VALUE, as a new run without --init-from")
    if options.list is not None:
        print(load_extra("schema", "--list").listing(options.list))
        raise SystemExit(0)
    check = load_extra("check", "--check")
    raise SystemExit(check.preflight(load_config(options.config or PROJECT / "config.json", options.overrides)))


def train(loaded: LoadedConfig, *, init_from: Path | None = None) -> Result:
    """A new run, from the first step to the last. init_from: a checkpoint or run folder to take the weights from."""
    config, experiment = loaded.config, build_experiment(loaded)
    process_group = experiment.runtime.processes
    source = RunFolder.checkpoint_of(init_from) if init_from else None
    weights = load_weights(experiment.model, source, process_group)["model"] if source else None
    training = build_training(loaded, experiment)
    trainer = build_trainer(loaded, experiment)

    def prepare(folder: RunFolder) -> None:
        folder.write_config(to_json(config, folder=folder.path))
        if weights is not None:  # a run that is killed before its first checkpoint must find these weights again
            checkpoint.write(folder.initial, {"model": weights})

    with experiment.signals:
        folder = process_group.broadcast_object(
            lambda: RunFolder.create(config.trainer.save_dir, config.name, prepare=prepare)
        )
        with folder.owned(process_group), _nothing_left(trainer, folder), _reporting(experiment, folder):
            trainer.begin(training, _outputs(loaded, folder, experiment))
            return _train_on(loaded, trainer, folder)


def resume(folder: RunFolder, overrides: Sequence[str] = (), *, file: Path | None = None) -> Result:
    """Go on with a run in its folder: from its newest sound checkpoint, or from one of its checkpoint files."""
    loaded = load_config(folder.config, overrides)
    check_place(loaded, folder)
    experiment = build_experiment(loaded)
    training = build_training(loaded, experiment)
    trainer = build_trainer(loaded, experiment)
    with experiment.signals, folder.owned(trainer.runtime.processes), _reporting(experiment, folder):
        trainer.begin(training, _outputs(loaded, folder, experiment))
        load_state(trainer, folder, file)
        return _train_on(loaded, trainer, folder)


def _outputs(loaded: LoadedConfig, folder: RunFolder, experiment: Experiment) -> Outputs:
    """Where the run leaves what it found. What TensorBoard shows beside the curves is imported only where it is on."""
    outputs = build_outputs(loaded, folder, experiment)
    if not loaded.config.trainer.tensorboard:
        return outputs
    settings = loaded.config.trainer
    if tensorboard := find_extra("tensorboard"):
        events, text = outputs.writers.writers.get("events"), to_json(loaded.config, folder=folder.path)
        outputs.observer = tensorboard.make_observer(loaded.config, experiment, events, text)
    elif settings.pictures_every != 0 or settings.profile_steps is not None:
        experiment.console.info("TensorBoard gets only the curves: extras/tensorboard is not in this project")
    return outputs


def _train_on(loaded: LoadedConfig, trainer: BaseTrainer, folder: RunFolder) -> Result:
    """Train from where the trainer stands to the end, in a folder that is ours."""
    process_group, text = trainer.runtime.processes, to_json(loaded.config, folder=folder.path)
    if process_group.is_main_process:
        if folder.config.read_text(encoding="utf-8") != text:
            folder.write_config(text)
        folder.write_environment(environment(str(trainer.runtime.device), process_group.world_size, loaded.config.seed))
    for warning in loaded.warnings():
        trainer.console.warn(warning)
    for line in start_summary(loaded, trainer, folder):
        trainer.console.info(line)
    gc.freeze()  # what the imports made stays; looking through it again would cost the training 0.1 s each time
    trainer.train()
    trainer.console.clear()
    progress = trainer.progress
    for line in end_summary(loaded, trainer, folder):
        trainer.console.info(line)
    return Result(folder.path, progress.epochs, progress.steps, folder.last_epoch(), progress.best)


@contextmanager
def _reporting(experiment: Experiment, folder: RunFolder) -> Iterator[None]:
    """What is printed goes to train.log too; a run that was stopped says how to go on."""
    console = experiment.console
    console.open(folder.log)
    experiment.signals.advice = f"To go on:\n{command(folder)}\n"
    try:
        yield
    except Stopped:
        console.warn(f"stopped and saved. To go on:\n{command(folder)}")
        raise
    finally:
        console.close()


@contextmanager
def _nothing_left(trainer: BaseTrainer, folder: RunFolder) -> Iterator[None]:
    """What ends a new run before its first step, in the config or the user's code, leaves no folder of it."""
    try:
        yield
    except (Stopped, TrainingError):
        raise
    except Exception as error:
        if trainer.progress.steps or not trainer.runtime.processes.is_main_process or not folder.remove_empty():
            raise
        told = f"Nothing was trained; {display_path(folder.path)} is removed again."
        if isinstance(error, UserError):
            raise type(error)(f"{error}\n{told}") from error
        error.add_note(told)
        raise


if __name__ == "__main__":
    sys.exit(cli.run(main))
