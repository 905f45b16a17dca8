"""What lies in a run folder in place of a file: a folder, a pipe, what may not be read. One message, and no waiting."""

import contextlib
import errno
import json
import os
import shlex
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import train
from tests.conftest import load_script, small_config
from tests.helpers import PATIENCE, copy_run, needs_extra
from utils.environment import git_state
from utils.errors import TrainingError, UserError
from utils.files import LogFile, replace, sync_folder
from utils.paths import display_path, path_from
from utils.run_folder import RunFolder, replace_files
from utils.text import shell_join

FILES = [
    *(f"checkpoints/{name}.pth" for name in ("best", "last", "step-00000005")),
    *("metrics.jsonl", "environment.json", "config.json", "train.log", ".lock", ".job", ".started", "initial.pth"),
    *("events.out.tfevents.9999999999.x", "checkpoints", "test"),
]


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    """To open a named pipe would wait forever."""

    def fail(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(PATIENCE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_config(tmp_path_factory.mktemp("trained"), trainer={"tensorboard": True})
    return train.main(["-c", str(config), "trainer.epochs=1", "trainer.monitor=min val_loss"]).run_dir


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "saved" / "small"
    folder.mkdir(parents=True)
    return copy_run(trained, folder)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
@pytest.mark.parametrize("name", FILES)
def test_what_is_not_a_file_is_named(run: Path, name: str, make: Callable[[Path], None]) -> None:
    if make is os.mkdir and name in ("checkpoints", "test"):
        return
    path = run / name
    if path.is_dir():
        path.rename(run / "aside")
    else:
        path.unlink(missing_ok=True)
    make(path)
    for start in (run, run / "checkpoints" / "last.pth"):
        with pytest.raises(UserError, match=f"{path.name}|no such run|is not a run folder"):
            train.main(["-r", str(start), "trainer.epochs=2"])
    with contextlib.suppress(UserError):  # it reads only some of them
        load_script("test").main(["-r", str(run)])
    assert path.exists()


def test_a_file_that_vanishes_while_the_run_trains_does_not_matter(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "checkpoints" / ".step-00000010.pth.tmp").touch()
    original = Path.lstat

    def lstat(path: Path) -> os.stat_result:
        if path.suffix == ".tmp":
            path.unlink(missing_ok=True)
        return original(path)

    monkeypatch.setattr(Path, "lstat", lstat)
    assert RunFolder.of(run)[0].path == run


def test_what_a_killed_process_left_incomplete_is_removed(run: Path) -> None:
    left = [run / ".environment.json.tmp", run / "checkpoints" / ".step-00000010.pth.tmp"]
    for path in left:
        path.touch()
    (run / ".mine.tmp").mkdir()
    with RunFolder(run).locked():
        assert not any(path.exists() for path in left)
    assert (run / ".mine.tmp").exists()


def test_truncating_a_log_also_drops_what_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    log = LogFile(tmp_path / "log")
    log.append(b"one ")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        log.append(b"two ")
    assert log.length() == 8
    log.truncate(4)
    log.append(b"three")
    assert log.path.read_bytes() == b"one three"


@pytest.mark.parametrize("name", ["checkpoints", "test"])
def test_a_file_in_place_of_a_folder(run: Path, name: str) -> None:
    if (run / name).exists():
        (run / name).rename(run / "aside")
    (run / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name} is not a folder"):
        train.main(["-r", str(run)])


@pytest.mark.parametrize("mode", [os.R_OK, os.W_OK])
@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "environment.json", "config.json", "train.log", ".lock", "checkpoints"]
)
def test_what_one_may_not_read_or_write(run: Path, monkeypatch: pytest.MonkeyPatch, name: str, mode: int) -> None:
    original = os.access
    monkeypatch.setattr(
        os, "access", lambda path, asked: original(path, asked) and not (path == run / name and asked & mode)
    )
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=f"{name} cannot be read and written: permission denied"):
        train.main(["-r", str(run), "trainer.epochs=2"])
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_path_that_no_file_can_have(name: str) -> None:
    with pytest.raises(UserError, match=r"cannot be read|no such run"):
        train.main(["-r", name])


