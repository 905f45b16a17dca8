"""Train a model as a config says, or go on with a run.

python train.py -c config.json trainer.epochs=5
python train.py -r                     # go on with the newest run
"""

import argparse
import gc
import shlex
import sys

from utils.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # before the imports below, which take seconds

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from base.announcement import announcement, command, farewell
from base.base_trainer import BaseTrainer
from base.build import (
    build_experiment,
    build_outputs,
    build_trainer,
    build_training,
    load_weights,
)
from base.experiment import Experiment, Outputs
from logger.writers import EventWriter
from utils import checkpoint, cli
from utils.config import LoadedConfig, load_config, to_json
from utils.errors import CheckpointError, Stopped, UserError
from utils.paths import PROJECT, shown
from utils.processes import launch, processes
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
    made = cli.parser("Train a model as a config says, or go on with a run.")
    made.add_argument("-c", "--config", type=Path, metavar="FILE", help="the experiment (default: config.json)")
    made.add_argument(
        "-r", "--resume", nargs="?", const="", metavar="RUN", help="a run folder or checkpoint; default: the newest run"
    )
    made.add_argument("--init-from", type=Path, metavar="CHECKPOINT", help="begin a new run with these weights")
    made.add_argument("--lr", metavar="RATE", help="short for optimizer.args.lr=RATE")
    made.add_argument("--bs", metavar="SIZE", help="short for data_loader.args.batch_size=SIZE")
    made.add_argument("--check", action="store_true", help="look at everything a run needs, train nothing, and say so")
    made.add_argument("--list", nargs="?", const="", metavar="NAME", help="what a config may name, or all about one")
    options = cli.parse(made, argv)
    shorts = {"optimizer.args.lr": options.lr, "data_loader.args.batch_size": options.bs}
    overrides = [*options.overrides, *(f"{key}={value}" for key, value in shorts.items() if value is not None)]
    team = processes()
    import_components()
    if options.list is not None or options.check:
        _look(options, overrides)
    if options.resume is not None and options.init_from:
        raise UserError("-r goes on with a run, --init-from begins a new one; give one of them")
    if options.resume:
        folder, file = _find_run(options.resume, options.config)
        return resume(folder, overrides, file=file)
    newest = options.resume is not None
    loaded = load_config(options.config or PROJECT / "config.json", overrides, trial=not newest)
    team.connect(loaded.config.runtime.timeout)
    found = team.from_main(lambda: _run_of_launch(loaded, newest=newest))
    return resume(found, overrides) if found else train(loaded, init_from=options.init_from)


def _look(options: argparse.Namespace, overrides: Sequence[str]) -> NoReturn:
    """--list and --check. What only looks is imported only here."""
    if processes().launched:
        raise UserError("--check and --list look with a process of their own; give them without torchrun")
    alone = not (overrides or options.config or options.check)
    if options.resume is not None or options.init_from or (options.list is not None and not alone):
        raise UserError("--list goes alone; --check takes -c, -d and KEY=VALUE, as a new run without --init-from")
    if options.list is not None:
        from inspection.catalogue import listing

        print(listing(options.list))
        raise SystemExit(0)
    from inspection.preflight import preflight

    raise SystemExit(preflight(load_config(options.config or PROJECT / "config.json", overrides)))


def train(loaded: LoadedConfig, *, init_from: Path | None = None) -> Result:
    """A new run, from the first step to the last. init_from: a checkpoint or run folder to take the weights from."""
    experiment = build_experiment(loaded)
    team = experiment.runtime.processes
    weights: dict[str, Any] = {}
    if init_from is not None:
        source = RunFolder.checkpoint_of(init_from)
        state = checkpoint.read(source)
        load_weights(experiment.model, state, source)
        weights = state["model"]
    training = build_training(loaded, experiment)
    trainer = build_trainer(loaded, experiment)

    def prepare(folder: RunFolder) -> None:
        folder.write_config(to_json(loaded.config, folder=folder.path))
        if init_from is not None:  # a run that is killed before its first checkpoint must find these weights again
            checkpoint.write(folder.initial, {"model": weights})

    def create() -> RunFolder:
        return RunFolder.create(loaded.config.trainer.save_dir, loaded.config.name, prepare=prepare)

    with experiment.signals:
        folder = team.from_main(create)
        with folder.owned(team), _reporting(experiment, folder):
            trainer.begin(training, _outputs(loaded, folder, experiment))
            return _train_on(loaded, trainer, folder)


