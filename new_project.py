"""Begin a project of your own: a folder with everything but the runs, the data, the git history and this script.

python new_project.py ../my_project
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
CACHES = shutil.ignore_patterns("__pycache__", "*.pyc", ".*_cache", ".hypothesis", ".ready")
LEFT_OUT = {".git", ".venv", "saved", "data", "new_project.py"}


def create(target: Path) -> None:
    """Copy the project. Raises FileExistsError if the target is there, ValueError if it lies in this project."""
    if target.resolve().is_relative_to(ROOT) and target.resolve() != ROOT / target.name:
        raise ValueError(f"{target} lies within a folder of this project")
    if os.path.lexists(target):
        raise FileExistsError(f"{target} is there already; nothing was changed")
    unfinished = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for item in sorted(ROOT.iterdir()):
        if item.name in LEFT_OUT or item.name in CACHES(str(ROOT), [item.name]) or item.name == unfinished.name:
            continue
        if item.is_dir():
            shutil.copytree(item, unfinished / item.name, ignore=CACHES)
        else:
            shutil.copy2(item, unfinished / item.name)
    readme = unfinished / "README.md"
    told = readme.read_text(encoding="utf-8").split("\n\n")
    readme.write_text("\n\n".join(part for part in told if "new_project.py" not in part), encoding="utf-8")
    (unfinished / "saved").mkdir()
    (unfinished / "saved" / ".gitkeep").touch()
    unfinished.rename(target)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Begin a project of your own.", allow_abbrev=False)
    parser.add_argument("name", type=Path, metavar="NAME", help="the new folder")
    target: Path = parser.parse_args(argv).name
    try:
        create(target)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{target} is ready. Go on with:\n  cd {target}\n  make train")
    return 0


if __name__ == "__main__":
    sys.exit(main())
