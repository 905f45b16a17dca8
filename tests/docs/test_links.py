"""Every link in a page leads to a file, and to a heading in it, in the template and in the projects made from it."""

import re
from pathlib import Path

import pytest

from tests.conftest import load_script
from tests.helpers import ROOT

FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
NEW_PROJECT = (ROOT / "new_project.py").exists()


def prose(text: str) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "", FENCED.sub("", text))


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page. A second heading with the same words gets a number."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", FENCED.sub("", text), flags=re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w -]", "", words.strip().lower()).replace(" ", "-")
        repeated = sum(name == anchor or re.fullmatch(rf"{re.escape(anchor)}-\d+", name) is not None for name in found)
        found.add(f"{anchor}-{repeated}" if repeated else anchor)
    return found


def broken(folder: Path) -> list[str]:
    """The links of the pages in a folder that lead nowhere."""
    pages = [*folder.glob("*.md"), *folder.glob("docs/**/*.md"), *folder.glob(".github/**/*.md")]
    assert len(pages) > 8
    found = []
    for page in pages:
        for link in LINK.findall(prose(page.read_text(encoding="utf-8"))):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            if link.startswith(("https://", "http://")):
                continue
            if not target.exists():
                found.append(f"{page.relative_to(folder)}: {link}: no such file")
            elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
                found.append(f"{page.relative_to(folder)}: {link}: no such heading")
    return found


def test_every_link_leads_somewhere() -> None:
    assert broken(ROOT) == []


@pytest.mark.skipif(not NEW_PROJECT, reason="this is such a project")
@pytest.mark.parametrize("options", [[], ["--minimal"]], ids=["project", "minimal"])
def test_every_link_of_a_new_project_leads_somewhere(options: list[str], tmp_path: Path) -> None:
    assert load_script("new_project").main([str(tmp_path / "mine"), *options]) == 0
    assert broken(tmp_path / "mine") == []


def test_headings_have_the_anchors_of_github() -> None:
    text = "# The tutorial's net\n\n```\n# not one\n```\n\n## 1. `a_b`, (c)\n\n## 확인, 테스트\n\n## Same\n\n## Same\n"
    assert anchors(text) == {"the-tutorials-net", "1-a_b-c", "확인-테스트", "same", "same-1"}
