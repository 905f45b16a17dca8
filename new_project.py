"""Start your own project: a copy of this one without its runs, data and history, and without dev/ and this script.

python new_project.py ../my_project
python new_project.py ../my_project --minimal    # without extras/ too
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
# the last two are for those who work on the template
LEFT_OUT = ("saved", "data", "new_project.py", "dev", "tests/dev")
MINIMAL = ("extras", "export.py", "docs/export.md", "tests/extras", "docs/recipes", "tests/docs")
# what belongs to the project where git does not say so, beside its packages
FILES = ["*.py", "*.json", "*.md", "*.toml", "requirements*.txt", ".gitignore", "LICENSE", "Makefile"]
FOLDERS = [".ci", ".github", "configs", "docs"]


def create(target: Path, *, minimal: bool = False) -> None:
    """Copy the project. minimal: without extras/.

    Raises FileExistsError if the target exists, ValueError if it is inside this project.
    """
    if target.resolve().is_relative_to(ROOT) and target.resolve() != ROOT / target.name:
        raise ValueError(f"{target} is inside a folder of this project")
    if os.path.lexists(target):
        raise FileExistsError(f"{target} already exists; nothing was changed")
    unfinished = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    left_out = LEFT_OUT + (MINIMAL if minimal else ())
    for file in files(left_out):
        (unfinished / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, unfinished / file, follow_symlinks=False)
    for name, strip in (("README.md", without_mentions), ("Makefile", without_targets)):
        if (path := unfinished / name).is_file():
            path.write_text(strip(path.read_text(encoding="utf-8"), left_out), encoding="utf-8")
    (unfinished / "saved").mkdir()
    (unfinished / "saved" / ".gitkeep").touch()
    unfinished.rename(target)


def without_mentions(readme: str, left_out: Sequence[str]) -> str:
    """The README without the sentences, table rows, list items and commands about dev/, extras/ and this script."""
    names = "|".join(re.escape(name) for name in left_out if name not in ("saved", "data"))
    mention = re.compile(rf"(?<![\w/])({names})(?![\w.])")
    paragraphs = []
    for paragraph in readme.split("\n\n"):
        if mention.search(paragraph):
            by_line = re.match(r"\s*(```|\||- |#|    )", paragraph)
            parts = paragraph.splitlines(keepends=True) if by_line else re.split(r"(?<=\.)(?=\s+[A-Z`*\[])", paragraph)
            paragraph = "".join(part for part in parts if not mention.search(part)).strip("\n ")
        if paragraph:
            paragraphs.append(paragraph)
    return "\n\n".join(paragraphs)


def without_targets(makefile: str, left_out: Sequence[str]) -> str:
    """The Makefile without the targets that run a module of these folders, or read a file in one."""
    module = re.compile(rf"-[mc] ({'|'.join(map(re.escape, left_out))})[./]")
    paragraphs = makefile.split("\n\n")
    gone = [paragraph for paragraph in paragraphs if module.search(paragraph)]
    text = "\n\n".join(paragraph for paragraph in paragraphs if paragraph not in gone)
    for target in re.findall(r"^([\w-]+):", "\n".join(gone), flags=re.MULTILINE):
        text = re.sub(rf"(?m)^(\.PHONY:.*?) {target}\b", r"\1", text)
        text = text.replace(f", make {target}:", ":").replace(f" make {target},", "")  # in the list at its top
    return text


def files(left_out: Sequence[str] = LEFT_OUT) -> list[Path]:
    """The project's files, relative to its folder: those that git tracks, and new ones in the folders of these."""
    found = _listed_by_git("--cached")
    if Path("train.py") in found:
        folders = {path.parts[0] for path in found if len(path.parts) > 1}
        found += [path for path in _listed_by_git("--others", "--exclude-standard") if path.parts[0] in folders]
    else:
        packages = [path.parent.name for path in ROOT.glob("*/__init__.py")]
        inside = [f"{folder}/**/*" for folder in (*packages, *FOLDERS)]
        found = [path.relative_to(ROOT) for pattern in (*FILES, *inside) for path in ROOT.glob(pattern)]
        found = [path for path in found if "__pycache__" not in path.parts]
    return [path for path in found if not any(map(path.is_relative_to, left_out)) and (ROOT / path).is_file()]


def _listed_by_git(*which: str) -> list[Path]:
    """Empty where there is no git, or no repository."""
    try:
        done = subprocess.run(["git", "ls-files", "-z", *which], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [Path(name) for name in done.stdout.split("\0") if name]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Start your own project: a copy of this one without its runs, data, history and dev/.",
        epilog="example: python new_project.py ../my_project",
        allow_abbrev=False,
    )
    parser.add_argument("name", type=Path, metavar="NAME", help="the new folder")
    parser.add_argument(
        "--minimal", action="store_true", help="without extras/: --check, --list, --compare, test reports, pictures"
    )
    options = parser.parse_args(argv)
    target: Path = options.name
    try:
        create(target, minimal=options.minimal)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{target} is ready. Next:\n  cd {target}\n  make train")
    return 0


if __name__ == "__main__":
    sys.exit(main())
