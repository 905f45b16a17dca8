"""Export the model of a run (its best checkpoint, or the one given) to a file that does not need this project's code.

python export.py -r saved/cifar10_lenet/20260101-120000
python export.py -r saved/cifar10_lenet/20260101-120000 --format onnx --out lenet.onnx
python export.py -r saved/cifar10_lenet/20260101-120000 data_loader.args.data_dir=/data/cifar10
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

SUFFIXES = {".pt2": "torch", ".onnx": "onnx", ".safetensors": "safetensors"}


def main(argv: Sequence[str] | None = None) -> Path:
    """The command line as a function. Returns the file. Raises UserError."""
    parser = cli.parser(__doc__, device=False)
    add = parser.add_argument
    add("-r", "--resume", required=True, metavar="RUN", help="a run folder, or a checkpoint file in one")
    add(
        "--format",
        choices=list(SUFFIXES.values()),
        help="torch.export's archive, ONNX, or only the weights (default: by the suffix of --out, or torch)",
    )
    add("--out", type=Path, metavar="FILE", help="the file (default: RUN/model.pt2, .onnx, .safetensors)")
    options = cli.parse(parser, argv)
    cli.refuse_torchrun("export.py")
    with cli.loading():
        extra = load_extra("export", "export.py")
    if options.out and not options.format and options.out.suffix not in SUFFIXES:
        raise UserError(f"--out {options.out}: the file name must end with one of {', '.join(SUFFIXES)}")
    name = options.format or (SUFFIXES[options.out.suffix] if options.out else "torch")
    written: Path = extra.export(Path(options.resume), name, options.out, options.overrides)
    return written


if __name__ == "__main__":
    sys.exit(cli.run(main))
