"""What train.py and test.py share on the command line: overrides, and errors as exit statuses."""

import argparse
import os
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from utils.config import OVERRIDE
from utils.distributed import current
from utils.errors import Stopped, TrainingError, UserError

# options that stand for a key of the config
SHORTS = {"device": "runtime.device", "lr": "optimizer.args.lr", "bs": "data_loader.args.batch_size"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: --"):
            message += "; any key of the config is given without --, as in trainer.epochs=5"
        if current().launched:  # so that one of the processes says it
            raise UserError(f"{message}\n{self.format_usage().rstrip()}")
        super().error(message)


def parser(about: str) -> argparse.ArgumentParser:
    """A parser with the arguments of both commands. about: what a script does; its examples, which end the help."""
    description, _, examples = about.strip().partition("\n\n")
    made = _Parser(
        description=description,
        epilog=f"examples:\n{textwrap.indent(examples, '  ')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("-d", "--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, mps ... (runtime.device)")
    made.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="any key of the config, as in trainer.epochs=5")
    return made


def parse(made: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, in any order, with all overrides; a KEY=VALUE that argparse took for the value of -r is one."""
    options = made.parse_intermixed_args(argv)
    if isinstance(options.resume, str) and OVERRIDE.match(options.resume) and not Path(options.resume).exists():
        options.overrides.insert(0, options.resume)
        options.resume = ""
    for word in options.overrides:
        if not OVERRIDE.match(word) and (path := Path(word)).exists():
            option = "-c" if path.suffix == ".json" and "config" in options else "-r"
            raise UserError(f"{word} is no KEY=VALUE; did you mean {option} {word}?")
    for short, key in SHORTS.items():
        if (value := getattr(options, short, None)) is not None:
            options.overrides.append(f"{key}={value}")
    return options


def run(command: Callable[[Sequence[str] | None], Any], argv: Sequence[str] | None = None) -> int:
    """Run a command and give its exit status: 0, 2 for the user's mistakes, 128 + signal, 1 for anything else.

    Of several processes that fail, one after the other, only the first says why.
    """
    status = _status(command, argv)  # only now it is known who else there is
    return current().exit(status)


def _status(command: Callable[[Sequence[str] | None], Any], argv: Sequence[str] | None) -> int:
    try:
        command(argv)
        current().finish()
    except (UserError, TrainingError) as error:
        return _fail(error, 2 if isinstance(error, UserError) else 1)
    except Stopped as stopped:
        return 128 + stopped.signal
    except BrokenPipeError:  # whoever read the output, as in `| head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("stopped at once; what was saved before is whole", file=sys.stderr)
        return 130
    except Exception as error:
        if not current().launched:
            raise
        return _fail(error, 1)
    return 0


def _fail(error: Exception, status: int) -> int:
    """Say what went wrong, unless another process was the first to fail; give the status of the first."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher ends all at once when the first one has ended
    lost = current().peer_failure(error)
    first, status = current().claim_failure(1 if lost else status)
    if first and (lost or isinstance(error, (UserError, TrainingError))):
        print(f"error: {lost or error}", file=sys.stderr)
    elif first:
        traceback.print_exception(error)
    return status