def resume(folder: RunFolder, overrides: Sequence[str] = (), *, file: Path | None = None) -> Result:
    """Go on with a run in its folder: from its newest sound checkpoint, or from one of its checkpoint files."""
    loaded = load_config(folder.config, overrides)
    _same_place(loaded, folder)
    experiment = build_experiment(loaded)
    training = build_training(loaded, experiment)
    trainer = build_trainer(loaded, experiment)
    with experiment.signals, folder.owned(trainer.runtime.processes), _reporting(experiment, folder):
        trainer.begin(training, _outputs(loaded, folder, experiment))
        found = _find_state(folder, file, trainer)
        if found:
            trainer.load_state_dict(found[1], found[0])
        else:
            _begin_again(loaded, trainer, folder)
        return _train_on(loaded, trainer, folder)


def _outputs(loaded: LoadedConfig, folder: RunFolder, experiment: Experiment) -> Outputs:
    """Where the run leaves what it found. What TensorBoard shows beside the curves is imported only where it is on."""
    outputs = build_outputs(loaded, folder, experiment)
    if isinstance(events := outputs.writers.writers.get("events"), EventWriter):
        from board.board import Board

        outputs.view = Board(loaded.config, events, to_json(loaded.config, folder=folder.path))
    return outputs


def _find_state(folder: RunFolder, file: Path | None, trainer: BaseTrainer) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to go on from, and its state; None if there is none yet."""
    team, place = trainer.runtime.processes, trainer.runtime.place(trainer.experiment.model, trainer.training.optimizer)
    try:
        if file:
            return file, checkpoint.read_together(file, team, place)
        return checkpoint.newest_sound(folder.checkpoints, trainer.console.warn, team, place)
    except CheckpointError as error:
        advice = f"To go on from the newest sound checkpoint:\n{command(folder)}"
        if file is None:
            advice = f"To begin anew: python train.py -c {shlex.quote(shown(folder.config))}"
        raise CheckpointError(f"{error}\n{advice}") from error


def _begin_again(loaded: LoadedConfig, trainer: BaseTrainer, folder: RunFolder) -> None:
    """A run that was killed before its first checkpoint: everything follows from its config and its first weights.

    Raises CheckpointError if its log shows that there were checkpoints, which are gone.
    """
    logged = folder.last_epoch().get("epoch", 0)
    # the second save that is due waits for the first one
    if logged > 2 * loaded.config.trainer.save_period:
        raise CheckpointError(
            f"there is no checkpoint in {folder.checkpoints}, though this run came to epoch {logged}. Put one back, or "
            f"begin anew: python train.py -c {shlex.quote(shown(folder.config))}"
        )
    if folder.initial.exists():
        load_weights(trainer.model, checkpoint.read(folder.initial), folder.initial)
    trainer.console.warn("the run has no checkpoint yet; it begins again")
    trainer.outputs.writers.resume({}, step=0)


def _train_on(loaded: LoadedConfig, trainer: BaseTrainer, folder: RunFolder) -> Result:
    """Train from where the trainer stands to the end, in a folder that is ours."""
    team, text = trainer.runtime.processes, to_json(loaded.config, folder=folder.path)
    if team.main:
        if trainer.progress.steps == 0 or folder.config.read_text(encoding="utf-8") != text:
            folder.write_config(text)
        folder.write_environment(environment(str(trainer.runtime.device), team.count, loaded.config.seed))
    for warning in loaded.warnings():
        trainer.console.warn(warning)
    for line in announcement(loaded, trainer, folder):
        trainer.console.info(line)
    gc.freeze()  # what the imports made stays; looking through it again would cost the training 0.1 s each time
    trainer.train()
    trainer.console.clear()
    progress = trainer.progress
    for line in farewell(loaded, trainer, folder):
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


def _run_of_launch(loaded: LoadedConfig, *, newest: bool) -> RunFolder | None:
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


def _find_run(resume: str, config: Path | None) -> tuple[RunFolder, Path | None]:
    if config is not None:
        raise UserError(
            "-r RUN goes on with the run's own config; for a new run with its weights: -c ... --init-from RUN"
        )
    return RunFolder.of(Path(resume))


def _same_place(loaded: LoadedConfig, folder: RunFolder) -> None:
    """A resumed run stays in its folder, so its name cannot change."""
    before = load_config(folder.config, trial=False).config
    if before.name != loaded.config.name or before.trainer.save_dir != loaded.config.trainer.save_dir:
        raise CheckpointError(
            "a run goes on in its own folder: name and trainer.save_dir cannot change. "
            f"For a new run with its weights: --init-from {shown(folder.path)}"
        )


if __name__ == "__main__":
    sys.exit(cli.run(main))
