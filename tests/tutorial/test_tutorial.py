"""docs/tutorial.md, followed from top to bottom, prints what it says."""

import os
import re
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.tutorial import page
from tests.tutorial.page import TUTORIAL, Walk

pytestmark = pytest.mark.slow

TEXT = TUTORIAL.read_text(encoding="utf-8")
SAID = [(kind, page.commands(block)) for kind, block in page.CONSOLE.findall(TEXT)]
LOSSES = r"\| \d00 \|.*"


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory, cifar10_folder: Path) -> Walk:
    walk = Walk(TUTORIAL, tmp_path_factory.mktemp("tutorial"), cifar10_folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_, **__: True)
        walk.go()
    if os.environ.get("REWRITE"):
        page.rewrite(walk)
    return walk


@pytest.mark.parametrize("number", range(len(SAID)))
def test_every_command_prints_what_the_page_says(walk: Walk, number: int) -> None:
    """The numbers on CIFAR10 are those of the real photographs, which are not in the tests."""
    kind, said = SAID[number]
    for (line, expected), (_, printed) in zip(said, walk.printed[number][1], strict=True):
        assert not page.differences(expected, printed, numbers=not kind), line


def test_the_five_versions_have_the_same_losses(walk: Walk) -> None:
    columns = [page.losses(output) for output in page.five(walk.printed)]
    assert [len(column) for column in columns] == [5] * 5
    for steps, rounding in zip(zip(*columns, strict=True), (0.001, 0.001, 0.01, 0.05, 0.05), strict=True):
        assert max(steps) <= (1 + rounding) * min(steps)


def test_the_table_of_losses_is_what_they_print() -> None:
    assert "\n".join(re.findall(LOSSES, TEXT)) + "\n" == page.table(page.five(SAID))


def test_a_resumed_run_prints_the_losses_of_one_that_was_not_stopped(walk: Walk) -> None:
    printed = [command for _, block in walk.printed for command in block]
    whole = page.five(walk.printed)[-1]
    resumed = next(output for line, output in printed if re.match(r"python train\.py -r saved/two_layer", line))
    rows, again = (
        [line.split()[1:3] for line in output.splitlines() if re.match(r" +[45]/50? ", line)]
        for output in (whole, resumed)
    )
    assert rows == again
    assert len(rows) == 2


def test_each_line_of_a_loop_is_where_the_page_says() -> None:
    rows = re.findall(r"^\| `.*?` \| `([\w/]+\.py)`: `(.*?)` \|", TEXT, flags=re.MULTILINE)
    assert len(rows) >= 20
    for path, code in rows:
        assert code in (ROOT / path).read_text(), f"{path}: {code}"


def test_the_tests_that_the_page_names_exist() -> None:
    names = re.findall(r"`(test_\w+)`", TEXT)
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert names
    assert not [name for name in names if f"def {name}(" not in sources]


def test_the_contents_lead_to_every_section() -> None:
    titles = re.findall(r"^## (\d+\. .*)$", TEXT, flags=re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
    assert re.findall(r"^\d+\. \[.*?\]\(#(.*?)\)", TEXT, flags=re.MULTILINE) == anchors