@pytest.mark.skipif(os.name == "nt", reason="Windows has other locks, and does not flush folders")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EIO])
def test_a_file_system_without_locks_or_that_cannot_flush_folders(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    fsync = os.fsync

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.lockf", refuse)
    monkeypatch.setattr(os, "fsync", lambda file: refuse() if stat.S_ISDIR(os.fstat(file).st_mode) else fsync(file))
    if number == errno.EIO:  # of a disk that fails
        with pytest.raises(UserError, match=r"cannot write to .*Input/output error"):
            train.main(["-r", str(run), "trainer.epochs=2"])
        with pytest.raises(OSError, match="Input/output error"):
            sync_folder(run)
        return
    assert train.main(["-r", str(run), "trainer.epochs=2"]).epochs == 2
    assert capsys.readouterr().err.count(f"without locks ({os.strerror(number)}): let no other process") == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has other locks")
def test_a_run_without_a_step_warns_once_of_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its folder is locked once more to be removed."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.lockf", refuse)
    with pytest.raises(UserError, match="removed the empty run folder"):
        train.main(["-c", str(small_config(tmp_path)), "model.args.in_features=7"])
    assert capsys.readouterr().err.count("without locks") == 1


@pytest.mark.parametrize("text", ["[1, 2", '{"resumed": 5}', '{"resumed": [5]}', '{"packages": 5}'])
def test_an_environment_that_cannot_be_read_does_not_stop_a_run(run: Path, text: str) -> None:
    (run / "environment.json").write_text(text)
    assert train.main(["-r", str(run), "trainer.epochs=2"]).epochs == 2
    kept = run / "environment.json.damaged"
    assert (kept.read_text() if kept.exists() else "") == ("" if "packages" in text else text)


def test_an_edited_log_counts_up_to_the_first_value_that_is_not_a_number(run: Path) -> None:
    records = [{"epoch": 1, "step": 5, "loss": None}, {"epoch": 2, "step": 10, "loss": "low"}]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    assert [record["epoch"] for record in RunFolder(run).epochs()] == [1]
    assert train.main(["-r", str(run), "trainer.epochs=3", "trainer.monitor=min loss"]).epochs == 3


@needs_extra("compare")
def test_a_run_that_is_compared(run: Path, tmp_path: Path) -> None:
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    load_script("test").main(["--compare", str(run), "--out", str(tmp_path / "out")])


def test_the_job_of_another_run_may_be_anything(run: Path) -> None:
    (run / ".job").mkdir()
    assert RunFolder.of_job(str(run.parent.parent), "small", "1") is None


def test_of_several_files_the_one_that_cannot_be_replaced_is_named(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    with pytest.raises(TrainingError, match=r"cannot write .*/first: Is a directory"):
        replace_files(tmp_path, {"first": "1", "second": "2"})


def test_a_working_directory_that_was_removed_hides_no_message(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    with contextlib.chdir(tmp_path):
        os.chdir(gone)
        gone.rmdir()
        assert display_path(tmp_path / "saved") == str(tmp_path / "saved")


def test_a_path_on_another_drive_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on Windows, where no relative path leads there."""
    assert path_from(tmp_path / "a", tmp_path / "b" / "c") == "../b/c"

    def fail(*_: object) -> str:
        raise ValueError("path is on mount 'C:', start on mount 'D:'")

    monkeypatch.setattr("os.path.relpath", fail)
    assert path_from(tmp_path / "a", tmp_path / "b") == (tmp_path / "b").as_posix()
    assert display_path(tmp_path) == str(tmp_path)


def test_a_command_can_be_copied_into_a_shell_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["python", r"saved\a_b\20260101-000001", r"R&D\my runs", 'trainer.args={"alpha": 1}', "-r", ""]
    assert shlex.split(shell_join(words)) == words
    monkeypatch.setattr("utils.text.os", SimpleNamespace(name="nt"))
    expected = r'''python saved\a_b\20260101-000001 "R&D\my runs" "trainer.args={\"alpha\": 1}" -r ""'''
    assert shell_join(words) == expected


@pytest.mark.parametrize("until", [3, 9])
def test_windows_is_given_time_to_release_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: int) -> None:
    """until: number of attempts that are refused."""
    refused = iter(range(until))

    def rename(path: Path, target: Path) -> None:
        if next(refused, None) is not None:
            raise PermissionError
        path.rename(target)

    waited: list[float] = []
    monkeypatch.setattr("utils.files.time", SimpleNamespace(sleep=waited.append))
    monkeypatch.setattr(Path, "replace", rename)
    monkeypatch.setattr("utils.files.os.name", "nt")
    (tmp_path / "a").touch()
    with contextlib.nullcontext() if until < 5 else pytest.raises(PermissionError):
        replace(tmp_path / "a", tmp_path / "b")
    assert len(waited) == min(until, 4)
    assert (tmp_path / "b").exists() == (until < 5)


def test_outside_of_git_it_is_unknown_whether_files_were_changed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("utils.environment.PROJECT", tmp_path)
    assert git_state() == {"git_commit": None, "git_dirty": None}
