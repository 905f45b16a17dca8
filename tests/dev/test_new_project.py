"""A project made from the template: its README is its own, and later changes of the template are merged into it."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dev import project_files, update_project
from tests.conftest import load_script
from tests.helpers import ROOT

LINES = "".join(f"line {number}\n" for number in range(20))
TEMPLATE = {
    "train.py": LINES,
    "README.md": "# Template\n\nAbout `dev/`.\n\nAbout it.\n",
    "Makefile": "train:\n\tpython train.py\n\nbench:\n\tpython -m dev.bench\n",
    "base/loop.py": LINES,
    "base/old.py": "old\n",
    "base/old_too.py": "old\n",
    "model/net.py": LINES,
    "data_loader/data.py": LINES,
    "configs/first.json": "{}\n",
    "config.json": "{}\n",
    "docs/picture.png": "\0one",
    "extras/report.py": "report\n",
    "dev/bench.py": "bench\n",
    "docs/tutorial.md": "walk\n",
    "tests/test_loop.py": "the template's\n",
    "tests/project/test_project.py": "the project's\n",
    "new_project.py": "",
}


def git(folder: Path, *words: str) -> str:
    own = ["-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *own, *words], cwd=folder, capture_output=True, text=True, check=True).stdout


def commit(folder: Path, **files: str | None) -> None:
    """Write or (None) delete some files, by name, and commit everything."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
    if not (folder / ".git").exists():
        git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "Change")


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """new_project.py in a small template."""
    module = load_script("new_project")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    commit(tmp_path / "template", **TEMPLATE)
    monkeypatch.setattr(project_files, "ROOT", tmp_path / "template")
    return module


Make = Callable[..., Path]


@pytest.fixture
def make(script: ModuleType, tmp_path: Path) -> Make:
    """Makes a project, which is committed after some changes of its user's."""

    def made(*options: str, **files: str | None) -> Path:
        project = tmp_path / "my project"
        assert script.main([str(project), *options]) == 0
        commit(project, **files)
        return project

    return made


def contents(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts]
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


def with_line(number: int, text: str) -> str:
    return LINES.replace(f"line {number}\n", f"{text}\n")


def test_the_readme_is_the_users_own(make: Make) -> None:
    project = make()
    readme = (project / "README.md").read_text()
    assert readme.startswith("# my project\n")
    assert [line.split("  ")[0] for line in readme.splitlines() if line.startswith("make")] == [
        "make train",
        "make test",
    ]
    assert (project / "TEMPLATE.md").read_text() == "# Template\n\nAbout it.\n"
    assert all((project / name).exists() for name in re.findall(r"\]\((.*?)\)", readme))
    assert {"docs/tutorial.md", "dev/bench.py", "new_project.py", "tests/test_loop.py"}.isdisjoint(contents(project))
    assert contents(project)["tests/test_project.py"] == "the project's\n"


def test_the_projects_commit_is_kept(make: Make, tmp_path: Path) -> None:
    origin = json.loads((make("--minimal") / ".template.json").read_text())
    assert origin == {"commit": git(tmp_path / "template", "rev-parse", "HEAD").strip(), "minimal": True}


def test_an_update_merges_what_both_have_changed(make: Make, script: ModuleType, tmp_path: Path) -> None:
    own = {
        "train.py": with_line(2, "mine"),
        "model/net.py": with_line(2, "mine"),
        "model/mine.py": "mine\n",
        "configs/first.json": '{"mine": 1}\n',
        "README.md": "my readme\n",
        "base/mine.py": "mine\n",
    }
    project = make(**own)
    commit(
        tmp_path / "template",
        **{
            "train.py": with_line(17, "new"),
            "base/loop.py": with_line(3, "new"),
            "base/new.py": "new\n",
            "base/old.py": None,
            "model/net.py": with_line(17, "new"),
            "model/new_net.py": "new\n",
            "data_loader/data.py": with_line(3, "new"),
            "configs/first.json": '{"new": 1}\n',
            "README.md": "# Template\n\nAbout `dev/`.\n\nNew words.\n",
            "Makefile": "train:\n\tpython train.py --new\n\nbench:\n\tpython -m dev.bench\n",
            "config.json": '{"new": 1}\n',
            "dev/bench.py": "new\n",
        },
    )
    before = contents(project)
    assert script.main(["--update", str(project)]) == 0
    after = contents(project)
    assert after["train.py"] == after["model/net.py"] == with_line(2, "mine").replace("line 17\n", "new\n")
    assert after["data_loader/data.py"] == with_line(3, "new"), "its old version may not fit the new base/"
    assert after["model/new_net.py"] == "new\n"
    assert after["base/loop.py"] == with_line(3, "new")
    assert after["base/new.py"] == "new\n"
    assert "base/old.py" not in after
    assert after["TEMPLATE.md"] == "# Template\n\nNew words.\n"
    assert after["Makefile"].rstrip() == "train:\n\tpython train.py --new"
    changed = {"train.py", "base/loop.py", "base/new.py", "base/old.py", "TEMPLATE.md", "Makefile", ".template.json"}
    changed |= {"model/net.py", "model/new_net.py", "data_loader/data.py"}
    assert {name for name in before | after if before.get(name) != after.get(name)} == changed
    commit(project)
    assert script.main(["--update", str(project)]) == 0
    assert contents(project) == after


