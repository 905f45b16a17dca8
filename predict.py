"""Run the model of a run on new inputs: pictures, folders of pictures, arrays (.npy, .npz) or tables (.csv).

python predict.py -r saved/photos/20260101-120000 holiday.jpg more_photos
python predict.py -r saved/photos/20260101-120000 'photos/**/*.png' --out predictions.csv --show predictions.png
find photos -name '*.jpg' | python predict.py -r saved/photos/20260101-120000 - --json
"""

import sys

from utils.signals import exit_on_signal

if __name__ == "__main__":
    exit_on_signal()  # before the imports below, which take seconds

from collections.abc import Sequence
from pathlib import Path

from utils import cli
from utils.errors import UserError
from utils.extras import load_extra


def main(argv: Sequence[str] | None = None) -> None:
    """The command line as a function. Raises UserError, Stopped, or TrainingError if an input could not be read."""
    parser = cli.parser(
        __doc__, inputs="a picture, a folder of pictures, an array, a table or a pattern; -: names from stdin"
    )
    add = parser.add_argument
    add("-r", "--resume", required=True, metavar="RUN", help="a run folder, or a checkpoint file in one")
    add("--out", type=Path, metavar="FILE", help="FILE.csv, .json, .jsonl or .npz (default: a table on stdout)")
    add("--json", action="store_true", help="JSON instead of CSV")
    add("--columns", metavar="A,B,...", help="the table columns that the model takes, in order")
    add("--show", type=Path, metavar="FILE.png", help="draw the first inputs with their predictions")
    options = cli.parse(parser, argv, inputs=True)
    cli.refuse_torchrun("predict.py")
    if not options.inputs:
        raise UserError(
            "no inputs; give pictures, folders, arrays or tables after the options, or - to read names from stdin"
        )
    with cli.loading():
        extra = load_extra("predict", "predict.py")
    extra.predict(options)


if __name__ == "__main__":
    sys.exit(cli.run(main))
