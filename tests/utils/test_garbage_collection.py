"""Garbage collection rests while torch is imported, and only then."""

import gc
from collections.abc import Iterator

import pytest

from utils import cli


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)
    gc.enable()
    gc.unfreeze()


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
