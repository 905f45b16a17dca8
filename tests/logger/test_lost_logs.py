"""Logs that are missing or cut short when a run resumes: one warning, whole lines stay, nothing is glued together."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

import train
from tests.helpers import Fit, curves, lines
from tests.utils.checkpoint.test_disk import at_step

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("tensorboard")]


def event_file(run: Path) -> Path:
    return sorted(run.glob("events.out.tfevents.*"))[-1]


def halve(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 + 1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("name", ["metrics.jsonl", "train.log"])
def test_a_log_that_is_removed_during_a_run_continues_in_a_new_file(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    at_step(monkeypatch, {12: lambda: next(tmp_path.rglob(name)).unlink()})
    run = fit("trainer.epochs=4").run_dir
    assert f"{name} is gone; from now on, the run logs into a new file" in capsys.readouterr().err
    assert "  4/4  " in (run / "train.log").read_text()
    assert [record["epoch"] for record in lines(run)] == ([3, 4] if name == "metrics.jsonl" else [1, 2, 3, 4])
    assert resumed(run, 5, capsys) == []
    assert lines(run)[-1]["epoch"] == 5


def resumed(run: Path, epochs: int, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The warnings of a resume."""
    capsys.readouterr()
    train.main(["-r", str(run), f"trainer.epochs={epochs}"])
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("spoil", [halve, empty, Path.unlink])
@pytest.mark.parametrize("name", ["metrics.jsonl", "events"])
def test_one_warning_and_whole_lines(
    fit: Fit, capsys: pytest.CaptureFixture[str], name: str, spoil: Callable[[Path], None]
) -> None:
    run = fit("trainer.epochs=4").run_dir
    path = event_file(run) if name == "events" else run / name
    before = path.read_bytes()
    spoil(path)
    left = path.read_bytes() if path.exists() else b""
    [warning] = resumed(run, 5, capsys)
    assert "the logs are incomplete" in warning
    assert f"{path.name} is missing" in warning or f"{path.name} has " in warning

    assert lines(run)[-1]["epoch"] == 5
    assert curves(run)["loss/train"][-1][0] == 25
    if name == "metrics.jsonl":
        whole = before[: left.rfind(b"\n") + 1]
        assert path.read_bytes().startswith(whole)
        assert path.read_bytes().count(b"\n") == whole.count(b"\n") + 1
    elif left:
        assert before.startswith(path.read_bytes())
        assert list(RawEventFileLoader(str(path)).Load())

    assert resumed(run, 6, capsys) == [], "reported once"


def test_all_of_them_are_one_warning(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit().run_dir
    for path in (run / "metrics.jsonl", event_file(run)):
        path.unlink()
    [warning] = resumed(run, 3, capsys)
    assert warning.count("is missing") == 2


def test_a_line_that_was_edited_is_not_glued(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit().run_dir
    path = run / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-1] + b" ")  # as long as before, without its end
    [warning] = resumed(run, 3, capsys)
    assert "metrics.jsonl has" in warning
    assert [line["epoch"] for line in lines(run)] == [1, 3]
