"""Test the model of a run: its best checkpoint, or the one given. Or compare runs.

python test.py -r saved/two_layer_net/20260101-120000
python test.py -r saved/two_layer_net/20260101-120000/checkpoints/last.pth
python test.py --compare saved/two_layer_net
"""

import argparse
import contextlib
import json
import math
import shlex
import sys

from utils.signals import end_at_once

if __name__ == "__main__":
    end_at_once()  # before the imports below, which take seconds

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from base.base_model import count_parameters
from base.build import build_experiment, build_trainer, with_facts
from base.initial_weights import load_weights
from base.training.observer import Observer
from base.training.state import load_for_evaluation
from logger.writers import EventWriter, remove_event_files
from utils import checkpoint, cli
from utils.config import load_config
from utils.distributed import ProcessGroup, get_process_group
from utils.errors import CheckpointError, TrainingError, UserError
from utils.extras import find_extra, load_extra
from utils.paths import PROJECT, display_path
from utils.registry import import_components
from utils.run_folder import RunFolder, replace_text
from utils.streams import say
from utils.text import OVERRIDE, number, table

Values = Mapping[str, float]


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """The command line as a function: the loss and the metrics on the test data; empty for --compare."""
    process_group = get_process_group()
    made = cli.parser(__doc__ or "")
    which = made.add_mutually_exclusive_group(required=True)
    which.add_argument("-r", "--resume", metavar="RUN", help="a run folder, or a checkpoint file in one")
    which.add_argument("--compare", nargs="+", metavar="RUN", help="run folders, or folders of runs")
    made.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="for the report (default: RUN/test) or the comparison (the runs' own)",
    )
    options = cli.parse(made, argv)
    if process_group.launched and options.compare is not None:
        raise UserError("--compare runs in a single process; do not use torchrun")
    if options.compare is not None:
        return _compare(options)
    words = sys.argv[1:] if argv is None else argv
    return _test(options, command=shlex.join(["python", display_path(PROJECT / "test.py"), *words]))


def _compare(options: argparse.Namespace) -> dict[str, float]:
    overrides = [name for name in options.compare if OVERRIDE.match(name) and not Path(name).exists()]
    if overrides or options.overrides:
        raise UserError(f"--compare takes run folders, not {' '.join([*overrides, *options.overrides])}")
    load_extra("compare", "--compare").compare(list(map(Path, options.compare)), options.out)
    return {}


def _test(options: argparse.Namespace, *, command: str) -> dict[str, float]:
    """command: as it could be typed again, for the report."""
    process_group = get_process_group()
    import_components()
    folder, _ = RunFolder.of(Path(options.resume))
    source = RunFolder.checkpoint_of(Path(options.resume))
    # there is no optimizer here, and the weights are not sharded
    loaded = load_config(folder.config, [*options.overrides, "runtime.strategy=ddp"], dry_run=False)
    loaded, data = with_facts(loaded)
    experiment = build_experiment(loaded, data)
    state = _load(source, folder, experiment.model, process_group)
    progress = checkpoint.saved_progress(state, source)
    trainer = build_trainer(loaded, experiment)
    load_for_evaluation(trainer, state, source)
    with process_group.main_process_first():
        test = experiment.data.test()
    test.divide(process_group.rank, process_group.world_size)
    about = {
        "checkpoint": source.name,
        "epoch": progress["epochs"],
        "step": progress["steps"],
        "samples": test.num_samples,
    }
    out = process_group.broadcast_object(lambda: _free(options.out) if options.out else folder.path / "test")
    extra: Any = find_extra("report")
    report = extra.EvaluationReport(out, experiment) if extra else None
    with _owned(out, process_group), report or contextlib.nullcontext():
        values = trainer.evaluate(test, report or Observer())
        if process_group.is_main_process:
            say(f"{display_path(source)} (epoch {about['epoch']}) on {test.num_samples:,} test samples")
            say(*table([("", name, f"{number(value):>12}") for name, value in values.items()]), sep="\n")
            found = dict(values)
            if report:
                found |= {name: value for name, value in report.further_values().items() if name not in found}
                size = count_parameters(experiment.model)
                report.write(extra.Tested(folder, loaded.config, command, about, size), found)
            board = folder.path if options.out is None else out
            _write_metrics(out, about, found, board if loaded.config.trainer.writes_tensorboard else None)
    if process_group.is_main_process and report:
        say(f"report: {display_path(out / 'report.md')}, report.html")
    elif process_group.is_main_process:
        say(f"metrics: {display_path(out / 'metrics.json')}; no report: extras/report is not in this project")
    return values


def _free(folder: Path) -> Path:
    """A folder for the results alone: an earlier test's are replaced, other files must not be. Raises UserError."""
    earlier = any((folder / name).is_file() for name in ("report.md", "metrics.json"))
    if folder.is_dir() and any(folder.iterdir()) and not earlier:
        raise UserError(f"{folder} holds other files; --out takes a new folder, or one that holds an earlier report")
    return folder


@contextlib.contextmanager
def _owned(folder: Path, process_group: ProcessGroup) -> Iterator[None]:
    """Create the folder and lock it, in the main process. Raises UserError if that fails."""
    if not process_group.is_main_process:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be created: {error.strerror}; choose another folder by --out") from error
    with RunFolder(folder).locked("writes a report into it"):
        yield


def _write_metrics(folder: Path, about: Mapping[str, Any], values: Values, board: Path | None) -> None:
    """metrics.json and, for TensorBoard, one point per value, in place of an earlier test's.

    board: where the points go: the run's folder, so that TensorBoard shows them as the run's own and not as those of
    another run; None: nowhere. Raises TrainingError if a file cannot be written.
    """
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    replace_text(folder / "metrics.json", json.dumps({**about, **finite}, indent=2) + "\n")
    if board is None:
        return
    try:
        EventWriter(board).replace_test(about["step"], values)
        if board != folder:
            remove_event_files(folder)  # where an earlier version wrote them
    except OSError as error:
        raise TrainingError(f"{board} cannot be written: {error.strerror}") from error


def _load(source: Path, folder: RunFolder, model: nn.Module, process_group: ProcessGroup) -> dict[str, Any]:
    """The same state in all processes, although a run that still trains may replace the file at any moment."""
    try:
        state = checkpoint.read_together(source, process_group)
        while len(set(process_group.all_gather(checkpoint.saved_progress(state, source)["steps"]))) > 1:
            state = checkpoint.read_together(source, process_group)
    except CheckpointError as error:
        others = [path for path in checkpoint.step_files(folder.checkpoints) if not path.samefile(source)]
        advice = (
            f"The newest other checkpoint of this run: {display_path(others[0])}" if others else "The run has no other."
        )
        raise CheckpointError(f"{error}\n{advice}") from error
    load_weights(model, state["model"], source)
    return state


if __name__ == "__main__":
    sys.exit(cli.run(main))
