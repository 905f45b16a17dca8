"""Test the model of a run: its best checkpoint, or the one that is named.

python test.py -r saved/two_layer_net/20260101-120000
"""

import contextlib
import json
import sys

from utils.signals import SignalWatch, end_at_once

if __name__ == "__main__":
    end_at_once()  # before the imports below, which take seconds

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from base.build import build_experiment, build_trainer, load_weights
from base.view import View
from logger.console import Console, number
from utils import checkpoint, cli
from utils.config import load_config
from utils.errors import CheckpointError
from utils.paths import shown
from utils.registry import import_components
from utils.run_folder import RunFolder, replace_text


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """The command line as a function: the loss and the metrics on the test data."""
    made = cli.parser("Test the model of a run on the test data.")
    made.add_argument("-r", "--resume", required=True, metavar="RUN", help="a run folder, or a checkpoint file in one")
    options = cli.parse(made, argv)
    import_components()
    folder, _ = RunFolder.of(Path(options.resume))
    source = RunFolder.checkpoint_of(Path(options.resume))
    loaded = load_config(folder.config, options.overrides, trial=False)  # no optimizer here
    experiment = build_experiment(loaded, Console(loaded.config.trainer.verbosity), SignalWatch())
    state = _read(source, folder)
    load_weights(experiment.model, state, source)
    test = experiment.data.test()
    values = build_trainer(loaded, experiment).evaluate(test, View())
    report = folder.path / "test"
    with contextlib.suppress(OSError):  # where it cannot be made, writing into it says so
        report.mkdir(exist_ok=True)
    progress = state["progress"]
    found = {
        "checkpoint": source.name,
        "epoch": progress["epochs"],
        "step": progress["steps"],
        "samples": test.num_samples,
    }
    print(_table(f"{shown(source)} (epoch {progress['epochs']}) on {test.num_samples:,} test samples", values))
    replace_text(report / "metrics.json", json.dumps({**found, **values}, indent=2) + "\n")
    print(f"written to {shown(report / 'metrics.json')}")
    return values


def _read(source: Path, folder: RunFolder) -> dict[str, Any]:
    try:
        return checkpoint.read(source)
    except CheckpointError as error:
        others = [path for path in checkpoint.step_files(folder.checkpoints) if not path.samefile(source)]
        advice = f"The newest other checkpoint of this run: {shown(others[0])}" if others else "The run has no other."
        raise CheckpointError(f"{error}\n{advice}") from error


def _table(title: str, values: Mapping[str, float]) -> str:
    width = max(map(len, values))
    rows = [f"  {name:<{width}}  {number(value):>12}" for name, value in values.items()]
    return "\n".join([title, *rows])


if __name__ == "__main__":
    sys.exit(cli.run(main))