def test_an_update_replaces_the_templates_tests_of_an_earlier_project(
    make: Make, script: ModuleType, tmp_path: Path
) -> None:
    commit(tmp_path / "template", **{"tests/project/test_project.py": None})
    project = make(**{"tests/test_loop.py": "the template's\n", "tests/test_mine.py": "mine\n"})
    commit(tmp_path / "template", **{"tests/project/test_project.py": "the project's\n"})
    assert script.main(["--update", str(project)]) == 0
    tests = {name: text for name, text in contents(project).items() if name.startswith("tests/")}
    assert tests == {"tests/test_project.py": "the project's\n", "tests/test_mine.py": "mine\n"}


def test_an_update_brings_the_settings_of_a_project_to_an_earlier_one(
    make: Make, script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workflow, settings = "      - run: make test\n", '[tool.pytest]\nwarnings = [\n    "error",\n]\n'
    early = {".github/workflows/test.yml": f"{workflow}      - run: make test-minimal\n", "pyproject.toml": settings}
    tests = {"tests/project/test_project.py": None, "tests/dev/test_bench.py": "the template's\n"}
    commit(tmp_path / "template", **early, **tests)
    project = make(**early)
    commit(
        tmp_path / "template", **{"tests/project/test_project.py": "the project's\n", "tests/dev/test_bench.py": None}
    )
    capsys.readouterr()
    assert script.main(["--update", str(project)]) == 0
    assert contents(project)[".github/workflows/test.yml"] == workflow
    assert contents(project)["pyproject.toml"] == settings.replace('    "error",\n', "") + project_files.UNTYPED
    assert "left unchanged" not in capsys.readouterr().out, "it has no such file"


def test_conflicts_are_marked_and_listed_and_nothing_is_lost(
    make: Make, script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = make(
        **{
            "train.py": with_line(5, "mine"),
            "base/new.py": "mine\n",
            "base/old.py": "changed\n",
            "base/loop.py": None,
            "docs/picture.png": "\0mine",
        }
    )
    commit(
        tmp_path / "template",
        **{
            "train.py": with_line(5, "theirs"),
            "base/new.py": "theirs\n",
            "base/old.py": None,
            "base/loop.py": with_line(3, "new"),
            "docs/picture.png": "\0two",
            "config.json": "theirs\n",
        },
    )
    capsys.readouterr()
    assert script.main(["--update", str(project)]) == 1
    printed = capsys.readouterr().out
    after = contents(project)
    for name in ("train.py", "base/new.py"):
        assert re.search(r"<<<<<<< .*\nmine\n=======\ntheirs\n>>>>>>> ", after[name])
    assert after["base/old.py"] == "changed\n"
    assert "base/loop.py" not in after
    assert after["docs/picture.png"] == "\0mine"
    assert git(project, "show", ":3:docs/picture.png") == "\0two"
    conflicts = ["base/new.py", "base/old.py", "docs/picture.png", "train.py"]
    assert re.findall(r"^(?:AA|UU|UD) (\S+)", printed, flags=re.MULTILINE) == conflicts
    assert re.findall(r"left unchanged +(\S+)", printed) == ["base/loop.py", "config.json"]


@pytest.mark.parametrize("untracked", [True, False])
def test_a_dirty_tree_is_refused(
    make: Make, script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], untracked: bool
) -> None:
    project = make()
    commit(tmp_path / "template", **{"train.py": "new\n"})
    (project / ("new.txt" if untracked else "train.py")).write_text("mine\n")
    before = contents(project)
    assert script.main(["--update", str(project)]) == 2
    assert "changes that are not committed" in capsys.readouterr().err
    assert contents(project) == before


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        (None, "missing or damaged"),
        ("{", "missing or damaged"),
        ('{"commit": null, "minimal": false}', "not a commit"),
        ('{"commit": "--output=x", "minimal": false}', "not a commit"),
        ('{"commit": "0123456789abcdef0123456789abcdef01234567", "minimal": false}', "has no commit"),
    ],
)
def test_a_project_of_unknown_origin_is_refused(
    make: Make, script: ModuleType, capsys: pytest.CaptureFixture[str], origin: str | None, said: str
) -> None:
    project = make(**{".template.json": origin})
    before = contents(project)
    assert script.main(["--update", str(project)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert contents(project) == before


def test_a_project_that_is_not_in_git_is_refused(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main([str(tmp_path / "mine")]) == 0
    assert script.main(["--update", str(tmp_path / "mine")]) == 2
    assert "is not in git" in capsys.readouterr().err
    assert script.main(["--update", str(tmp_path / "nowhere")]) == 2
    assert script.main(["--update", "--minimal", str(tmp_path / "mine")]) == 2


def test_a_minimal_project_stays_minimal(
    make: Make, script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = make("--minimal")
    commit(tmp_path / "template", **{"extras/report.py": "new\n", "train.py": "new\n"})
    assert script.main(["--update", str(project)]) == 0
    assert not (project / "extras").exists()
    assert (project / "train.py").read_text() == "new\n"
    assert "make schema" not in capsys.readouterr().out


def test_an_update_that_is_killed_can_be_undone_and_repeated(
    make: Make, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = make()
    commit(tmp_path / "template", **{"train.py": "new\n", "base/loop.py": "new\n", "base/new.py": "new\n"})
    before, merge = contents(project), update_project.merge

    def fails(*arguments: Any) -> list[str]:
        merge(*arguments)
        raise OSError("the disk is full")

    monkeypatch.setattr(update_project, "merge", fails)
    assert script.main(["--update", str(project)]) == 2
    assert json.loads((project / ".template.json").read_text()) == json.loads(before[".template.json"])
    monkeypatch.setattr(update_project, "merge", merge)
    assert script.main(["--update", str(project)]) == 2
    assert "interrupted, undo it: git reset --hard" in capsys.readouterr().err
    git(project, "reset", "--hard")
    assert contents(project) == before
    assert script.main(["--update", str(project)]) == 0
    assert (project / "base/new.py").read_text() == "new\n"


def test_an_ignored_file_is_not_overwritten(
    make: Make, script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = make(**{".gitignore": "mine.py\n"})
    (project / "base" / "mine.py").write_text("mine\n")
    commit(tmp_path / "template", **{"base/mine.py": "new\n", "train.py": "new\n"})
    assert script.main(["--update", str(project)]) == 0
    assert (project / "base" / "mine.py").read_text() == "mine\n"
    assert "left unchanged base/mine.py\n" in capsys.readouterr().out


def test_a_project_in_a_folder_of_a_repository_is_updated(script: ModuleType, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    assert script.main([str(outer / "mine")]) == 0
    commit(outer, **{"train.py": "another\n"})
    commit(tmp_path / "template", **{"train.py": "new\n"})
    assert script.main(["--update", str(outer / "mine")]) == 0
    assert (outer / "mine" / "train.py").read_text() == "new\n"
    assert (outer / "train.py").read_text() == "another\n"


def test_a_minimal_project_has_no_command_that_only_calls_an_extra() -> None:
    left_out = project_files.LEFT_OUT + project_files.MINIMAL
    commands = {path.name for path in project_files.files(left_out) if len(path.parts) == 1 and path.suffix == ".py"}
    assert commands == {"train.py", "test.py"}


def test_a_readme_loses_the_section_of_a_command_that_is_left_out() -> None:
    search = "## Search\n\n```\npython sweep.py seed=0..4\n```\n\nA sweep runs\na grid.\n\n"
    text = f"# Title\n\n{search}## Train\n\n```\npython train.py\n```\n\nIt trains.\n"
    assert project_files.without_mentions(text, ("sweep.py",)) == text.replace(search, "")


@pytest.mark.parametrize("minimal", [False, True])
def test_the_menu_of_the_readme_has_no_dead_links(minimal: bool) -> None:
    left_out = project_files.LEFT_OUT + (project_files.MINIMAL if minimal else ())
    text = project_files.without_mentions((ROOT / "README.md").read_text(), left_out)
    headings = {re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-") for name in re.findall(r"(?m)^#+ (.+)", text)}
    links = set(re.findall(r"\]\(#([\w-]+)\)", text))
    assert "train" in links
    assert links <= headings
    assert ("search" in links) == (not minimal)
    assert ("--check" in text and "--list" in text) == (not minimal)
