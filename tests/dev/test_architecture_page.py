"""docs/architecture.md and its picture are as the code is."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dev import architecture
from tests.helpers import ROOT
from tests.test_architecture import FLOOR_OF, FLOORS

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_committed_picture_is_what_the_script_draws() -> None:
    drawn = architecture.PICTURE.read_text(encoding="utf-8")
    assert drawn == architecture.svg(), "run: python -m dev.architecture"


def test_the_picture_follows_the_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for room in (room for column in architecture.COLUMNS for room in column if room != "scripts"):
        (tmp_path / room).mkdir()
    (tmp_path / "utils" / "new_file.py").touch()
    (tmp_path / "utils" / "package").mkdir()
    (tmp_path / "utils" / "package" / "__init__.py").touch()
    (tmp_path / "trainer" / "mine.py").write_text("def f():\n    from base.x import y\n")
    (tmp_path / "train.py").write_text("import utils.signals\n")
    monkeypatch.setattr(architecture, "ROOT", tmp_path)
    assert architecture.arrows() == [("trainer", "base"), ("scripts", "utils")]
    texts = [element.text for element in ElementTree.fromstring(architecture.svg()).iter() if element.text]
    assert {"package/", "new_file.py", "mine.py", "train.py"} <= set(texts)
    assert architecture.svg().count("marker-end") == 2


def test_every_room_of_the_rule_is_drawn() -> None:
    rooms = {room for column in architecture.COLUMNS for room in column}
    assert rooms == {*FLOORS, *FLOOR_OF} - {"component", "root", "dev"} | {"scripts"}


def test_no_name_is_wider_than_its_box() -> None:
    for column in architecture.COLUMNS:
        for room in column:
            # a letter of this size is 6.6 wide on average
            assert all(6.6 * len(name) < architecture.WIDTH - 14 for name in architecture.contents(room)), room


def test_the_files_and_folders_that_the_page_names_exist() -> None:
    names = set(re.findall(r"`([\w/]+(?:\.py|\.json|\.svg|/))`", PAGE))
    assert len(names) > 40
    assert not [name for name in names if not (ROOT / name).exists()]


def test_the_reading_list_has_the_lines_of_its_files() -> None:
    rows = re.findall(r"^\| `([\w/.]+\.py)` \| (\d+) \|", PAGE, flags=re.MULTILINE)
    assert len(rows) == 16
    for name, stated in rows:
        # a project's own trainer may be longer than ours
        lines = len((ROOT / name).read_text(encoding="utf-8").splitlines())
        assert lines == pytest.approx(int(stated), rel=0.15, abs=5), name
