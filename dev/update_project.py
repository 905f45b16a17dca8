"""Merge later changes of the template into a project made from it, for ``python new_project.py --update``."""

import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from dev import project_files
from dev.project_files import LEFT_OUT, MINIMAL, ORIGIN, YOURS


@dataclass
class Update:
    """What an update does, by file."""

    writes: dict[str, bytes] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    """With conflict marks, or (binary files) with the template's version next to it."""
    kept: list[str] = field(default_factory=list)
    """Changed in the template, but left unchanged in the project."""


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
    found = plan(project, before, after, YOURS)
    write(project, found)
    replace(project / ORIGIN, project_files.origin_text(head, minimal=minimal))
    return report(project, found, minimal=minimal)


def template_at(commit: str, *, minimal: bool) -> dict[str, bytes]:
    """The files of a project made at a commit, by name."""
    left_out = LEFT_OUT + (MINIMAL if minimal else ())
    archive = subprocess.run(["git", "archive", commit], cwd=project_files.ROOT, capture_output=True, check=True).stdout
    found = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        for member in files:
            content = files.extractfile(member) if member.isfile() else None
            if content and not any(PurePosixPath(member.name).is_relative_to(folder) for folder in left_out):
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
        raise ValueError(f"{project} has changes that are not committed; commit them first (git status lists them)")
    return commit, bool(minimal)


def plan(project: Path, before: dict[str, bytes], after: dict[str, bytes], yours: Sequence[str]) -> Update:
    """What to do with each file that differs between two versions of the template, given as contents by name.

    yours: files and folders to leave alone.
    """
    found = Update()
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) == after.get(name):
            continue
        if any(PurePosixPath(name).is_relative_to(folder) for folder in yours):
            found.kept.append(f"{name} (yours)")
        else:
            _plan_file(found, project, name, before.get(name), after.get(name))
    return found


def _plan_file(found: Update, project: Path, name: str, before: bytes | None, after: bytes | None) -> None:
    """Decide what to do with a file that the template has changed. None: it does not exist."""
    path = project / name
    if path.is_symlink() or path.is_dir():
        found.kept.append(f"{name} (not a file here)")
        return
    current = path.read_bytes() if path.exists() else None
    if current == after:
        return
    if current == before:
        if after is None:
            found.deleted.append(name)
        else:
            found.writes[name] = after
    elif current is None:
        found.kept.append(f"{name} (deleted here, changed in the template)")
    elif after is None:
        found.kept.append(f"{name} (changed here, deleted in the template)")
    else:
        merged, clean = merge(current, before or b"", after)
        if merged is None:
            name = f"{name}.template"
            if (project / name).exists():
                raise ValueError(f"{project / name} is in the way: the template's version of a binary file")
            merged = after
        found.writes[name] = merged
        if not clean:
            found.conflicts.append(name)


def merge(current: bytes, before: bytes, after: bytes) -> tuple[bytes | None, bool]:
    """Merge three versions of a file with git; also whether there are no conflicts. None: binary files."""
    with TemporaryDirectory() as folder:
        names = ("project", "template_before", "template")
        for name, content in zip(names, (current, before, after), strict=True):
            (Path(folder) / name).write_bytes(content)
        done = subprocess.run(["git", "merge-file", "-p", *names], cwd=folder, capture_output=True)
    if done.returncode < 0 or done.returncode > 127:  # 255: an error; up to 127: the number of conflicts
        return None, False
    return done.stdout, done.returncode == 0


def write(project: Path, found: Update) -> None:
    for name, content in found.writes.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        replace(project / name, content)
    for name in found.deleted:
        (project / name).unlink()


def replace(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_bytes(content)
    if path.exists():
        shutil.copymode(path, unfinished)
    unfinished.replace(path)


def report(project: Path, found: Update, *, minimal: bool) -> int:
    """Print what an update did, and return the exit status: 1 if there are conflicts."""
    written = [name for name in found.writes if name not in found.conflicts]
    for what, names in (("updated", written), ("deleted", found.deleted), ("left unchanged", found.kept)):
        for name in names:
            print(f"{what:14} {name}")
    for name in found.conflicts:
        print(f"{'CONFLICT':14} {name}")
    if not (found.writes or found.deleted):
        print(f"{project} is up to date")
        return 0
    resolve, schema = "resolve the conflicts, " * bool(found.conflicts), "" if minimal else "make schema, "
    print(f"Next, in {project}: {resolve}{schema}make test, git commit")
    print("To undo it before that: git reset --hard && git clean -d --force")
    return 1 if found.conflicts else 0
