"""Write the files of a recipe into the project, and show the commands that run it. Without a name: list the recipes.

python recipe.py gan
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from utils import cli
from utils.errors import UserError, os_errors_as
from utils.paths import PROJECT
from utils.text import hint, table

PAGES = PROJECT / "docs" / "recipes"
FILE = re.compile(r"^```\w+\n# (\S+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^    ((?:python|pip|tensorboard) .*)$", re.MULTILINE)


def names() -> list[str]:
    return sorted(path.stem for path in PAGES.glob("[!R]*.md"))


def page(name: str) -> str:
    """The text of a recipe. Raises UserError for an unknown name."""
    if name not in names():
        raise UserError(f'unknown recipe "{name}"; {hint(name, names())}\nTo list them: python recipe.py')
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


def files(name: str) -> dict[str, str]:
    """The text of each file of a recipe, by its path in a project."""
    return dict(FILE.findall(page(name)))


def commands(name: str) -> list[str]:
    """The commands of a recipe's page, in order."""
    return COMMAND.findall(page(name))


def write(name: str, project: Path = PROJECT) -> list[str]:
    """Write the files of a recipe into a project, but for those that are there already. Returns a line for each.

    Raises UserError, before anything is written, if one is there and differs.
    """
    contents = {path: text.encode() for path, text in files(name).items()}
    with os_errors_as(UserError, f"{project}: the recipe cannot be written"):
        taken = [path for path in contents if (project / path).exists()]
        if differing := [path for path in taken if (project / path).read_bytes() != contents[path]]:
            raise UserError(f"nothing was written, since {', '.join(differing)} is there and differs; rename it first")
        for path, content in contents.items():
            (project / path).parent.mkdir(exist_ok=True)
            (project / path).write_bytes(content)
    return [f"{'unchanged' if path in taken else 'wrote'} {path}" for path in contents]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line as a function. Raises UserError instead of exiting."""
    about, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=about, epilog=f"example: {examples}", allow_abbrev=False)
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the recipe, such as gan")
    name = parser.parse_args(argv).name
    if name:
        print(*write(name), f"Next, as docs/recipes/{name}.md explains:", sep="\n")
        print(*(f"  {command}" for command in commands(name)), sep="\n")
        print("For an editor that completes the new names, and for make test: python -m extras.schema (make schema)")
    else:
        print(*table([name, page(name).partition("\n")[0].removeprefix("# ")] for name in names()), sep="\n")


if __name__ == "__main__":
    sys.exit(cli.run(main))
