"""recipe.py writes the files of the pages of docs/recipes as they are there, and never over a file of the user's."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import recipe
from tests.conftest import load_script
from tests.helpers import ROOT
from utils import cli
from utils.errors import UserError

NEW_PROJECT = (ROOT / "new_project.py").exists()


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write_all(folder: Path) -> None:
    for name in recipe.names():
        recipe.write(name, folder)


def test_the_recipes_fit_into_one_project(tmp_path: Path) -> None:
    write_all(tmp_path)
    assert len(contents(tmp_path)) == sum(len(recipe.files(name)) for name in recipe.names())
    components = re.findall(
        r"^@[A-Z_]+\.register\n(?:class|def) (\w+)", "".join(contents(tmp_path).values()), re.MULTILINE
    )
    assert len(components) == len(set(components)) > 30, "each has its own name"


def test_what_is_written_passes_the_linter(tmp_path: Path) -> None:
    write_all(tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    own = f"src = {[str(ROOT), '.']}"  # for the order of imports
    for words in (["check", "--config", own], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *words, "--no-cache", "."]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", recipe.names())
def test_every_page_has_the_files_that_its_commands_name(name: str) -> None:
    files, commands = recipe.files(name), recipe.commands(name)
    assert not any(text.startswith("#") for text in files.values()), "without the line of its name"
    assert all(json.loads(text)["name"] for path, text in files.items() if path.endswith(".json"))
    named = {word for command in commands for word in command.split() if re.search(r"^configs/|^\w+\.py$", word)}
    assert {f"configs/{name}.json"} <= named <= {*files, "train.py", "test.py"}
    assert f"python train.py -c configs/{name}.json" in " ".join(commands) or name == "k_fold"


def test_a_file_that_differs_is_never_overwritten(tmp_path: Path) -> None:
    lines = recipe.write("gan", tmp_path)
    assert lines == [f"wrote {path}" for path in recipe.files("gan")]
    (tmp_path / "model" / "gan.py").unlink()
    assert "wrote model/gan.py" in recipe.write("gan", tmp_path)
    (tmp_path / "model" / "gan.py").unlink()
    (tmp_path / "trainer" / "gan.py").write_text("mine\n")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"trainer/gan\.py is there and differs"):
        recipe.write("gan", tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("name", "said"), [("gna", 'did you mean "gan"?'), ("xxyz", "gpt"), ("../report", "gpt")])
def test_a_wrong_name_lists_the_right_ones(name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(recipe.main, [name]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: unknown recipe "{name}"')
    assert said in error


def test_without_a_name_the_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    recipe.main([])
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()] == recipe.names()
    assert "A GAN\n" in listed


def test_the_commands_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipe.write, "__defaults__", (tmp_path,))
    recipe.main(["gan"])
    shown, _, schema = capsys.readouterr().out.rstrip().rpartition("\n")
    assert shown.endswith("\n  python train.py -c configs/gan.json\n  tensorboard --logdir saved")
    assert "python -m extras.schema" in schema
    assert "configs/gan.json" in contents(tmp_path)


@pytest.mark.skipif(not NEW_PROJECT, reason="this is such a project")
def test_a_new_project_has_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = load_script("new_project").main
    assert main([str(tmp_path / "mine"), "--recipe", "gna"]) == 2
    assert main([str(tmp_path / "mine"), "--recipe", "gan", "--minimal"]) == 2
    assert list(tmp_path.iterdir()) == []
    assert main([str(tmp_path / "mine"), "--recipe", "gan"]) == 0
    assert (tmp_path / "mine" / "trainer" / "gan.py").read_text() == recipe.files("gan")["trainer/gan.py"]
    shown = capsys.readouterr().out
    assert "\n  python train.py -c configs/gan.json\n" in shown
    assert shown.index("make schema") < shown.index("git commit"), "it changes a file that is committed"
