"""Command line shared by train.py and test.py: common arguments, overrides, and errors as exit statuses."""

import argparse
import contextlib
import errno
import gc
import itertools
import os
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from utils.device_errors import device_failure
from utils.distributed import current, get_process_group
from utils.errors import Stopped, TrainingError, UserError
from utils.extras import find_extra, load_extra
from utils.garbage_collection import leave_to_the_system
from utils.streams import clear_loading, flush_streams, say, say_error, say_loading, terminal_width
from utils.text import OVERRIDE
from utils.user_code import user_line

# options that abbreviate a key of the config
SHORTS = {
    "device": "runtime.device",
    "lr": "optimizer.args.lr",
    "bs": "data_loader.args.batch_size",
    "init_from": "model.weights.file",
}

LIST_WIDTH = 110  # of --list when not printed to a terminal


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: --"):
            message += "; set a key of the config as KEY=VALUE, without dashes, e.g. trainer.epochs=5"
        raise UserError(f"{message}\n{self.format_usage().rstrip()}")


def parser(about: str | None, *, inputs: str = "", values: str = "", device: bool = True) -> argparse.ArgumentParser:
    """A parser with the common arguments. about: what the script does, then its examples, shown at the end of the help.

    inputs: what positional arguments other than overrides are; empty if the script accepts only overrides.
    values: what an override may give besides a value.
    device: whether to add --device.
    """
    description, _, examples = (about or "").strip().partition("\n\n")
    parser = _Parser(
        description=description,
        epilog=f"examples:\n{textwrap.indent(examples, '  ')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if device:
        parser.add_argument(
            "-d", "--device", metavar="DEVICE", help="short for runtime.device=DEVICE: auto, cpu, cuda, cuda:1, mps ..."
        )
    override = f"override a key of the config{values}"
    words, about_words = ("INPUT", f"{inputs}; KEY=VALUE: {override}") if inputs else ("KEY=VALUE", override)
    parser.add_argument("overrides", nargs="*", metavar=words, help=about_words)
    return parser


def train_options(about: str | None, argv: Sequence[str | Path] | None) -> argparse.Namespace:
    """The options of train.py."""
    command_line = parser(about)
    add = command_line.add_argument
    add("-c", "--config", type=Path, metavar="FILE", help="the experiment (default: config.json)")
    run = "a run folder or checkpoint; default: the most recent run"
    add("-r", "--resume", nargs="?", const="", metavar="RUN", help=run)
    add("--init-from", type=os.path.abspath, metavar="WEIGHTS", help="short for model.weights.file=WEIGHTS")
    add("--note", metavar="TEXT", help="a label for this run, shown in environment.json, --compare and TensorBoard")
    add("--lr", metavar="RATE", help="short for optimizer.args.lr=RATE")
    add("--bs", metavar="SIZE", help="short for data_loader.args.batch_size=SIZE")
    add("--check", action="store_true", help="check everything that a run needs, without training")
    listed = "list the components a config can use, or describe one"
    add("--list", nargs="?", const="", metavar="NAME", help=listed)
    options = parse(command_line, argv)
    others = options.overrides or options.config or options.check or options.note
    if options.list is not None and (others or options.resume is not None):
        raise UserError("--list cannot be combined with other options")
    if options.resume is not None and (options.check or options.init_from):
        raise UserError("-r cannot be combined with --check or --init-from, which take a config")
    if options.resume and options.config is not None:
        raise UserError("-r RUN uses the run's own config. To start a new run from its weights: -c ... --init-from RUN")
    return options


def test_options(about: str | None, argv: Sequence[str | Path] | None) -> argparse.Namespace:
    """The options of test.py."""
    command_line = parser(about)
    which = command_line.add_mutually_exclusive_group()
    run = "a run folder, or a checkpoint file in one (default: the most recent run)"
    which.add_argument("-r", "--resume", nargs="?", const="", metavar="RUN", help=run)
    which.add_argument("--compare", nargs="+", metavar="RUN", help="run folders, or folders of runs")
    out = "for the report (default: RUN/test) or the comparison (the runs' own)"
    command_line.add_argument("--out", type=Path, metavar="FOLDER", help=out)
    return parse(command_line, argv)


def inspect(options: argparse.Namespace) -> int | None:
    """--list, or --check, whose exit status is returned."""
    from utils.config import load_config  # slow to import
    from utils.paths import PROJECT

    refuse_torchrun("--check" if options.list is None else "--list")
    if options.list is not None:
        width = terminal_width(LIST_WIDTH)
        text = load_extra("schema", "--list").listing(options.list, width=width)
        if early := find_extra("early"):
            early.keep_listing(options.list, width, text)
        say(text)
        return None
    check = load_extra("check", "--check")
    status: int = check.preflight(load_config(options.config or PROJECT / "config.json", options.overrides))
    return status


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str | Path] | None, *, inputs: bool = False
) -> argparse.Namespace:
    """Parse the arguments, in any order. A KEY=VALUE after -r is an override, not its value.

    inputs: whether words that are not overrides, or that name a file, are inputs.
    """
    words = list(map(str, sys.argv[1:] if argv is None else argv))
    for before, word in itertools.pairwise(["", *words]):
        if not word and before != "--note":
            raise UserError(f"an argument{f' after {before}' if before else ''} is empty; is a shell variable unset?")
    for index, (option, word) in enumerate(itertools.pairwise(words)):
        if option in ("-r", "--resume") and OVERRIDE.match(word):
            words[index] = "--resume="
    options = parser.parse_intermixed_args(words)
    if inputs:
        options.inputs = [word for word in options.overrides if not OVERRIDE.match(word) or os.path.lexists(word)]
        options.overrides = [word for word in options.overrides if word not in options.inputs]
    for short, key in SHORTS.items():
        if (value := getattr(options, short, None)) is not None:
            if twice := [word for word in options.overrides if word.startswith(f"{key}=")]:
                option = short.replace("_", "-")
                raise UserError(f"--{option} is short for {key}, and there is {twice[0]} too; leave one out")
            options.overrides.append(f"{key}={value}")
    return options


