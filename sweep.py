"""Search: one run for each of several values, seeds or folds. Can be resumed at any point.

python sweep.py -c configs/linear_regression.json seed=0..4
python sweep.py optimizer.args.lr=log:1e-7..1e-5 model.args.hidden_features=50,100,200 --trials 30 --jobs 2
python sweep.py -r saved/two_layer_net/sweep-20260101-120000
python sweep.py -r saved/two_layer_net/sweep-20260101-120000 --trials 60
"""

import sys

from utils.signals import exit_on_signal

if __name__ == "__main__":
    exit_on_signal()  # before the imports below, which take seconds

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils import cli
from utils.extras import load_extra


def main(argv: Sequence[str] | None = None) -> Any:
    """The command line as a function: result.folder, .trials, .best. Raises UserError or Stopped instead of exiting."""
    parser = cli.parser(__doc__, values=", or the values to try, e.g. seed=0..4")
    add = parser.add_argument
    add("-c", "--config", type=Path, metavar="FILE", help="the experiment (default: config.json)")
    add("-r", "--resume", metavar="FOLDER", help="resume the sweep in this folder")
    add("--trials", type=int, metavar="N", help="total number, chosen by --sampler (default: every grid point)")
    add("--jobs", type=int, default=1, metavar="N", help="trials to run at once (default: 1)")
    add("--sampler", choices=("tpe", "random"), help="how to choose --trials (default: Optuna's tpe)")
    add("--pruner", choices=("median", "hyperband", "none"), help="how to stop bad trials early (default: none)")
    add("--note", metavar="TEXT", help="a label for the sweep and its trials, shown in the report and --compare")
    add("--lr", metavar="SPACE", help="short for optimizer.args.lr=SPACE")
    add("--bs", metavar="SIZES", help="short for data_loader.args.batch_size=SIZES")
    return load_extra("sweep", "sweep.py").sweep(cli.parse(parser, argv))


if __name__ == "__main__":
    sys.exit(cli.run(main))
