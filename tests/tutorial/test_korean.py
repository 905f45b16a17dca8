"""The Korean pages have the sections, commands, code and figures of the English ones."""

import re
from pathlib import Path

import pytest

from tests.helpers import ROOT

PAIRS = [
    (ROOT / "docs" / "tutorial.md", ROOT / "docs" / "tutorial.ko.md"),
    (ROOT / "README.md", ROOT / "README.ko.md"),
]
both = pytest.mark.parametrize(("english", "korean"), PAIRS, ids=["tutorial", "README"])
BLOCK = re.compile(r"```.*?```", re.DOTALL)
HANGUL = re.compile(r"[가-힣]")


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return BLOCK.sub("", text(page))


def blocks(page: Path) -> list[str]:
    """The code blocks; a comment of a shell command, which a reader reads, may be in another language."""
    return [
        block if block.startswith(("```python", "```json")) else re.sub(r" +# .*", "", block)
        for block in BLOCK.findall(text(page))
    ]


def headings(page: Path) -> list[str]:
    """The level of each heading, with its number if it has one."""
    return re.findall(r"^#+(?: \d+\.)?", prose(page), flags=re.MULTILINE)


def tables(page: Path) -> list[list[str]]:
    """The code in each row of each table."""
    rows = re.findall(r"^\|.*\|$", prose(page), flags=re.MULTILINE)
    return [sorted(re.findall(r"`(.+?)`", row)) for row in rows]


@both
def test_they_have_the_same_sections(english: Path, korean: Path) -> None:
    assert headings(english) == headings(korean)


@both
def test_they_have_the_same_commands_and_code(english: Path, korean: Path) -> None:
    assert len(blocks(english)) == len(blocks(korean))
    for left, right in zip(blocks(english), blocks(korean), strict=True):
        assert left == right


@both
def test_they_show_the_same_figures(english: Path, korean: Path) -> None:
    figures = [re.findall(r"!\[.*?\]\((.*?)\)|<img[^>]*src=\"(.*?)\"", text(page)) for page in (english, korean)]
    assert figures[0] == figures[1]


@both
def test_they_give_the_same_results(english: Path, korean: Path) -> None:
    """Numbers with a decimal point: small whole numbers may be words in one of the languages."""
    left, right = (sorted(re.findall(r"\d+\.\d+", prose(page))) for page in (english, korean))
    assert left == right


@both
def test_their_tables_have_the_same_rows(english: Path, korean: Path) -> None:
    assert len(tables(english)) == len(tables(korean))
    for left, right in zip(tables(english), tables(korean), strict=True):
        assert left == right


def test_each_tutorial_names_the_keys_and_commands_of_the_other() -> None:
    """Code in a sentence: words may come in another order, but none is missing."""
    english, korean = PAIRS[0]
    left, right = (
        {" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))} for page in (english, korean)
    )
    assert left == right


@both
def test_each_links_to_the_other_at_its_top(english: Path, korean: Path) -> None:
    for page, other in ((english, korean), (korean, english)):
        top = "\n".join(text(page).splitlines()[:5])
        assert f"]({other.name})" in top


@both
def test_the_links_of_the_korean_page_lead_somewhere(english: Path, korean: Path) -> None:
    titles = re.findall(r"^#+ (.*)$", prose(korean), flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    for link in re.findall(r"\]\(([^)]+)\)", prose(korean)):
        if link.startswith("#"):
            assert link[1:] in anchors
        elif not link.startswith("http"):
            assert (korean.parent / link.partition("#")[0]).exists(), link


@both
def test_the_korean_page_is_korean(english: Path, korean: Path) -> None:
    indented = re.sub(r"^    .*", "", prose(korean), flags=re.MULTILINE)
    paragraphs = [part for part in indented.split("\n\n") if len(re.sub(r"`[^`]*`|\[.*?\]\(.*?\)", "", part)) > 60]
    assert len(paragraphs) > 10
    assert not [part for part in paragraphs if not HANGUL.search(part)]
