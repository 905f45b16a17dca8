"""Run a command with the emulated accelerator: python -m dev.accelerator COMMAND..."""

import os
import sys

from dev.accelerator import BuildError, build


def main(command: list[str]) -> None:
    if not command:
        sys.exit(f"usage: {(__doc__ or '').partition(': ')[2]}")
    try:
        folder = build()
    except BuildError as error:
        sys.exit(f"dev.accelerator: {error}")
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
