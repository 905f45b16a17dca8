"""The files for those who work on the project name what exists."""

import json
import re
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest

from tests.helpers import ROOT

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_editor_finds_the_schema_of_every_config() -> None:
    settings = json.loads((ROOT / ".vscode" / "settings.json").read_text())
    (schema,) = settings["json.schemas"]
    assert (ROOT / schema["url"]).is_file()
    patterns = [pattern.removeprefix("/") for pattern in schema["fileMatch"]]
    assert {ROOT / "config.json", *ROOT.glob("configs/*.json")} == {
        path for name in patterns for path in ROOT.glob(name)
    }


def test_the_launch_entries_run_scripts_with_options_that_they_have() -> None:
    launch = json.loads((ROOT / ".vscode" / "launch.json").read_text())
    scripts = []
    for entry in launch["configurations"]:
        script = Path(entry["program"].replace("${workspaceFolder}", str(ROOT)))
        assert script.is_file()
        scripts.append(script.stem)
        assert set(entry.get("args", [])) <= {"-c", "-r", "${file}", "${input:run}"}
    assert {"train", "test"} <= set(scripts)
    assert {found["id"] for found in launch["inputs"]} == {"run"}


def test_the_editor_formats_as_ruff_does() -> None:
    parser = ConfigParser()
    parser.read_string("[top]\n" + (ROOT / ".editorconfig").read_text())
    width = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["line-length"]
    assert parser["*.py"]["max_line_length"] == str(width)
    assert parser["Makefile"]["indent_style"] == "tab"


def test_contributing_names_what_exists() -> None:
    names = re.findall(r"[`(]([\w./]+(?:\.py|\.json|\.md|/))[`)]", CONTRIBUTING)
    assert len(names) > 10
    assert not [name for name in names if not (ROOT / name).exists()]
    targets = [*re.findall(r"^make ([\w-]+)", CONTRIBUTING, flags=re.MULTILINE), "schema"]
    makefile = (ROOT / "Makefile").read_text()
    assert not [name for name in targets if f"\n{name}:" not in makefile]
    (test,) = re.findall(r"`(test_\w+)`", CONTRIBUTING)
    assert any(f"def {test}(" in path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))


def test_the_newest_version_of_the_changelog_is_the_projects() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", text, flags=re.MULTILINE)[0] == version
    assert not [name for name in re.findall(r"`(\w+\.py)`", text) if not (ROOT / name).exists()]


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md")), ids=lambda path: path.name)
def test_an_issue_template_has_a_name_and_what_it_is_about(path: Path) -> None:
    _, head, body = path.read_text().split("---\n")
    keys = dict(line.split(": ", 1) for line in head.splitlines())
    assert keys.keys() >= {"name", "about"}
    assert 0 < len(body.splitlines()) < 20
