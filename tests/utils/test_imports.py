"""Garbage collection rests while libraries are imported, and only then."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from utils import cli
from utils.imports import import_library, import_module


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)
    gc.enable()
    gc.unfreeze()


def test_it_rests_while_a_module_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one_module.py").write_text("import gc\nTHRESHOLD = gc.get_threshold()[0]\n")
    (tmp_path / "one_broken_module.py").write_text("raise ImportError\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = gc.get_threshold()
    assert before[0] > 0
    assert import_module("one_module").THRESHOLD == 0
    assert gc.get_threshold() == before
    with pytest.raises(ImportError):
        import_module("one_broken_module")
    assert gc.get_threshold() == before
    assert gc.isenabled()


def test_what_a_component_sets_for_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one_disabling_module.py").write_text("import gc\ngc.disable()\n")
    (tmp_path / "one_frugal_module.py").write_text("import gc\ngc.set_threshold(123_456)\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = gc.get_threshold()
    import_module("one_disabling_module")
    assert not gc.isenabled()
    assert gc.get_threshold() == before
    import_module("one_frugal_module")
    assert gc.get_threshold()[0] == 123_456


@pytest.mark.parametrize("frozen", [True, False])
def test_no_collection_looks_through_a_new_library_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    name = f"one_large_library_{frozen}".lower()
    (tmp_path / f"{name}.py").write_text("OBJECTS = [[] for _ in range(100_000)]\n")
    monkeypatch.syspath_prepend(tmp_path)
    gc.collect()
    if frozen:
        gc.freeze()
    before = gc.get_freeze_count()
    library = import_library(name)
    young = [each for generation in (0, 1) for each in gc.get_objects(generation)]
    assert len(young) < 10_000
    assert (gc.get_freeze_count() > before + 99_000) == frozen
    assert import_library(name) is library


@pytest.mark.parametrize("launched", [True, False])
def test_it_rests_from_the_top_of_a_script_until_its_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], launched: bool
) -> None:
    if launched:
        monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr("sys.argv", ["train.py"])
    cli.answer_early("Trains.\n\nexamples")
    assert not gc.isenabled()
    within: list[bool] = []
    frozen = gc.get_freeze_count()
    assert cli.run(lambda _: within.append(gc.isenabled())) == 0
    assert within == [True]
    assert gc.get_freeze_count() > frozen
