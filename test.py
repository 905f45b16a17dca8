"""Test the model of a run: its best checkpoint, or the one given. Or compare runs.

python test.py                                           # the most recent run
python test.py -r saved/two_layer_net/20260101-120000
python test.py -r saved/two_layer_net/20260101-120000/checkpoints/last.pth
python test.py --compare saved/two_layer_net
"""

import argparse
import contextlib
import json
import math
import sys
import tempfile

from utils.signals import exit_on_signal

if __name__ == "__main__":
    exit_on_signal()  # before the imports below, which take seconds
    from utils import cli

    cli.answer_early(__doc__, cli.test_options)

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from base.base_model import count_parameters
from base.construct import call
from base.data.batches import Batches
from base.load_run import TrainedRun, load_trainer
from base.training.evaluation import check_returned
from base.training.observer import Observer
from base.training.resume import latest_run
from logger.writers import EventWriter, points
from utils import cli
from utils.determinism import restore_kernels
from utils.distributed import ProcessGroup, get_process_group
from utils.errors import TrainingError, UserError, os_errors_as
from utils.extras import find_extra, load_extra
from utils.paths import PROJECT, display_path
from utils.registry import import_components
from utils.run_folder import RunFolder, replace_files
from utils.streams import clear_loading, say
from utils.text import OVERRIDE, count, number_or_dash, shell_join, table


@restore_kernels()
def main(argv: Sequence[str | Path] | None = None) -> dict[str, float]:
    """The command line as a function. Returns the loss and metrics on the test data; empty for --compare."""
    get_process_group()  # with several processes, the first to fail reports its error
    options = cli.test_options(__doc__, argv)
    import_components()
    if options.compare is not None:
        cli.refuse_torchrun("--compare")
        return _compare(options)
    words = sys.argv[1:] if argv is None else list(map(str, argv))
    return _test(options, command=shell_join(["python", display_path(PROJECT / "test.py"), *words]))


def _compare(options: argparse.Namespace) -> dict[str, float]:
    overrides = [name for name in options.compare if OVERRIDE.match(name) and not Path(name).exists()]
    if overrides or options.overrides:
        raise UserError(f"--compare takes run folders, not {' '.join([*overrides, *options.overrides])}")
    load_extra("compare", "--compare").compare(list(map(Path, options.compare)), options.out)
    return {}


def _test(options: argparse.Namespace, *, command: str) -> dict[str, float]:
    """command: as it could be typed again, for the report."""
    if options.resume:
        which = Path(options.resume)
    else:
        which = latest_run(None, options.overrides, get_process_group(), doing="testing").path
    run = load_trainer(which, options.overrides)
    experiment, process_group = run.experiment, run.experiment.runtime.process_group
    test = _test_data(run, options.overrides)
    about = {**run.about, "samples": test.num_samples, "overrides": list(options.overrides)}
    out = options.out or run.folder.path / "test"
    extra: Any = find_extra("report")
    report = extra.EvaluationReport(out, experiment) if extra else None
    with (
        _results_folder(out, process_group, chosen=options.out is not None),
        contextlib.closing(test),
    ):
        values = check_returned(run.trainer, "evaluate", run.trainer.evaluate(test, report or Observer()))
        if process_group.is_main_process:
            say(f"{display_path(run.checkpoint)} (epoch {about['epoch']}) on {count(test.num_samples, 'test sample')}")
            say(*table([("", name, f"{number_or_dash(value):>12}") for name, value in values.items()]))
            found = dict(values)
            if report:
                found |= {name: value for name, value in report.further_values().items() if name not in found}
            finite = {name: value if math.isfinite(value) else None for name, value in found.items()}
            metrics = {"metrics.json": json.dumps({**about, **finite}, indent=2) + "\n"}
            if report:
                size = count_parameters(experiment.model)
                report.write(extra.Tested(run.folder, run.loaded.config, command, about, size), found, metrics)
            else:
                replace_files(out, metrics)
            if run.loaded.config.trainer.writes_tensorboard:
                # the run's own points in TensorBoard, rather than another run's
                _write_points(run.folder.path if options.out is None else out, about["step"], found)
    if process_group.is_main_process and report:
        say(f"report: {display_path(out / 'report.md')}, report.html")
    elif process_group.is_main_process:
        say(f"metrics: {display_path(out / 'metrics.json')}; no report: extras/report is not in this project")
    return values


def _test_data(run: TrainedRun, overrides: Sequence[str]) -> Batches:
    """This process's part of the test data. Warns if the overrides have changed a fact of it."""
    experiment, process_group = run.experiment, run.experiment.runtime.process_group
    with process_group.main_process_first():
        name = f"{type(experiment.data).__name__}.test"
        test = call(("data_loader",), name, experiment.data.test, Batches)
        run.begin_epoch(experiment.data)  # which may change the data set that test_data has returned
        if advice := find_extra("advice"):
            for warning in advice.changed_facts_of_test(run, overrides):
                experiment.console.warn(warning)
    test.divide(process_group.rank, process_group.world_size)
    return test


@contextlib.contextmanager
def _results_folder(folder: Path, process_group: ProcessGroup, *, chosen: bool) -> Iterator[None]:
    """Create the folder and lock it, in the main process. Replaces the results of an earlier test.

    chosen: by --out; it must not contain other files. Raises UserError if it does, or cannot be written.
    """
    if not process_group.is_main_process:
        yield
        return
    if folder.is_symlink() and not chosen:
        raise UserError(f"{folder} is a link; move it away, or choose another folder with --out")
    earlier = any((folder / name).is_file() for name in ("report.md", "metrics.json"))
    if chosen and folder.is_dir() and any(folder.iterdir()) and not earlier:
        raise UserError(f"{folder} contains other files; --out needs a new folder, or one with an earlier report")
    with os_errors_as(UserError, f"{folder} cannot be written", advice="; choose another folder with --out"):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # now, rather than once the test is over
    try:
        with RunFolder(folder).locked("writes a report into it"):
            yield
    except TrainingError as error:
        if not isinstance(error.__cause__, OSError):  # not a file that cannot be written
            raise
        raise UserError(f"{error}; make room, or choose another folder with --out") from error


def _write_points(board: Path, step: int, values: Mapping[str, float]) -> None:
    """Write one point per value for TensorBoard, replacing an earlier test's. Raises TrainingError."""
    summary = points({f"{name}/test": value for name, value in values.items()})
    with os_errors_as(TrainingError, f"{board} cannot be written"):
        EventWriter(board).replace("test", {"summary": summary}, step=step)


if __name__ == "__main__":
    clear_loading()
    sys.exit(cli.run(main))
