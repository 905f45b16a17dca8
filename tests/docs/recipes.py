"""The recipes of docs/recipes: their files, registered as if they were in the project's folders, and their runs."""

import contextlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import train
from extras.check import preflight
from recipe import files
from tests.conftest import load_script
from tests.helpers import Json, identical, make_module, own_components, resumed
from utils.config import load_config

MANY = ("trainer.save_every_steps=1", "trainer.keep_last=null", "trainer.pictures_every=0", "trainer.verbosity=1")


def config(name: str, path: str = "") -> Json:
    """A config of a recipe; by default the one of its own name."""
    value: Json = json.loads(files(name)[path or f"configs/{name}.json"])
    return value


def run_script(name: str, path: str, *arguments: str) -> None:
    """Run a script of a recipe with these arguments, to its end or to ``sys.exit(0)``."""
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(SystemExit):
        patch.setattr(sys, "argv", [path, *arguments])
        exec(compile(files(name)[path], f"docs/recipes/{name}.md: {path}", "exec"), {"__name__": "__main__"})


def install(name: str) -> None:
    """Run the recipe's Python files as modules of the project; scripts beside train.py are left out."""
    for path, text in files(name).items():
        if path.endswith(".py") and "/" in path:
            make_module(path, text, f"docs/recipes/{name}.md")


@contextlib.contextmanager
def installed(name: str) -> Iterator[None]:
    with own_components():
        install(name)
        yield


def user_lines(name: str) -> dict[str, int]:
    """Lines of code of each Python file, without blank lines, comments, docstrings and imports.

    Those of a script that makes the data, in place of the user's own, do not count.
    """
    counted = {}
    for path, text in files(name).items():
        if path.endswith(".py") and not path.startswith("make_"):
            text = re.sub(r'^\s*""".*?"""$', "", text, flags=re.DOTALL | re.MULTILINE)
            code = [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
            counted[path] = sum(not re.match(r"(from|import) ", line) for line in code)
    return counted


class RecipeRun:
    """A recipe, trained in a temporary folder."""

    expected: tuple[str, ...] = ()
    """How the notes of --check begin that do not count."""

    def __init__(self, value: Json, folder: Path, *overrides: str) -> None:
        self.folder = folder
        self.config = folder / "config.json"
        self.config.write_text(json.dumps(value))
        self.overrides = [f"trainer.save_dir={folder / 'saved'}", *MANY, *overrides]
        self.run = train.main(["-c", str(self.config), *self.overrides]).run_dir

    def assert_sound(self, capsys: pytest.CaptureFixture[str], *, step: int, tested: set[str]) -> str:
        """It resumes exactly from the checkpoint of a step, passes --check without a note, and gives these values in a
        test. Returns what the resume and --check printed.
        """
        capsys.readouterr()
        identical(self.run, resumed(self.run, self.folder, step))
        printed = capsys.readouterr().out
        status = preflight(load_config(self.config, self.overrides))
        report = capsys.readouterr().out
        assert status == 0, report
        assert [note for note in notes(report) if not note.startswith(self.expected)] == []
        assert load_script("test").main(["-r", str(self.run)]).keys() == tested
        return f"{printed}{report}"


@contextlib.contextmanager
def trained(name: str, folder: Path, *overrides: str) -> Iterator[RecipeRun]:
    """A recipe's own config, trained with its components, which are there inside the block."""
    with installed(name):
        yield RecipeRun(config(name), folder, *overrides)


def notes(report: str) -> list[str]:
    """What --check finds worth a look, but for the time that loading takes, which depends on the machine."""
    found = [line for line in report.splitlines() if re.match(r"\S.{12} (note|FAIL) ", line)]
    return [line for line in found if not line.startswith("time ")]
