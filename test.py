"""Test the model of a run: its best checkpoint, or the one that is named. Or compare runs.

python test.py -r saved/two_layer_net/20260101-120000
python test.py -r saved/two_layer_net/20260101-120000/checkpoints/last.pth
python test.py --compare saved/two_layer_net
"""

import argparse
import sys

from utils.signals import end_at_once
from utils.text import number

if __name__ == "__main__":
    end_at_once()  # before the imports below, which take seconds

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from base.build import build_experiment, build_trainer, load_weights
from extras.compare.comparison import compare
from extras.report.evaluation import EvaluationReport
from utils import checkpoint, cli
from utils.config import OVERRIDE, load_config
from utils.distributed import ProcessGroup, get_process_group
from utils.errors import CheckpointError, UserError
from utils.paths import display_path
from utils.registry import import_components
from utils.run_folder import RunFolder


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
        raise UserError("--compare looks with a process of its own; give it without torchrun")
    return _test(options) if options.compare is None else _compare(options)


def _compare(options: argparse.Namespace) -> dict[str, float]:
    overrides = [name for name in options.compare if OVERRIDE.match(name) and not Path(name).exists()]
    if overrides or options.overrides:
        raise UserError(f"--compare takes run folders; {' '.join([*overrides, *options.overrides])} is none")
    compare(list(map(Path, options.compare)), options.out)
    return {}


def _test(options: argparse.Namespace) -> dict[str, float]:
    process_group = get_process_group()
    import_components()
    folder, _ = RunFolder.of(Path(options.resume))
    source = RunFolder.checkpoint_of(Path(options.resume))
    # no optimizer here, and no weights that are in parts
    loaded = load_config(folder.config, [*options.overrides, "runtime.strategy=ddp"], dry_run=False)
    experiment = build_experiment(loaded)
    progress = _load(source, folder, experiment.model, process_group)["progress"]
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
    report = EvaluationReport(out, experiment)
    with report.opened():
        values = build_trainer(loaded, experiment).evaluate(test, report)
        if process_group.is_main_process:
            print(
                _table(
                    f"{display_path(source)} (epoch {progress['epochs']}) on {test.num_samples:,} test samples", values
                )
            )
            name = f"{loaded.config.name}/{folder.path.resolve().name}"
            report.write(name, about, values, tensorboard=loaded.config.trainer.tensorboard)
    if process_group.is_main_process:
        print(f"report: {display_path(report.folder / 'report.md')}")
    return values


def _free(folder: Path) -> Path:
    """A folder for a report alone: what an earlier one left is replaced, and nobody else's files must be."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "report.md").is_file():
        raise UserError(f"{folder} holds other files; --out takes a new folder, or one that holds an earlier report")
    return folder


def _load(source: Path, folder: RunFolder, model: nn.Module, process_group: ProcessGroup) -> dict[str, Any]:
    """The same state in all processes, though a run that still trains may put another file in its place any moment."""
    try:
        state = load_weights(model, source, process_group)
        while len(set(process_group.all_gather(state["progress"]["steps"]))) > 1:
            state = load_weights(model, source, process_group)
        return state
    except CheckpointError as error:
        others = [path for path in checkpoint.step_files(folder.checkpoints) if not path.samefile(source)]
        advice = (
            f"The newest other checkpoint of this run: {display_path(others[0])}" if others else "The run has no other."
        )
        raise CheckpointError(f"{error}\n{advice}") from error


def _table(title: str, values: Mapping[str, float]) -> str:
    width = max(map(len, values))
    rows = [f"  {name:<{width}}  {number(value):>12}" for name, value in values.items()]
    return "\n".join([title, *rows])


if __name__ == "__main__":
    sys.exit(cli.run(main))
