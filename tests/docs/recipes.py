"""The recipes of docs/recipes: their files, registered as if they were in the project's folders, and their runs."""

import contextlib
import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import train
from extras.check import preflight
from tests.conftest import load_script
from tests.helpers import ROOT, Json, identical, resumed
from utils.config import load_config
from utils.registry import REGISTRIES

PAGES = ROOT / "docs" / "recipes"
NAMES = sorted(path.stem for path in PAGES.glob("*.md") if path.stem != "README")
BLOCK = re.compile(r"```(\w+)\n# (\S+)\n(.*?)```", re.DOTALL)
MANY = ("trainer.save_every_steps=1", "trainer.keep_last=null", "trainer.pictures_every=0", "trainer.verbosity=1")


def files(name: str) -> dict[str, str]:
    """The text of each file of a recipe, by its path."""
    return {path: text for _, path, text in BLOCK.findall((PAGES / f"{name}.md").read_text())}


def config(name: str, path: str = "") -> Json:
    """A config of a recipe; by default the one of its own name."""
    value: Json = json.loads(files(name)[path or f"configs/{name}.json"])
    return value


def install(name: str) -> None:
    """Run the recipe's Python files as modules of the project; scripts beside train.py are left out."""
    for path, text in files(name).items():
        if path.endswith(".py") and "/" in path:
            module = types.ModuleType(path.removesuffix(".py").replace("/", "."))
            sys.modules[module.__name__] = module  # worker processes find a class by its module
            exec(compile(text, f"docs/recipes/{name}.md: {path}", "exec"), vars(module))


def run_script(name: str, path: str, *arguments: str) -> None:
    """Run a script of a recipe with these arguments, to its end or to ``sys.exit(0)``."""
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(SystemExit):
        patch.setattr(sys, "argv", [path, *arguments])
        exec(compile(files(name)[path], f"docs/recipes/{name}.md: {path}", "exec"), {"__name__": "__main__"})


@contextlib.contextmanager
def installed(name: str) -> Iterator[None]:
    before = {kind: set(registry.own()) for kind, registry in REGISTRIES.items()}
    install(name)
    try:
        yield
    finally:
        for kind, registry in REGISTRIES.items():
            for component in registry.own().keys() - before[kind]:
                registry.unregister(component)
        for path in files(name):
            sys.modules.pop(path.removesuffix(".py").replace("/", "."), None)


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

    def __init__(self, value: Json, folder: Path, *overrides: str) -> None:
        self.folder = folder
        self.config = folder / "config.json"
        self.config.write_text(json.dumps(value))
        self.overrides = [f"trainer.save_dir={folder / 'saved'}", *MANY, *overrides]
        self.run = train.main(["-c", str(self.config), *self.overrides]).run_dir

    def assert_resumes_exactly(self, step: int) -> None:
        """From the checkpoint of a step: the same parts, metrics.jsonl and curves."""
        identical(self.run, resumed(self.run, self.folder, step))

    def check(self, capsys: pytest.CaptureFixture[str]) -> str:
        """The report of --check, which passes."""
        capsys.readouterr()
        status = preflight(load_config(self.config, self.overrides))
        report = capsys.readouterr().out
        assert status == 0, report
        return report

    def test(self) -> dict[str, float]:
        values: dict[str, float] = load_script("test").main(["-r", str(self.run)])
        return values


def notes(report: str) -> list[str]:
    """What --check finds worth a look, but for the time that loading takes, which depends on the machine."""
    found = [line for line in report.splitlines() if re.match(r"\S.{12} (note|FAIL) ", line)]
    return [line for line in found if not line.startswith("time ")]