def refuse_torchrun(what: str) -> None:
    """Raise UserError if a launcher has started several processes."""
    if get_process_group().launched:
        raise UserError(f"{what} runs in a single process; do not use torchrun")


def answer_early(about: str | None, options_of: Callable[..., argparse.Namespace] = train_options) -> None:
    """For the top of train.py and test.py: exit if the command is --help, has a typo, or asks for a cached list.

    Otherwise prints that it is loading. Does not import torch, which takes seconds. Until ``run``, garbage collection
    is off: see utils/garbage_collection.py.
    """
    if os.environ.get("RANK"):
        gc.disable()
        return

    def answer(argv: Sequence[str] | None) -> None:
        options = options_of(about, argv)
        if "list" in options and (early := find_extra("early")):
            early.answer(options)

    if status := run(answer):
        sys.exit(status)
    say_loading()
    gc.disable()


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Show a notice inside the block, while torch is imported."""
    say_loading()
    try:
        yield
    finally:
        clear_loading()


def run(command: Callable[[Sequence[str] | None], Any], argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 2 for a user's mistake, 128 + signal, 1 for anything else.

    If several processes fail, only the first to fail prints its error.
    """
    leave_to_the_system()
    if not gc.isenabled():  # since answer_early
        gc.freeze()
        gc.enable()
    try:
        status = _status(command, argv)  # first: the command may join a process group
    finally:
        flush_streams()
    return current().exit(status)


def _status(command: Callable[[Sequence[str] | None], Any], argv: Sequence[str] | None) -> int:
    try:
        returned = command(argv)
        current().finish()
    except (UserError, TrainingError) as error:
        return _fail(error, 2 if isinstance(error, UserError) else 1)
    except Stopped as stopped:
        return 128 + stopped.signal
    except KeyboardInterrupt:
        say_error("stopped immediately; earlier checkpoints are intact")
        return 130
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            return _fail(UserError(f"{error.filename}: the name is too long for this file system"), 2)
        if failure := device_failure(error, user_line(error)):
            return _fail(TrainingError(failure), 1)
        if not current().launched:
            raise
        return _fail(error, 1)
    return returned if isinstance(returned, int) else 0  # from --check


def _fail(error: Exception, status: int) -> int:
    """Print the error, unless another process failed first; return the status of the one that did."""
    if current().launched:  # the launcher signals all processes when the first exits
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    lost = current().peer_failure(error)
    first, status = current().claim_failure(1 if lost else status)
    if first and (lost or isinstance(error, (UserError, TrainingError))):
        say_error(f"error: {lost or error}")
    elif first:
        say_error("".join(traceback.format_exception(error)).rstrip())
    return status
