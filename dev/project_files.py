"""The files of a project made from the template: which it gets, and what is different in them."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path, PurePath

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = (
    "saved", "data", "new_project.py", ".ci",
    # for those who learn from the template or work on it
    "dev", "tests", "docs/tutorial.md", "docs/tutorial.ko.md", "docs/migrating.md", "README.ko.md",
    "docs/performance.md", "CHANGELOG.md", "CONTRIBUTING.md", ".github/ISSUE_TEMPLATE",
)  # fmt: skip
MINIMAL = (
    "extras", "predict.py", "export.py", "sweep.py", "recipe.py",
    "docs/predict.md", "docs/export.md", "docs/sweep.md", "docs/recipes",
    "--check", "--list",  # options that the README explains
)  # fmt: skip
# files that belong to the project even if git does not list them, besides its packages
FILES = [
    "*.py", "*.json", "*.md", "*.toml", "requirements*.txt", ".gitignore", ".gitattributes", ".editorconfig", "LICENSE",
    "Makefile",
]  # fmt: skip
FOLDERS = [".ci", ".github", ".vscode", "configs", "docs"]
# what an update leaves alone; config.schema.json has the user's components, and `make schema` writes it. The template's
# own models, data loaders and trainers are merged: the new base/ may lack what their old versions import
YOURS = ("configs", "config.json", "config.schema.json", "README.md", "saved", "data")
TESTS = "tests/project"
"""The tests of a project, there in tests/: of whatever components and configs it has. The others are the template's."""
ORIGIN = ".template.json"
"""In a project: the template's commit from which it was made."""
UNTYPED = """
# your own code may be without types: take this out to have it checked, too
[[tool.mypy.overrides]]
module = ["model.*", "data_loader.*", "trainer.*"]
ignore_errors = true
"""
README = """\
# {name}

What this project is about: the question, the data, the results so far. (Write this paragraph yourself.)

```
make train        # sets up .venv, then trains the experiment in config.json
make test         # trains every config for a few steps, and checks that it resumes exactly
```

[TEMPLATE.md](TEMPLATE.md) explains the commands, the config, and how to add a model, data or a loss.
`python new_project.py --update PATH`, run in the template's folder, merges its later changes into this project.
"""


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
        name, content = as_in_a_project(file.as_posix(), (ROOT / file).read_bytes(), left_out)
        (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
        (unfinished / name).write_bytes(content)
        shutil.copymode(ROOT / file, unfinished / name)
    (unfinished / "README.md").write_text(README.format(name=target.resolve().name), encoding="utf-8")
    (unfinished / ORIGIN).write_bytes(origin_text(commit_of_template(), minimal=minimal))
    (unfinished / "saved").mkdir()
    (unfinished / "saved" / ".gitkeep").touch()
    unfinished.rename(target)


def as_in_a_project(name: str, content: bytes, left_out: Sequence[str]) -> tuple[str, bytes]:
    """The name and content of a template file in a project. The README becomes TEMPLATE.md; its tests move up.

    left_out: without "tests" for an early project, which had the template's tests, CI and pyproject.toml.
    """
    if name == "Makefile":
        return name, without_targets(content.decode(), left_out).encode()
    if name.startswith(".github/workflows/") and "tests" in left_out:
        content = content.partition(b"      - run: make test-minimal\n")[0]  # that, and other systems
    if name == "requirements-dev.txt":
        content = content.partition(b"# only for the template's own tests")[0]
    if name == "pyproject.toml" and "tests" in left_out:
        content = content.replace(b'    "error",\n', b"") + UNTYPED.encode()  # libraries may warn of what is deprecated
    if name in ("README.md", "docs/architecture.md"):
        content = without_mentions(content.decode(), left_out).encode()
    return "TEMPLATE.md" if name == "README.md" else name.replace(f"{TESTS}/", "tests/"), content


def is_left_out(path: PurePath, left_out: Sequence[str]) -> bool:
    """Whether a project does not get a file of the template."""
    return any(map(path.is_relative_to, left_out)) and not path.is_relative_to(TESTS)


def commit_of_template() -> str | None:
    """None without git, or if the template is not in a repository."""
    if Path("train.py") not in _listed_by_git("--cached"):
        return None
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def origin_text(commit: str | None, *, minimal: bool) -> bytes:
    return (json.dumps({"commit": commit, "minimal": minimal}, indent=2) + "\n").encode()


def without_mentions(readme: str, left_out: Sequence[str]) -> str:
    """The README without the sentences, table rows, list items and commands about dev/, extras/ and this script."""
    names = "|".join(re.escape(name) for name in left_out if name not in ("saved", "data", "tests"))
    mention = re.compile(rf"(?<![\w/])({names})(?![\w.])")
    paragraphs = []
    for paragraph in readme.split("\n\n"):
        if mention.search(paragraph):
            by_line = re.match(r"\s*(```|\||- |#|    )", paragraph)
            parts = paragraph.splitlines(keepends=True) if by_line else re.split(r"(?<=\.)(?=\s+[A-Z`*\[])", paragraph)
            paragraph = "".join(part for part in parts if not mention.search(part)).strip("\n ")
        if paragraph:
            paragraphs.append(paragraph)
    text = "\n\n".join(paragraphs) + "\n\n"
    text = re.sub(r"(?m)^```\w*\n```\n\n(?!#).+(\n.+)*\n\n", "", text)  # no command is left, nor what explains it
    text = re.sub(r"(?m)^## .*\n\n(?=## |\Z)", "", text)
    headings = [
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"(?m)^#+ (.+)", text)
    ]
    text = re.sub(r"\[[^]]+\]\(#([\w-]+)\)( ·\s)?", lambda link: link[0] if link[1] in headings else "", text)
    return text.strip("\n") + "\n" * readme.endswith("\n")


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
    """The project's files, relative to its folder: those tracked by git, and new ones in the same folders."""
    found = _listed_by_git("--cached")
    if Path("train.py") in found:
        folders = {path.parts[0] for path in found if len(path.parts) > 1}
        found += [path for path in _listed_by_git("--others", "--exclude-standard") if path.parts[0] in folders]
    else:
        packages = [path.parent.name for path in ROOT.glob("*/__init__.py")]
        inside = [f"{folder}/**/*" for folder in (*packages, *FOLDERS)]
        found = [path.relative_to(ROOT) for pattern in (*FILES, *inside) for path in ROOT.glob(pattern)]
        found = [path for path in found if "__pycache__" not in path.parts]
    return [path for path in found if not is_left_out(path, left_out) and (ROOT / path).is_file()]


def _listed_by_git(*which: str) -> list[Path]:
    """Empty without git or a repository."""
    try:
        done = subprocess.run(["git", "ls-files", "-z", *which], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [Path(name) for name in done.stdout.split("\0") if name]
