"""Start your own project: a copy of the template without its runs, data and history, and without dev/ and this script.

python new_project.py ../my_project
python new_project.py ../my_project --minimal    # without extras/ too
python new_project.py --update ../my_project     # merges later changes of the template into it
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dev.project_files import create
from dev.update_project import update


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Start your own project: a copy of the template without its runs, data, history and dev/.",
        epilog="example: python new_project.py ../my_project",
        allow_abbrev=False,
    )
    parser.add_argument("name", type=Path, metavar="NAME", help="the new folder")
    parser.add_argument(
        "--minimal", action="store_true", help="without extras/ and what needs it, such as predict.py and --check"
    )
    parser.add_argument(
        "--update", action="store_true", help="merge later changes of the template into the project NAME"
    )
    options = parser.parse_args(argv)
    target: Path = options.name
    try:
        if options.update and options.minimal:
            raise ValueError("--update cannot be combined with --minimal; a minimal project stays minimal")
        if options.update:
            return update(target)
        create(target, minimal=options.minimal)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
        print(f"error: {reason}", file=sys.stderr)
        return 2
    print(
        f'{target} is ready. Next:\n  cd {target}\n  git init && git add . && git commit -m "Start from the template"'
    )
    print(
        "  make train\nWrite your own README.md. To merge later changes of the template, run in the template's folder:"
    )
    print(f"  python new_project.py --update {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
