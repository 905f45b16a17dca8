"""Merge later changes of the template into a project made from it, for ``python new_project.py --update``."""

import io
import json
import re
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from dev import project_files
from dev.project_files import LEFT_OUT, MINIMAL, ORIGIN, TESTS, YOURS, is_left_out


def update(project: Path) -> int:
    """Merge what has changed in the template since the project was made or last updated; returns the exit status.

    Raises ValueError, before anything is changed, if that is not possible.
    """
    if not project.is_dir():
        raise ValueError(f"{project}: no such folder")
    commit, minimal = origin(project / ORIGIN)
    template, head = project_files.ROOT, project_files.commit_of_template()
    if head is None:
        raise ValueError(f"{template} is not a git repository, so its changes are unknown")
    if subprocess.run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], cwd=template, capture_output=True).returncode:
        raise ValueError(f"{project / ORIGIN}: {template} has no commit {commit}; try git fetch there (--unshallow)")
    before, after = template_at(commit, minimal=minimal), template_at(head, minimal=minimal)
    changed = [
        name
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name) and (name in after or (project / name).exists())
    ]
    tracked = git(project, "ls-files", "-z").stdout.decode().split("\0")
    there = [name for name in changed if name in before or (project / name).exists()]
    # what the user has deleted stays deleted, and what git does not know stays as it is
    kept = [name for name in changed if is_yours(name) or (name in there and name not in tracked)]
    versions = [{name: files.get(name) for name in changed if name not in kept} for files in (before, after)]
    conflicts = merge(project, versions)
    (project / ORIGIN).write_bytes(project_files.origin_text(head, minimal=minimal))
    return report(project, kept, conflicts, minimal=minimal)


def is_yours(name: str) -> bool:
    """Whether an update leaves a file alone, whatever the template does."""
    return any(PurePosixPath(name).is_relative_to(folder) for folder in YOURS)


def template_at(commit: str, *, minimal: bool) -> dict[str, bytes]:
    """The files of a project made at a commit, by name."""
    left_out = LEFT_OUT + (MINIMAL if minimal else ())
    archive = subprocess.run(["git", "archive", commit], cwd=project_files.ROOT, capture_output=True, check=True).stdout
    found = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        if TESTS not in files.getnames():  # projects made then have these, too
            left_out = tuple(name for name in left_out if name not in ("tests", "docs/performance.md"))
        for member in files:
            content = files.extractfile(member) if member.isfile() else None
            if content and not is_left_out(PurePosixPath(member.name), left_out):
                name, text = project_files.as_in_a_project(member.name, content.read(), left_out)
                found[name] = text
    return found


def origin(path: Path) -> tuple[str, bool]:
    """The commit that a project was made from, and whether it is minimal. path: of the file in it that says so.

    Raises ValueError, also if git could not undo an update.
    """
    project = path.parent
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        commit, minimal = value["commit"], value["minimal"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is missing or damaged, so the commit that {project} was made from is unknown; if you know it, "
            'write {"commit": "...", "minimal": false} into this file'
        ) from error
    if not isinstance(commit, str) or not re.fullmatch("[0-9a-f]{7,64}", commit):
        raise ValueError(f'{path}: "commit" is not a commit; write the one that {project} was made from')
    status = subprocess.run(["git", "status", "--porcelain", "--", "."], cwd=project, capture_output=True, text=True)
    if status.returncode:
        raise ValueError(f"{project} is not in git, which could undo an update: git init, git add, git commit first")
    if status.stdout:
        raise ValueError(
            f"{project} has changes that are not committed; commit them first (git status lists them). If they are "
            "of an update that was interrupted, undo it: git reset --hard"
        )
    return commit, bool(minimal)


def merge(project: Path, versions: Sequence[Mapping[str, bytes | None]]) -> list[str]:
    """Merge the change between two versions of some files into the project, by git, and return those with conflicts.

    versions: before and after; None for a missing file.
    """
    prefix = git(project, "rev-parse", "--show-prefix").stdout.decode().strip()
    stream = []
    for files in versions:
        stream.append(b"commit refs/template\ncommitter template <> 0 +0000\ndata 8\ntemplate")
        for name, content in files.items():
            if content is None:
                stream.append(f'D "{prefix}{name}"'.encode())
            else:
                stream.append(f'M 644 inline "{prefix}{name}"\ndata {len(content)}'.encode() + b"\n" + content)
    git(project, "fast-import", "--quiet", "--force", content=b"\n".join([*stream, b""]))
    done = git(project, "cherry-pick", "--no-commit", "-X", "no-renames", "refs/template", check=False)
    git(project, "update-ref", "-d", "refs/template")
    conflicts = git(project, "diff", "--name-only", "--diff-filter=U").stdout.decode().splitlines()
    if done.returncode and not conflicts:
        raise ValueError(f"git cannot merge: {done.stderr.decode().strip()}")
    return conflicts


def git(project: Path, *words: str, content: bytes = b"", check: bool = True) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", *words], cwd=project, input=content, capture_output=True, check=check)


def report(project: Path, kept: Sequence[str], conflicts: Sequence[str], *, minimal: bool) -> int:
    """Print what an update did, and return the exit status: 1 if there are conflicts."""
    changed = git(project, "status", "--short", "--", ".").stdout.decode()
    print(changed, end="")
    for name in kept:
        print(f"left unchanged {name}")
    if not changed:
        print(f"{project} is up to date")
        return 0
    resolve, schema = "resolve the conflicts, " * bool(conflicts), "" if minimal else "make schema, "
    print(f"Next, in {project}: {resolve}{schema}make test, git add, git commit")
    print("To undo it before that: git reset --hard")
    return 1 if conflicts else 0
