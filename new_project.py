"""Begin a project of your own: a folder with everything but the runs, the data, the git history and this script.

python new_project.py ../my_project
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
LEFT_OUT = {"saved", "data", "new_project.py"}
# what belongs to the project where git does not say so, beside its packages
FILES = ["*.py", "*.json", "*.md", "*.toml", "requirements*.txt", ".gitignore", "LICENSE", "Makefile"]
FOLDERS = [".ci", ".github", "configs", "docs"]


def create(target: Path) -> None:
    """Copy the project. Raises FileExistsError if the target is there, ValueError if it lies in this project."""
    if target.resolve().is_relative_to(ROOT) and target.resolve() != ROOT / target.name:
        raise ValueError(f"{target} lies within a folder of this project")
    if os.path.lexists(target):
        raise FileExistsError(f"{target} is there already; nothing was changed")
    unfinished = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for file in files():
        (unfinished / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, unfinished / file, follow_symlinks=False)
    readme = unfinished / "README.md"
    told = readme.read_text(encoding="utf-8").split("\n\n")
    readme.write_text("\n\n".join(part for part in told if "new_project.py" not in part), encoding="utf-8")
    (unfinished / "saved").mkdir()
    (unfinished / "saved" / ".gitkeep").touch()
    unfinished.rename(target)


def files() -> list[Path]:
    """What belongs to the project, relative to its folder: what git tracks, and what is new in a folder of these."""
    found = _listed_by_git("--cached")
    if Path("train.py") in found:
        folders = {path.parts[0] for path in found if len(path.parts) > 1}
        found += [path for path in _listed_by_git("--others", "--exclude-standard") if path.parts[0] in folders]
    else:
        packages = [path.parent.name for path in ROOT.glob("*/__init__.py")]
        inside = [f"{folder}/**/*" for folder in (*packages, *FOLDERS)]
        found = [path.relative_to(ROOT) for pattern in (*FILES, *inside) for path in ROOT.glob(pattern)]
        found = [path for path in found if "__pycache__" not in path.parts]
    return [path for path in found if path.parts[0] not in LEFT_OUT and (ROOT / path).is_file()]


def _listed_by_git(*which: str) -> list[Path]:
    """Empty where there is no git, or no repository."""
    try:
        done = subprocess.run(["git", "ls-files", "-z", *which], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [Path(name) for name in done.stdout.split("\0") if name]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Begin a project of your own: a copy of this one without its runs, data and history.",
        epilog="example: python new_project.py ../my_project",
        allow_abbrev=False,
    )
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
