"""What Windows refuses, refused here too: flushing a file opened for reading, and renaming or removing an open one."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import train
from tests.conftest import load_script
from tests.helpers import Fit
from utils.errors import UserError

if not Path("/proc/self/fd").exists():
    pytest.skip("finds open files in /proc", allow_module_level=True)

fcntl = pytest.importorskip("fcntl")
test = load_script("test")


def open_files() -> list[Path]:
    handles = map(os.path.realpath, Path("/proc/self/fd").glob("*"))
    return [path for path in map(Path, handles) if path.is_file()]


def refusing_open_files(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*names: Any, dir_fd: int | None = None, **options: Any) -> Any:
        folder = Path() if dir_fd is None else Path(f"/proc/self/fd/{dir_fd}")
        for path in [(folder / name).resolve() for name in names]:
            if path in open_files():
                raise PermissionError(errno.EACCES, "it is open", str(path))
        return function(*names, dir_fd=dir_fd, **options) if dir_fd is not None else function(*names, **options)

    return call


def flush(handle: int) -> None:
    if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "it was opened for reading")


@pytest.fixture(autouse=True)
def like_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("replace", "rename", "unlink"):
        monkeypatch.setattr(os, name, refusing_open_files(getattr(os, name)))
    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr("utils.files.sync_folder", lambda _: None)  # does nothing there


@pytest.mark.usefixtures("tensorboard", "curves_picture")
def test_a_run_is_trained_resumed_tested_and_compared(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit(trainer={"keep_last": 1}).run_dir
    train.main(["-r", str(run), "trainer.epochs=3"])
    test.main(["-r", str(run)])
    test.main(["-r", str(run)])
    test.main(["--compare", str(run.parent / "*")])
    assert "could not be" not in capsys.readouterr().err


def test_the_folder_of_a_run_that_fails_at_once_is_removed(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="removed the empty run folder"):
        fit("model.args.in_features=5")
    assert not (tmp_path / "saved" / "small").exists()
