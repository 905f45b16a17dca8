"""Start your own project: a copy of the template without its runs, data and history, and without dev/ and this script.

python new_project.py ../my_project
python new_project.py ../my_project --minimal    # without extras/ too
python new_project.py ../my_gan --recipe gan     # with the files of docs/recipes/gan.md
python new_project.py --update ../my_project     # merges later changes of the template into it
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import recipe
from dev.project_files import create
from dev.update_project import update
from utils.errors import UserError


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
    parser.add_argument("--recipe", metavar="RECIPE", help="with the files of a recipe of docs/recipes, such as gan")
    options = parser.parse_args(argv)
    target: Path = options.name
    try:
        if options.update and options.minimal:
            raise ValueError("--update cannot be combined with --minimal; a minimal project stays minimal")
        if options.recipe and (options.update or options.minimal):
            raise ValueError("--recipe cannot be combined with --update or --minimal")
        if options.update:
            return update(target)
        schema = ["make schema"] if options.recipe else []
        commands = [". .venv/bin/activate", *recipe.commands(options.recipe)] if options.recipe else []
        create(target, minimal=options.minimal)
        if options.recipe:
            recipe.write(options.recipe, target)
    except (OSError, ValueError, UserError, subprocess.SubprocessError) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
        print(f"error: {reason}", file=sys.stderr)
        return 2
    commit = 'git init && git add . && git commit -m "Start from the template"'
    print(f"{target} is ready. Next:", f"cd {target}", *schema, commit, "make train", *commands, sep="\n  ")
    print("Write your own README.md. To merge later changes of the template, run in the template's folder:")
    print(f"  python new_project.py --update {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
